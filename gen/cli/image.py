"""`fewstep image`: prompts to PNG files, saved as they are finished."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gen.cli.choose import choose_model
from gen.cli.energies import ENERGIES
from gen.cli.output import OutputTarget, check_png, exit_code, save_free, say
from gen.cli.values import parse_options as parse_options


def subjects(generator: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """The call's subject: prompts of a text model, class names or numbers of a class model, nothing otherwise."""
    if generator.text_encoder is not None:
        if not prompts:
            raise ValueError('No prompt was given; write one in quotes, for example: fewstep image "a red heart".')
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
    prompts: Sequence[str],
    *,
    model: str | None,
    fast: bool | None = None,
    parts: Mapping[str, Any],
    tasks: Mapping[str, Any],
    output: Path | None,
    grid: Path | None,
    device: str | None,
    dtype: str | None,
    metadata: bool,
    quiet: bool,
    lora: Sequence[str],
    allow_nonfinite: bool = False,
    plan: bool = False,
    **call: Any,
) -> int:
    """Generate and save; returns the exit code. Arguments are the command's; tasks: the keywords of tasks; plan: only say what
    memory it needs."""
    target = OutputTarget.of(output)
    sheet = None if grid is None else check_png(grid)

    from gen.generator import Generator

    call |= {name: value for name, value in tasks.items() if value is not None}
    model = choose_model(model, fast, {**call, **parts, "lora": lora})
    if plan:
        from gen.cli.show import model_memory

        pictures = max(len(prompts), 1) * (call.get("num_images_per_prompt") or 1)
        scale = call.get("guidance_scale")
        guided = None if scale is None else scale not in (0, 1)
        batch = min(pictures, call.get("batch_size") or 8)
        size = {"height": call.get("height"), "width": call.get("width")}
        print(model_memory(model, parts, device, dtype, batch=batch, guided=guided, **size))
        more = {"lora": lora, "controlnet": call.get("controlnet"), "cache": call["cache"], "guide": call.get("guide")}
        if left := [f"--{name}" for name, value in more.items() if value]:
            print(f"not counted: what {', '.join(left)} may add")
        return 0
    generator = Generator.from_pretrained(model, device, dtype, **parts)
    add_energies(generator)
    if lora:
        from gen.cli.lora import load

        load(generator, lora, quiet, allow_nonfinite)
    subject = subjects(generator, prompts)
    saved: list[Path] = []
    shown: list[tuple[Any, str]] = []

    def save(batch: Any) -> None:
        for image, recipe in zip(batch.images, batch.recipes, strict=True):
            label = _label(generator, recipe)
            path = save_free(image, target.path(label, recipe.seed), recipe if metadata else None)
            saved.append(path)
            print(path, flush=True)
            if sheet is not None:
                shown.append((image, f"{label}\nseed {recipe.seed}".strip()))

    start = time.perf_counter()
    try:
        result = generator(**subject, **call, progress=not quiet, on_images=save)
    except KeyboardInterrupt as stop:
        say(f"Interrupted; {_pictures(len(saved))} saved.", quiet)
        return exit_code(stop)
    first = result.recipes[0]
    say(
        f"{_pictures(len(saved))} by {generator.name}, seed {_range(result.seeds)}, {first.sampler} on {first.schedule}, "
        f"{first.num_inference_steps} steps, guidance {first.guidance_scale:g}, {time.perf_counter() - start:.1f} s "
        f"on {generator.device} in {first.machine.dtype}",
        quiet,
    )
    if sheet is not None:
        from gen.io.contact_sheet import contact_sheet

        images, captions = zip(*shown, strict=True)
        print(save_free(contact_sheet(images, captions), sheet), flush=True)
    return 0


def add_energies(generator: Any) -> None:
    """Make energies of other packages known to a model by name."""
    from gen.tasks.energies import EnergyInfo

    for name, row in ENERGIES.items():
        generator.energies[name] = EnergyInfo(name, *row)


def _label(generator: Any, recipe: Any) -> str:
    if recipe.class_label is None or recipe.class_label < 0:
        return recipe.prompt
    names = generator.config.classes or ()
    return names[recipe.class_label] if recipe.class_label < len(names) else f"class {recipe.class_label}"


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _range(seeds: Sequence[int]) -> str:
    return str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
