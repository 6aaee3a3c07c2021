"""The options of `fewstep image` and `fewstep replay` for training-free changes (`gen.tasks.training_free`), as keywords of a
call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

NegTome = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE|batch", help="Stay away from this picture's look, or from the batch's first one's; repeatable."),
]
NegTomeMask = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="White is where the --negtome picture counts; one for each.")
]
Reference = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="A picture to resemble, through attention; repeatable.")
]
ReferenceMask = Annotated[
    list[Path] | None, typer.Option(metavar="FILE", help="White is where the --reference picture counts; one for each.")
]
ReferencePrompt = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="What it shows; one for each.")]
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


def keywords(
    *,
    negtome: Sequence[str] | None = None,
    negtome_mask: Sequence[Path] | None = None,
    reference: Sequence[Path] | None = None,
    reference_mask: Sequence[Path] | None = None,
    reference_prompt: Sequence[str] | None = None,
    concept: Sequence[str] | None = None,
    aesthetic: Sequence[str] | None = None,
    greedy: str | None = None,
    options: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Those that say something, as a call takes them; ValueError for an option that belongs to none."""
    from gen.cli.image import guide_of, parse_options

    call: dict[str, Any] = {
        "negtome": "batch" if list(negtome or ()) == ["batch"] else negtome,
        "negtome_mask": negtome_mask,
        "reference": reference,
        "reference_mask": reference_mask,
        "reference_prompt": reference_prompt,
        "concepts": concept,
        "aesthetic": _texts_or_file(aesthetic),
        "greedy": guide_of(greedy, "--greedy"),
    }
    for pair in options or ():
        of, dot, rest = pair.partition(".")
        if not dot or of not in NAMES:
            raise ValueError(f"--training-free-option {pair!r}: write OF.NAME=VALUE, where OF is one of {', '.join(NAMES)}.")
        call.setdefault(f"{of}_options", {}).update(parse_options([rest]))
    return {name: value for name, value in call.items() if value}


def _texts_or_file(values: Sequence[str] | None) -> Any:
    files = [value for value in values or () if value.endswith(".safetensors")]
    if not files:
        return values
    if len(values or ()) > 1:
        raise ValueError(f"--aesthetic {files[0]}: give one file, or texts.")
    return Path(files[0])
