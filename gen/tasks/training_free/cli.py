"""Training-free changes on the command line: `--negtome`, `--free-custom`, `--concept`, `--aesthetic`, `--greedy`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.values import parse_options
from gen.tasks.energy_guidance.cli import energy_of

NegTome = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE|batch", help="Stay away from this picture's look, or from the batch's first one's; repeatable."),
]
NegTomeMask = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="White is where the --negtome picture counts; one for each.")
]
Reference = Annotated[
    list[Path] | None,
    typer.Option(
        "--free-custom", metavar="FILE", help="A picture whose tokens self-attention sees too, untrained; repeatable."
    ),
]
ReferenceMask = Annotated[
    list[Path] | None,
    typer.Option("--free-custom-mask", metavar="FILE", help="White is where the --free-custom picture counts; one for each."),
]
ReferencePrompt = Annotated[
    list[str] | None,
    typer.Option("--free-custom-prompt", metavar="TEXT", help="What the --free-custom picture shows; one for each."),
]
Concept = Annotated[list[str] | None, typer.Option(metavar="WORD", help="A word that must not mix with others; repeatable.")]
Aesthetic = Annotated[
    list[str] | None, typer.Option(metavar="TEXT|FILE", help="Read the prompt in the direction of a text or embedding.")
]
Greedy = Annotated[
    str | None, typer.Option(metavar="NAME|FILE.py:FUNCTION", help="At each step the best by an energy. A file is run.")
]
TrainingFreeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--training-free-option",
        "--tweak-option",
        metavar="OF.NAME=VALUE",
        help="For negtome, reference, concepts, aesthetic or greedy, e.g. negtome.scale=0.5; repeatable.",
    ),
]
NAMES = ("negtome", "reference", "concepts", "aesthetic", "greedy")


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    negtome: NegTome = None
    negtome_mask: NegTomeMask = None
    reference: Reference = None
    reference_mask: ReferenceMask = None
    aesthetic: Aesthetic = None
    greedy: Greedy = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return _given(
            {
                "negtome": "batch" if list(self.negtome or ()) == ["batch"] else self.negtome,
                "negtome_mask": self.negtome_mask,
                "reference": self.reference,
                "reference_mask": self.reference_mask,
                "aesthetic": _texts_or_file(self.aesthetic),
                "greedy": energy_of(self.greedy, "--greedy"),
            }
        )


@dataclass(frozen=True)
class ImageOptions(ReplayOptions):
    """Of `fewstep image`."""

    reference_prompt: ReferencePrompt = None
    concept: Concept = None
    training_free_option: TrainingFreeOption = None

    def keywords(self) -> dict[str, Any]:
        """Of a call; ValueError for an option that belongs to none."""
        options: dict[str, dict[str, Any]] = {}
        for pair in self.training_free_option or ():
            of, dot, rest = pair.partition(".")
            if not dot or of not in NAMES:
                raise ValueError(f"--training-free-option {pair!r}: write OF.NAME=VALUE, OF being one of {', '.join(NAMES)}.")
            options.setdefault(f"{of}_options", {}).update(parse_options([rest]))
        return super().keywords() | _given({"reference_prompt": self.reference_prompt, "concepts": self.concept, **options})


def _given(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say something."""
    return {name: value for name, value in keywords.items() if value}


def _texts_or_file(values: Sequence[str] | None) -> Any:
    files = [value for value in values or () if value.endswith(".safetensors")]
    if not files:
        return values
    if len(values or ()) > 1:
        raise ValueError(f"--aesthetic {files[0]}: give one file, or texts.")
    return Path(files[0])


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, ()
