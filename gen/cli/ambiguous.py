"""`fewstep ambiguous`: a picture of one thing that shows another when it is turned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen.cli.output import OutputTarget, check_png, save_all, save_free, say


def run(
    prompt: str,
    others: Sequence[str],
    *,
    views: Sequence[str],
    lora: Sequence[str],
    model: str,
    grid: Path | None,
    output: Path | None,
    device: str | None,
    dtype: str | None,
    quiet: bool,
    **call: Any,
) -> int:
    """Generate and save; returns the exit code. Arguments are the command's."""
    target = OutputTarget.of(output)
    sheet = None if grid is None else check_png(grid)
    views = views or ["rotate180"]

    from gen.cli.lora import open_with
    from gen.tasks.views.task import view_of

    turns = [view_of(name) for name in views]
    generator = open_with(lora, model, device, dtype, quiet)
    start = time.perf_counter()
    result = generator.ambiguous(prompt, list(others), list(views), progress=not quiet, **call)
    save_all(result, target, f"{prompt} {' '.join(others)}")
    first = result.recipes[0]
    took = time.perf_counter() - start
    say(f"{1 + len(turns)} views, {first.num_inference_steps} steps, {took:.1f} s on {generator.device}", quiet)
    if sheet is not None:
        print(save_free(_sheet(result, prompt, others, views), sheet), flush=True)
    return 0


def _sheet(result: Any, prompt: str, others: Sequence[str], views: Sequence[str]) -> Any:
    """Every picture as it is and as each view shows it."""
    import numpy as np
    import torch

    from gen.generator import to_pil
    from gen.io.contact_sheet import contact_sheet
    from gen.tasks.views.task import view_of

    images, captions = [], []
    for image, seed in zip(result.images, result.seeds, strict=True):
        picture = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
        turned = torch.cat([view_of(name).there(picture) for name in views]) / 2 + 0.5
        images += [image, *to_pil(turned.permute(0, 2, 3, 1).numpy())]
        captions += [
            f"{prompt}\nseed {seed}",
            *(f"{other}\n{name}".replace("_", " ") for other, name in zip(others, views, strict=True)),
        ]
    return contact_sheet(images, captions)
