"""`fewstep ui`: its options. `gen.ui` does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gen.cli.energies import ENERGIES
from gen.cli.spoken import SpokenCommand


def add(app: typer.Typer) -> None:
    """Make it part of the program."""
    app.command(cls=SpokenCommand)(ui)


def ui(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where pictures are kept.")] = Path("outputs"),
    model: Annotated[
        str | None, typer.Option(help="The model it begins with. [default: fast or default, as it serves]")
    ] = None,
    models: Annotated[Path | None, typer.Option(metavar="DIR", help="A folder of further models to choose from.")] = None,
    lora_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="A folder of LoRAs and embeddings.")] = None,
    port: Annotated[int | None, typer.Option(help="[default: 8180, or the next one that is free]", min=1, max=65535)] = None,
    host: Annotated[str, typer.Option(help="Another than this machine's own needs --token.")] = "127.0.0.1",
    token: Annotated[str | None, typer.Option(help="What the page's address must carry; the printed one does.")] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> int:
    """Draw in the browser: a page on this machine, with a queue, previews and a gallery."""
    from gen.ui.models import AUTOMATIC
    from gen.ui.server import serve
    from gen.ui.studio import Studio

    studio = Studio(output, models, lora_dir, model or AUTOMATIC, ENERGIES)
    return serve(studio, host, port, token, browser)
