"""`fewstep image`: prompts to PNG files, saved as they are finished."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gen.cli.choose import choose_model
from gen.cli.output import OutputTarget, check_png, exit_code, save_free, say


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """key=value strings as options: true and false, numbers, several numbers with commas between, else text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"{pair!r} is not an option; write it as name=value, for example eta=0.5.")
        options[name.replace("-", "_")] = _value(value)
    return options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    parts = [_value(part) for part in text.split(",")] if "," in text else [text]
    return text if any(isinstance(part, str) for part in parts) else parts


def model_arguments(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `Generator.from_pretrained` that were given, from the options of a command."""
    arguments = {name: value for name, value in parts.items() if value is not None and value != []}
    if "model_options" in arguments:
        arguments["model_options"] = parse_options(arguments["model_options"])
    return arguments


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
    output: Path | None,
    grid: Path | None,
    device: str | None,
    dtype: str | None,
    metadata: bool,
    quiet: bool,
    lora: Sequence[str],
    allow_nonfinite: bool = False,
    options: Mapping[str, Sequence[str] | None],
    energies: Mapping[str, tuple] | None = None,
    training_free: Mapping[str, Any] | None = None,
    **call: Any,
) -> int:
    """Generate and save; returns the exit code. Arguments are the command's."""
    target = OutputTarget.of(output)
    sheet = None if grid is None else check_png(grid)
    call |= {f"{kind}_options": parse_options(pairs) for kind, pairs in options.items() if pairs}

    if str(call["schedule"]).lower().endswith(".json"):
        from samplers.search.table import read_table

        table = read_table(call["schedule"])
        call["schedule_options"] = {"values": table.sigmas, "unit": "sigma", "pure_noise": table.pure_noise}
        call["schedule"] = "table"

    from gen.generator import Generator

    call["guide"] = guide_of(call.get("guide"))
    model_options = model_arguments(parts)
    model = choose_model(model, fast, {**call, **(training_free or {}), **model_options, "lora": lora})
    generator = Generator.from_pretrained(model, device, dtype, **model_options)
    add_energies(generator, energies, call["guide"])
    add_energies(generator, energies, (training_free or {}).get("greedy"))
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
        result = generator(**subject, **call, **(training_free or {}), progress=not quiet, on_images=save)
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


def guide_of(text: str | None, option: str = "--guide") -> Any:
    """What --guide, or another option, says: a name, or the function of a file of the user's own."""
    if text is None or ":" not in text:
        return text
    from gen.tasks.energy_guidance.task import read_function

    return read_function(text, option)


def add_energies(generator: Any, rows: Mapping[str, tuple] | None, wanted: Any) -> None:
    """Make energies of other packages known by name, where one is asked for."""
    if not rows or not isinstance(wanted, str):
        return
    from gen.tasks.energies import EnergyInfo

    for name, row in rows.items():
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
