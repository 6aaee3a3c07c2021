"""`fewstep shell`: a prompt a line, with the model kept open in between."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from gen.cli.groups import grouped
from gen.cli.options import AnyModel, Device, Dtype, Fast, Lora, LoraDir, Output, PartOptions
from gen.cli.output import OutputTarget, exit_code, say
from gen.cli.spoken import SpokenCommand

HISTORY = 1000  # lines that are kept


def add(app: typer.Typer) -> None:
    """Make it part of the program."""
    app.command(cls=SpokenCommand)(shell)


@grouped
def shell(
    *,
    model: AnyModel = None,
    fast: Fast = None,
    lora: Lora = None,
    lora_dir: LoraDir = None,
    output: Output = None,
    save_all: Annotated[bool, typer.Option("--save-all", help="Save every picture, not only on :save.")] = False,
    preview: Annotated[
        str, typer.Option(metavar="KIND", help="auto, none, kitty, iterm, sixel, blocks, blocks256: how pictures are shown.")
    ] = "auto",
    parts: PartOptions,
    device: Device = None,
    dtype: Dtype = None,
) -> int:
    """Draw line by line, the model kept open: type a prompt, or :help."""
    from gen.cli import terminal_pictures
    from gen.cli.choose import choose_model
    from gen.cli.session import DrawingSession

    choose_model(model, fast, {})
    session = DrawingSession(
        model=model,
        fast=fast,
        parts=parts.arguments(),
        device=device,
        dtype=dtype,
        lora=lora or [],
        lora_dir=lora_dir,
        target=OutputTarget.of(output),
        save_all=save_all,
        preview=terminal_pictures.choose(preview),
    )
    with _history():
        say("A prompt a line; :help says what else. Ctrl-C stops a picture, Ctrl-D ends.", not sys.stdin.isatty())
        while True:
            try:
                line = input("fewstep> " if sys.stdin.isatty() else "")
            except EOFError:
                say("", not sys.stdin.isatty())
                return 0
            except KeyboardInterrupt as stop:
                if type(stop) is not KeyboardInterrupt:  # SIGTERM
                    return exit_code(stop)
                say("")
                continue
            try:
                if not _handled(session, line):
                    return 0
            except KeyboardInterrupt as stop:
                if type(stop) is not KeyboardInterrupt:
                    return exit_code(stop)
                say("Stopped.")


def _handled(session: object, line: str) -> bool:
    """Do what a line says; False at its end. What goes wrong is a sentence, and the loop goes on."""
    from gen.cli.app import sentence

    try:
        return session.handle(line)  # type: ignore[attr-defined]
    except Exception as error:
        say(sentence(error))
    return True


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Lines of earlier sessions, where lines are typed and readline is there."""
    if not sys.stdin.isatty():
        yield
        return
    try:
        import readline
    except ImportError:
        yield
        return
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "fewstep"
    with contextlib.suppress(OSError):
        readline.read_history_file(folder / "history")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            readline.set_history_length(HISTORY)
            readline.write_history_file(folder / "history")
            (folder / "history").chmod(0o600)  # prompts are the user's own
