"""Guidance by an energy on the command line: `--guide` and its options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from gen.cli.values import parse_options


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`."""

    guide: Annotated[
        str | None, typer.Option(metavar="NAME|FILE.py:FUNCTION", help="Guide to an energy: docs/guidance.md. A file is run.")
    ] = None
    guide_strength: Annotated[float | None, typer.Option(help="How strongly. [default: the method's]")] = None
    guide_method: Annotated[str | None, typer.Option(help="tfg, dps, lgd, mpgd, freedom, ugd. [default: tfg]")] = None
    guide_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="For the energy and the method; repeatable.")
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return {
            "guide": energy_of(self.guide),
            "guide_strength": self.guide_strength,
            "guide_method": self.guide_method,
            "guide_options": parse_options(self.guide_option) if self.guide_option else None,
        }


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    guide: Annotated[
        str | None, typer.Option(metavar="NAME|FILE.py:FUNCTION", help="The energy that it was guided by, if it was your own.")
    ] = None
    guide_option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of that energy: the files that it opens; repeatable.")
    ] = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return {
            "guide": energy_of(self.guide),
            "guide_options": parse_options(self.guide_option) if self.guide_option else None,
        }


def energy_of(text: str | None, option: str = "--guide") -> Any:
    """What is typed after --guide, or after another option: a name, or the function of a file of the user's own."""
    if text is None or ":" not in text or text.startswith("reward:"):
        return text
    from gen.tasks.energy_guidance.task import read_function

    return read_function(text, option)


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
