"""`fewstep restore`: a damaged picture to ones that explain it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen.cli.image import parse_options
from gen.cli.output import OutputTarget, check_png, save_all, save_free, say


def run(
    picture: Path,
    *,
    prompt: str | None,
    task: str,
    mask: Path | None,
    options: Sequence[str],
    simulate: bool,
    model: str,
    grid: Path | None,
    output: Path | None,
    device: str | None,
    dtype: str | None,
    quiet: bool,
    **call: Any,
) -> int:
    """Restore and save; returns the exit code. Arguments are the command's."""
    target = OutputTarget.of(output)
    sheet = None if grid is None else check_png(grid)
    task_options = parse_options(options) | ({"simulate": True} if simulate else {})

    from gen.generator import Generator, to_pil
    from gen.tasks.restore.task import check_task, make_restoration

    check_task(task, task_options)
    generator = Generator.from_pretrained(model, device, dtype)
    start = time.perf_counter()
    result = generator.restore(picture, task, prompt, mask=mask, progress=not quiet, **task_options, **call)
    save_all(result, target, f"{picture.stem}-{task}")
    first = result.recipes[0]
    say(f"{task}, {first.num_inference_steps} steps, {time.perf_counter() - start:.1f} s on {generator.device}", quiet)
    if sheet is not None:
        from gen.io.contact_sheet import contact_sheet

        restoration = make_restoration(task, picture, mask, task_options, first.height, first.width)
        before = to_pil(restoration.given.permute(0, 2, 3, 1).numpy())[0].resize((first.width, first.height), 0)
        captions = ["before", *(f"seed {seed}" for seed in result.seeds)]
        print(save_free(contact_sheet([before, *result.images], captions), sheet), flush=True)
    return 0
