"""RePaint: inpainting that goes back and forth, so that the new part learns of the known one (arXiv 2201.09865)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.editing.inpaint import Inpaint
from samplers.noise import normal
from samplers.noise_ratio import renoise_coefficients
from samplers.path import NoiseLevel
from samplers.sample import Solver


def repaint_walk(steps: int, jump_length: int = 10, resamples: int = 10) -> list[int]:
    """The levels that RePaint visits, by their index in a grid of `steps` steps: from 0 (noise) to `steps` (clean).

    Every jump_length levels, counted from the cleanest noisy one, it jumps back by jump_length and comes down again,
    resamples - 1 times (Algorithm 1, and the schedule of figure 9). steps + jumps (resamples - 1) jump_length steps down in
    all, with jumps = ceil((steps - jump_length) / jump_length).
    """
    for name, value in (("steps", steps), ("jump_length", jump_length), ("resamples", resamples)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
    left = {steps - 1 - t: resamples - 1 for t in range(0, steps - jump_length, jump_length)}
    walk = [0]
    while walk[-1] < steps:
        here = walk[-1]
        if left.get(here):
            left[here] -= 1
            walk.append(here - jump_length)
        else:
            walk.append(here + 1)
    return walk


def repaint(
    denoiser: Denoiser,
    solver: Solver,
    image: Tensor,
    mask: Tensor,
    levels: Sequence[NoiseLevel],
    seeds: Sequence[int],
    condition: Condition | None = None,
    *,
    jump_length: int = 10,
    resamples: int = 10,
    context: Context | None = None,
) -> Tensor:
    """`Inpaint` with resampling: (B, C, H, W), exactly `image` where `mask` is 0. One seed per image.

    A jump from level t back to s is x_s = (alpha_s / alpha_t) x_t + sqrt(sigma_s^2 - (alpha_s sigma_t / alpha_t)^2) z, and
    the known part's noise takes part in it, so that both halves stay at one level. The solver starts afresh after a jump,
    and every pass draws new noise. Use a solver with noise (euler_a), as the paper does.
    """
    shape, like = image.shape[1:], cast(dict[str, Any], {"device": image.device, "dtype": image.dtype})
    if len(seeds) != len(image):
        raise ValueError(f"RePaint needs one seed per image: {len(seeds)} seeds for {len(image)} images.")
    context, condition = replace(context or Context(), steps=len(levels) - 1, levels=tuple(levels)), condition or Condition()
    eps = normal(seeds, shape, "repaint", **like)
    state = replace(solver.init(levels[0].sigma * eps), level=levels[0])
    known = Inpaint(denoiser, image, mask, eps)
    for pass_, (i, k) in enumerate(pairwise(repaint_walk(len(levels) - 1, jump_length, resamples))):
        here, there = levels[i], levels[k]

        def draw(s: NoiseLevel, t: NoiseLevel, pass_: int = pass_) -> Tensor:
            return normal(seeds, shape, "repaint", pass_, float(s.t), float(t.t), **like)

        if k > i:
            state = solver.step(known, replace(state, step=i), here, there, condition, context.at(i), draw)
            state = replace(state, level=there)
            continue
        keep, spread = renoise_coefficients(here, there)  # Algorithm 1 (arXiv 2201.09865): the jump back
        z = draw(here, there)
        eps = torch.add(keep * here.sigma / there.sigma * eps, z, alpha=spread / there.sigma)
        known = replace(known, eps=eps)
        state = replace(solver.init(torch.add(keep * state.x, z, alpha=spread)), level=there)
    return known.put_back(state.x)
