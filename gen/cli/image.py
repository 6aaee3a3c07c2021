"""`fewstep image`: prompts to PNG files, saved as they are finished."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gen.cli.asked import Asked
from gen.cli.choose import choose_model
from gen.cli.energies import ENERGIES, add_rewards
from gen.cli.output import OutputTarget, check_png, exit_code, save_free, say
from gen.cli.values import parse_options as parse_options

MOST_SEEDS = 6  # that are said


def subjects(generator: Any, prompts: Sequence[str], typed: bool = True) -> dict[str, Any]:
    """The call's subject: prompts of a text model, class names or numbers of a class model, nothing otherwise. typed: on a
    command line, where quotes get lost."""
    if generator.text_encoder is not None:
        if not prompts:
            raise ValueError('No prompt was given; write one in quotes, for example: fewstep image "a red heart".')
        if typed:
            _hint_quotes(prompts)
        return {"prompt": list(prompts)}
    if generator.classes:
        return {"class_labels": list(prompts) or [-1]}
    return {"prompt": list(prompts) or None}


def _hint_quotes(prompts: Sequence[str]) -> None:
    """Several prompts of one word each are nearly always one prompt whose quotes the shell never saw."""
    if len(prompts) > 1 and all(len(prompt.split()) == 1 for prompt in prompts):
        joined = " ".join(prompts)
        warnings.warn(
            f"These are {len(prompts)} prompts of one word each, so a picture of each is made; for one picture of them all put "
            f'them in quotes: "{joined}".',
            stacklevel=2,
        )


def run(
    asked: Asked,
    *,
    steps: Sequence[int | None] = (None,),
    typed: bool = True,
    model: str | None,
    fast: bool | None = None,
    parts: Mapping[str, Any],
    tasks: Mapping[str, Any],
    output: Path | None,
    format: str | None = None,
    quality: int | None = None,
    grid: Path | None,
    show: bool = False,
    device: str | None,
    dtype: str | None,
    metadata: bool,
    quiet: bool,
    lora: Sequence[str],
    allow_nonfinite: bool = False,
    plan: bool = False,
    step_policy: Path | None = None,
    **call: Any,
) -> int:
    """Generate and save; returns the exit code. Arguments are the command's.

    steps: all pictures with each of these numbers of steps.
    typed: the prompts stood on the command line.
    tasks: the keywords of tasks.
    plan: only say what memory it needs.
    step_policy: the folder of a network that gives every prompt its number of steps, in place of `steps`.
    """
    target, sheet = OutputTarget.of(output, format, quality), None if grid is None else check_png(grid)
    labels, pictures = len(set(asked.prompts)), asked.count * len(steps)
    if step_policy is not None and not (step_policy / "config.json").is_file():
        raise ValueError(f"--step-policy {step_policy} is no folder of a policy of steps; give one that training has exported.")
    from gen.pipeline.exif import check_alpha

    check_alpha(target.suffix, tasks.get("transparent"))
    place = Saving(target, metadata, sheet, preview_kind(show), labels > 1, len(steps) > 1, pictures > 1)

    from gen.generator import Generator

    call |= {name: value for name, value in tasks.items() if value is not None} | asked.call
    most = max((count for count in steps if count is not None), default=None)
    model = choose_model(model, fast, {**call, **parts, "lora": lora, "num_inference_steps": most})
    if plan:
        _print_plan(model, parts, device, dtype, asked.count, lora, call)
        return 0
    generator = Generator.from_pretrained(model, device, dtype, **parts)
    add_energies(generator)
    if lora:
        from gen.cli.lora import load

        load(generator, lora, quiet, allow_nonfinite)
    subject = subjects(generator, asked.prompts, typed)
    runs: Sequence[tuple[dict[str, Any], int | None]] = [(subject, count) for count in steps]
    if step_policy is not None:
        runs = by_policy(generator, step_policy, subject)
    try:
        for subject, count in runs:
            start, before = time.perf_counter(), len(place.saved)
            result = generator(
                **subject, **call, num_inference_steps=count, progress=not quiet, on_images=partial(place.save, generator)
            )
            first = result.recipes[0]
            say(
                f"{_pictures(len(place.saved) - before)} by {generator.name}, {seeds_in_words(result.seeds)}, {first.sampler} "
                f"on {first.schedule}, {first.num_inference_steps} steps, guidance {first.guidance_scale:g}, "
                f"{time.perf_counter() - start:.1f} s on {generator.device} in {first.machine.dtype}",
                quiet,
            )
    except KeyboardInterrupt as stop:
        say(f"Interrupted; {_pictures(len(place.saved))} saved.", quiet)
        return exit_code(stop)
    place.save_sheet()
    return 0


def by_policy(generator: Any, folder: Path, subject: Mapping[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """A call for each prompt or class of a subject, with the number of steps that a policy gives it."""
    from gen.pipeline.step_policy import choose_steps

    (name, asked), *_ = subject.items()
    asked = [str(one) for one in asked or []]
    return [({name: [one]}, count) for one, count in zip(asked, choose_steps(generator, folder, asked), strict=True)]


def preview_kind(show: bool) -> str:
    """How pictures are shown in this terminal, "none" unless asked for. A warning where it can show none."""
    if not show:
        return "none"
    from gen.cli.terminal_pictures import detect

    if (kind := detect()) == "none":
        warnings.warn("This terminal does not say that it can show pictures, so none are shown.", stacklevel=2)
    return kind


def show_picture(image: Any, kind: str) -> None:
    if kind != "none":
        from gen.cli.terminal_pictures import show

        show(image, kind)


def _print_plan(
    model: str,
    parts: Mapping[str, Any],
    device: str | None,
    dtype: str | None,
    count: int,
    lora: Sequence[str],
    call: Mapping[str, Any],
) -> None:
    """What memory so many pictures need."""
    from gen.cli.show import model_memory

    scale = call.get("guidance_scale")
    guided = None if scale is None else scale not in (0, 1)
    batch = min(count, call.get("batch_size") or 8)
    size = {"height": call.get("height"), "width": call.get("width")}
    print(model_memory(model, parts, device, dtype, batch=batch, guided=guided, **size))
    more = {"lora": lora, "controlnet": call.get("controlnet"), "cache": call["cache"], "guide": call.get("guide")}
    if left := [f"--{name}" for name, value in more.items() if value]:
        print(f"not counted: what {', '.join(left)} may add")


@dataclass
class Saving:
    """Saves the pictures of a command as they are made, and keeps them for a contact sheet where one is asked for.

    many_prompts, many_steps: the pictures differ by these. several: there is more than one.
    """

    target: OutputTarget
    metadata: bool
    sheet: Path | None
    preview: str = "none"
    many_prompts: bool = False
    many_steps: bool = False
    several: bool = False
    saved: list[Path] = field(default_factory=list)
    shown: list[tuple[Any, str]] = field(default_factory=list)

    def save(self, generator: Any, batch: Any) -> None:
        """A batch of a call. Prints the paths."""
        for image, recipe in zip(batch.images, batch.recipes, strict=True):
            label = label_of(generator, recipe)
            steps = f"{recipe.num_inference_steps} steps" if self.many_steps else ""
            among = f"{label if self.many_prompts else ''} {steps}".strip() if self.several else None
            path = self.target.of_recipe(recipe, f"{label} {steps}", among)
            path = save_free(image, path, recipe if self.metadata else None, self.target.quality)
            self.saved.append(path)
            print(path, flush=True)
            show_picture(image, self.preview)
            if self.sheet is not None:
                self.shown.append((image, "\n".join(filter(None, (label, steps, f"seed {recipe.seed}")))))

    def save_sheet(self) -> None:
        if self.sheet is not None:
            from gen.io.contact_sheet import contact_sheet

            images, captions = zip(*self.shown, strict=True)
            print(save_free(contact_sheet(images, captions), self.sheet), flush=True)


def add_energies(generator: Any) -> None:
    """Make energies of other packages known to a model by name, and their rewards to all."""
    from gen.tasks.energies import EnergyInfo

    add_rewards()

    for name, row in ENERGIES.items():
        generator.energies[name] = EnergyInfo(name, *row)


def label_of(generator: Any, recipe: Any) -> str:
    if recipe.class_label is None or recipe.class_label < 0:
        return recipe.prompt
    names = generator.config.classes or ()
    return names[recipe.class_label] if recipe.class_label < len(names) else f"class {recipe.class_label}"


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def seeds_in_words(seeds: Sequence[int]) -> str:
    """ "seed 7", "seeds 7 to 9", "seeds 3, 7"; each seed once."""
    own = list(dict.fromkeys(seeds))
    if len(own) == 1:
        return f"seed {own[0]}"
    if own == list(range(own[0], own[0] + len(own))):
        return f"seeds {own[0]} to {own[-1]}"
    shown = own if len(own) <= MOST_SEEDS else [*own[: MOST_SEEDS - 1], "...", own[-1]]
    return f"seeds {', '.join(map(str, shown))}"
