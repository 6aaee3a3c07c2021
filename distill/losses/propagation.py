"""How errors of a denoiser add up along its own sampling chain: ancestral steps with a level per sample, and a distance of
samples.

Source: On error propagation of diffusion models, arXiv 2308.05021, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distill.losses.solver_steps import LevelTable
from samplers.path import NoiseLevel, expand

Clean = Callable[[Tensor, NoiseLevel], Tensor]  # x0 of x at a level per sample
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


def ancestral(x0: Tensor, x: Tensor, s: NoiseLevel, t: NoiseLevel, noise: Tensor) -> Tensor:
    """x at t from x at s by the posterior of the noising process given x0, levels (B,); differentiable. On noise ratios, so
    that all paths take the steps of the variance-preserving one. arXiv 2006.11239, equation 7."""
    keep = torch.where(s.alpha > 0, (t.sigma / s.sigma) ** 2 * s.alpha / t.alpha, 0.0)
    forget = 1 - keep * s.alpha / t.alpha
    return expand(t.alpha * forget, x) * x0 + expand(keep, x) * x + expand(t.sigma * forget.sqrt(), x) * noise


def roll(clean: Clean, x: Tensor, number: Tensor, steps: int, ladder: LevelTable, noise: Callable[[int], Tensor]) -> Tensor:
    """x at the levels of numbers (B,) taken so many ancestral steps down the ladder; a sample that comes to clean data rests.

    noise(k): unit normal like x, for step k. The denoiser is asked at every step about every sample.
    """
    for taken in range(steps):
        there = number == 0
        level, below = ladder[number.clamp(min=1)], ladder[(number - 1).clamp(min=0)]
        moved = ancestral(clean(x, level), x, level, below, noise(taken))
        x, number = torch.where(expand(there.to(x), x) != 0, x, moved), (number - 1).clamp(min=0)
    return x


def mmd(a: Tensor, b: Tensor, unbiased: bool = False) -> Tensor:
    """The squared maximum mean discrepancy of samples a (N, ...) and b (M, ...): Gaussian kernels of five widths, the mean
    squared distance of all pairs times `SCALES`. unbiased: without the pairs of a sample with itself, so that it may come out
    below 0."""
    a, b = a.flatten(1), b.flatten(1)
    both = torch.cat([a, b])
    distance = (both[:, None] - both[None]).square().sum(2)
    count = len(both)
    width = (distance.detach().sum() / max(count * (count - 1), 1)).clamp(min=torch.finfo(distance.dtype).tiny)
    kernel = torch.stack([(-distance / (scale * width)).exp() for scale in SCALES]).mean(0)
    own_a, own_b, across = kernel[: len(a), : len(a)], kernel[len(a) :, len(a) :], kernel[: len(a), len(a) :]

    def mean(own: Tensor) -> Tensor:
        return (own.sum() - own.diagonal().sum()) / (len(own) * (len(own) - 1)) if unbiased else own.mean()

    return mean(own_a) + mean(own_b) - 2 * across.mean()


@torch.no_grad()
def cumulative_errors(
    clean: Clean, x0: Tensor, numbers: list[int], ladder: LevelTable, generator: torch.Generator
) -> list[float]:
    """How far the chain from pure noise is from noised data at levels of these numbers, falling: unbiased discrepancies.

    x0: clean data (N, C, H, W), of which the chain draws as many; the denoiser is asked with the condition of each.
    """

    def draw() -> Tensor:
        return torch.randn(x0.shape, generator=generator, dtype=torch.float32).to(x0)

    number = torch.full((len(x0),), ladder.steps, device=x0.device)
    x, found = expand(ladder[number].sigma, x0) * draw(), []
    for end in numbers:
        x = roll(clean, x, number, int(number[0]) - end, ladder, lambda _: draw())
        number = torch.full_like(number, end)
        found.append(float(mmd(x, ladder[number].mix(x0, draw()), unbiased=True)))
    return found
