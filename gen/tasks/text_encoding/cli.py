"""How prompts are read, on the command line: `--prompt-2`, `--clip-skip` and the like."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

Pair = tuple[int, int] | None


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`; named as the keywords of a call are."""

    prompt_2: Annotated[str | None, typer.Option("--prompt-2", help="What the second text encoder reads instead.")] = None
    prompt_3: Annotated[str | None, typer.Option("--prompt-3", help="What the third reads instead.")] = None
    negative_prompt_2: Annotated[str | None, typer.Option("--negative-2", help="The same of the negative prompt.")] = None
    negative_prompt_3: Annotated[str | None, typer.Option("--negative-3", help="The same of the negative prompt.")] = None
    clip_skip: Annotated[
        int | None, typer.Option(metavar="N", help="CLIP's last layers that are left out; AUTOMATIC1111's 2 is 1.")
    ] = None
    max_sequence_length: Annotated[int | None, typer.Option(metavar="TOKENS", help="Tokens that T5 reads.")] = None
    original_size: Annotated[Pair, typer.Option(metavar="HEIGHT WIDTH", help="What SDXL is told. [default: its own]")] = None
    target_size: Annotated[Pair, typer.Option(metavar="HEIGHT WIDTH", help="What SDXL is told.")] = None
    crops_coords_top_left: Annotated[Pair, typer.Option("--crop", metavar="TOP LEFT", help="What SDXL is told.")] = None
    negative_original_size: Annotated[Pair, typer.Option(metavar="HEIGHT WIDTH", help="Of what it should not be.")] = None
    negative_target_size: Annotated[Pair, typer.Option(metavar="HEIGHT WIDTH", help="Of what it should not be.")] = None
    negative_crops_coords_top_left: Annotated[
        Pair, typer.Option("--negative-crop", metavar="TOP LEFT", help="Of what it should not be.")
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return asdict(self)


IMAGE, REPLAY, COMMANDS = ImageOptions, None, ()
