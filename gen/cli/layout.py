"""`fewstep layout`: several prompts on one picture, each in its own region."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen.cli.output import OutputTarget, save_all, say


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


def run(
    layout: Path,
    *,
    colours: Sequence[str],
    background: str | None,
    lora: Sequence[str],
    model: str,
    output: Path | None,
    device: str | None,
    dtype: str | None,
    quiet: bool,
    **call: Any,
) -> int:
    """Make the layout's pictures and save them; returns the exit code. Arguments are the command's."""
    target = OutputTarget.of(output)
    table = colour_table(colours)
    from gen.tasks.layout.file import painted_layout, read_layout

    if layout.is_dir():
        raise ValueError(f"{layout} is a folder; give a layout (YAML, JSON), or a painting (PNG) with --colour.")
    if layout.suffix.lower() in (".yaml", ".yml", ".json"):
        if table:
            raise ValueError(f"{layout} says its regions itself; --colour is for a painting (PNG).")
        spec = read_layout(layout)
        if background is not None:
            spec = spec.model_copy(update={"background": background})
    else:
        if not table:
            raise ValueError(f'{layout} is a painting, so say what its colours are: --colour red="a red heart", for example.')
        spec = painted_layout(layout, table, background)

    from gen.cli.lora import open_with

    generator = open_with(lora, model, device, dtype, quiet)
    start = time.perf_counter()
    result = generator.layout(spec, progress=not quiet, **call)
    save_all(result, target, layout.stem)
    first = result.recipes[0]
    say(
        f"{len(spec.regions)} regions, {first.num_inference_steps} steps, {first.nfe:g} evaluations a picture, "
        f"{time.perf_counter() - start:.1f} s on {generator.device}",
        quiet,
    )
    return 0
