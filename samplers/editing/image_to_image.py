"""Image to image: noise an image to some level of a grid and sample from there (SDEdit, arXiv 2108.01073)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.grids import Grid
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.sample import Solver, sample


def start_at(levels: Sequence[NoiseLevel], strength: float) -> Grid:
    """The last int(steps * strength) steps of a grid, as diffusers cuts it: strength 1 is all of it.

    How noisy the start is then depends on the grid and its number of steps; `start_at_level` names the noise itself.
    Raises ValueError for a strength outside [0, 1] and for one that leaves no step.
    """
    steps = len(levels) - 1
    if not 0 <= strength <= 1:
        raise ValueError(f"The strength must lie between 0 (keep the image) and 1 (replace it), got {strength}.")
    keep = min(int(steps * strength), steps)
    if keep < 1:
        scale = 10 ** max(3, len(str(steps)))
        least = math.ceil(scale / max(steps, 1)) / scale  # rounded up, so that it leaves one
        raise ValueError(f"A strength of {strength} leaves no step of {steps}: give more steps or at least {least:g}.")
    return tuple(levels[steps - keep :])


def start_at_level(levels: Sequence[NoiseLevel], level: NoiseLevel) -> Grid:
    """`level`, then every level of the grid that is cleaner.

    A fraction of the clock is path(fraction * path.t_noise), a log-SNR path.at_logsnr(value). Raises ValueError if the grid
    has no cleaner level.
    """
    if math.isnan(level.logsnr):
        raise ValueError(f"The level to start from must have a log-SNR; sigma {level.sigma} has none.")
    rest = [v for v in levels if v.logsnr > level.logsnr]
    if not rest:
        raise ValueError(f"The grid has no level cleaner than log-SNR {level.logsnr:.4g} to go to: start at more noise.")
    return (level, *rest)


def image_to_image(
    denoiser: Denoiser,
    solver: Solver,
    image: Tensor,
    eps: Tensor,
    levels: Sequence[NoiseLevel],
    strength: float = 0.8,
    condition: Condition | None = None,
    *,
    noise: NoiseSource | None = None,
    context: Context | None = None,
    grad: bool = False,
) -> Tensor:
    """Mix `image` with unit noise `eps`, both (B, C, H, W), at the level that `strength` starts from, and sample to the end.

    Other arguments as in `sample`.
    """
    cut = start_at(levels, strength)
    return sample(denoiser, solver, cut[0].mix(image, eps), cut, condition, noise=noise, context=context, grad=grad)
