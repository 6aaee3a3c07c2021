"""`fewstep layout`: several prompts on one picture, each in its own region."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gen.cli.groups import grouped
from gen.cli.lora import OpenOptions
from gen.cli.options import Negative, PlaceOptions, RuleOptions, SamplingOptions
from gen.cli.output import make_and_save, say

if TYPE_CHECKING:
    from gen.tasks.layout.spec import LayoutSpec


@grouped
def layout(
    *,
    layout: Annotated[
        str, typer.Argument(metavar="FILE", help="A layout (YAML, JSON, or JSON itself), or a painting (PNG) with --colour.")
    ],
    colour: Annotated[
        list[str] | None, typer.Option(metavar="COLOUR=PROMPT", help="What a painting's colour is; repeatable.")
    ] = None,
    background: Annotated[str | None, typer.Option(help="The prompt of what no region covers.")] = None,
    sampling: SamplingOptions,
    negative: Negative = None,
    rules: RuleOptions,
    model: OpenOptions,
    place: PlaceOptions,
) -> int:
    """Make a picture with a prompt for every region; see docs/regions.md."""
    target = place.target()
    spec = read_spec(layout, colour_table(colour or []), background)

    generator = model.opened(place)
    call = {"negative_prompt": negative, **sampling.keywords(), **rules.keywords()}
    label = "layout" if _is_json(layout) else Path(layout).stem
    result, took = make_and_save(generator.layout, target, label, place.quiet, spec, **call)
    first = result.recipes[0]
    about = f"{first.num_inference_steps} steps, {first.nfe:g} evaluations a picture"
    say(f"{len(spec.parts)} {'layers' if spec.layers else 'regions'}, {about}, {took}", place.quiet)
    return 0


def read_spec(given: str | Path, colours: Mapping[str, str], background: str | None) -> LayoutSpec:
    """The layout of a file, of JSON itself, or of a painting whose colours have prompts; ValueError where they do not go
    together."""
    from gen.tasks.layout.file import painted_layout, read_layout

    if _is_json(given):
        return _upon(_read_json(str(given)), background)
    path = Path(given)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a layout (YAML, JSON), or a painting (PNG) with --colour.")
    if not path.exists():
        raise ValueError(f"{path} does not exist; give a layout (YAML, JSON), or a painting (PNG) with --colour.")
    if path.suffix.lower() not in (".yaml", ".yml", ".json"):
        if not colours:
            raise ValueError(f'{path} is a painting, so say what its colours are: --colour red="a red heart", for example.')
        return painted_layout(path, colours, background)
    if colours:
        raise ValueError(f"{path} says its regions itself; --colour is for a painting (PNG).")
    return _upon(read_layout(path), background)


def _upon(spec: LayoutSpec, background: str | None) -> LayoutSpec:
    """A layout with another background; ValueError for one of layers."""
    if background is not None and spec.layers:
        raise ValueError("A layout of layers has no background: the lowest layer is that. Leave --background out.")
    return spec if background is None else spec.model_copy(update={"background": background})


def _is_json(given: str | Path) -> bool:
    return str(given).lstrip().startswith("{")


def _read_json(text: str) -> LayoutSpec:
    from gen.tasks.layout.spec import read_spec

    try:
        return read_spec(json.loads(text))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"The layout is not JSON ({error}); mend it, or give a file.") from None


def colour_table(pairs: Sequence[str]) -> dict[str, str]:
    """COLOUR=PROMPT strings as a table."""
    table: dict[str, str] = {}
    for pair in pairs:
        colour, equals, prompt = pair.partition("=")
        if not equals or not colour.strip():
            raise ValueError(f'{pair!r} is not a colour with its prompt; write, for example, --colour red="a red heart".')
        if colour.strip() in table:
            raise ValueError(f"The colour {colour.strip()} is given twice; give each once.")
        table[colour.strip()] = prompt.strip()
    return table


IMAGE, REPLAY, COMMANDS = None, None, (layout,)
