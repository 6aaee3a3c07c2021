"""`fewstep layout`: several prompts on one picture, each in its own region; `fewstep concepts`: taught things put into one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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


def named_values(pairs: Sequence[str] | None, option: str, example: str) -> dict[str, str]:
    """THING=VALUE strings as a table; ValueError for what is none, and for a thing that is given twice."""
    table: dict[str, str] = {}
    for pair in pairs or ():
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not name or not value or name in table:
            raise ValueError(f"{option} {pair!r}: write each thing once, then = and its value, for example {option} {example}.")
        table[name] = value
    return table


@grouped
def concepts(
    *,
    prompt: Annotated[str, typer.Argument(help='The scene, in ordinary words: "a cat and a dog on a beach".')],
    concept: Annotated[
        list[str], typer.Option(metavar="THING=PROMPT", help='What is drawn where a thing is: "a cat=a <tom> cat"; repeatable.')
    ],
    use: Annotated[
        list[str] | None,
        typer.Option(
            metavar="THING=LORA",
            help="Which LoRA acts there; those not named act all over. [default: those given, in the order of the concepts]",
        ),
    ] = None,
    mask: Annotated[
        list[str] | None, typer.Option(metavar="THING=FILE", help="Where it is, white inside. [default: it is found]")
    ] = None,
    segment: Annotated[
        str | None, typer.Option(metavar="FILE.py:FUNCTION", help="Finds things: (picture, thing) -> mask, by your own model.")
    ] = None,
    start: Annotated[
        float | None, typer.Option(help="The log-SNR from which concepts act; lower keeps less of the layout. [default: -1.13]")
    ] = None,
    grow: Annotated[int, typer.Option(help="Pixels by which masks reach further.")] = 0,
    keep_outside: Annotated[
        bool, typer.Option("--keep-outside", help="Outside of masks the layout's own pixels; such a picture has no recipe.")
    ] = False,
    save_layout: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the first stage's picture too.")] = None,
    sampling: SamplingOptions,
    rules: RuleOptions,
    model: OpenOptions,
    place: PlaceOptions,
) -> int:
    """Draw a scene, then taught things in their places in it (OMG's two stages); see docs/concepts.md."""
    from dataclasses import replace

    from gen.cli.output import OutputTarget, save_all
    from gen.pipeline.output import to_pil
    from gen.tasks.layout.two_stages import START, PlacedConcept, concepts_in_place

    if sampling.number != 1:
        raise ValueError("Concepts are put into one picture at a time; leave --number out, and give other seeds.")
    if not 0 <= grow <= 1024:
        raise ValueError(f"--grow is {grow}; give a number of pixels, 0 to 1024.")
    if start is not None and not -20 <= start <= 20:
        raise ValueError(f"--start is {start}; give a log-SNR from -20, of much noise, to 20, of hardly any.")
    prompts = named_values(concept, "--concept", '"a cat=a <tom> cat"')
    used, masks = named_values(use, "--use", '"a cat=tom"'), named_values(mask, "--mask", '"a cat=left.png"')
    if stray := next((name for name in (*used, *masks) if name not in prompts), None):
        raise ValueError(f"{stray!r} is no thing of --concept; there are {', '.join(map(repr, prompts))}.")
    target = place.target()
    beside = None if save_layout is None else OutputTarget.of(save_layout)
    function = None
    if segment is not None:
        from gen.tasks.energy_guidance.task import read_function

        function = read_function(segment, "--segment")
    generator = model.opened(place)
    weights = dict(generator.adapters)
    if not used and len(weights) not in (0, len(prompts)):
        raise ValueError(
            f"{len(weights)} LoRAs and {len(prompts)} concepts are given; say which acts where, with --use THING=LORA: "
            f"{', '.join(weights)}."
        )
    names = used or dict(zip(prompts, weights, strict=False))
    if unknown := next((name for name in used.values() if name not in weights), None):
        raise ValueError(f"--use names the LoRA {unknown!r}, which is not loaded; loaded are {', '.join(weights) or 'none'}.")
    placed = [
        PlacedConcept(thing, text, {names[thing]: weights[names[thing]]} if thing in names else {}, masks.get(thing))
        for thing, text in prompts.items()
    ]
    generator.set_adapters({name: weight for name, weight in weights.items() if name not in names.values()})
    call = {name: value for name, value in {**sampling.keywords(), **rules.keywords()}.items() if value is not None}
    call.pop("num_images_per_prompt", None)
    made = concepts_in_place(
        generator, prompt, placed, start=START if start is None else start, segment=function, grow=grow,
        keep_outside=keep_outside, progress=not place.quiet, **call,
    )  # fmt: skip

    def shown(output: Any) -> Any:
        return replace(output, images=to_pil(output.images.float().cpu().permute(0, 2, 3, 1).numpy()))

    if beside is not None:
        save_all(shown(made.layout), beside, prompt, False)
    if keep_outside:
        from gen.pipeline.png import save_image

        path = target.of_recipe(made.picture.recipes[0], prompt)
        save_image(shown(made.picture).images[0], path, None)
        print(path, flush=True)
    else:
        save_all(shown(made.picture), target, prompt, False)
    shares = ", ".join(f"{thing} {float((mask > 0.5).double().mean()):.0%}" for thing, mask in made.masks.items())
    say(f"Of the picture: {shares}.", place.quiet)
    return 0


IMAGE, REPLAY, COMMANDS = None, None, (layout, concepts)
