"""Nested diffusion: sampling that has a finished image to show at every moment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.grids import karras
from samplers.noise import NoiseSource, fork_noise
from samplers.noise_ratio import noise_ratio
from samplers.path import NoiseLevel, Path, check_falling
from samplers.sample import Solver, State, sample

TRANSITIONS = ("renoise", "posterior")


def remaining(path: Path, s: NoiseLevel, steps: int) -> tuple[NoiseLevel, ...]:
    """At most `steps` + 1 levels from s to clean data: a Karras grid below s, one step where s is its cleanest level."""
    high, low, _ = karras(path, 2)
    if noise_ratio(s) <= noise_ratio(low) * (1 + 1e-9) or steps == 1:
        return s, path(0.0)
    levels = karras(path, steps, sigma_min=noise_ratio(low), sigma_max=noise_ratio(s if s.alpha else high))
    return (s, *levels[1:])


def anytime(
    denoiser: Denoiser,
    solver: Solver,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    condition: Condition | None = None,
    *,
    inner_steps: int = 4,
    transition: str = "renoise",
    noise: NoiseSource,
    context: Context | None = None,
) -> Iterator[State]:
    """Yield len(levels) - 1 finished images, each better than the last: x of every state is a sample, at clean data.

    From each level s but the last, an inner run of `solver` goes all the way to clean data in `inner_steps` steps and its
    result is the image; then the outer process moves from s to the next level with this image as x0. The images at high
    noise are those of a short run, where one evaluation would give a blurred mean; at the end all outer levels have
    contributed. Stop iterating whenever time is up. A run takes about (len(levels) - 1) inner_steps evaluations; the state
    has the exact number.

    transition: "renoise" takes x_t = alpha_t x0 + sigma_t z, which keeps the marginals of the process for any inner solver;
    "posterior" draws x_t given both x_s and x0, the paper's, which keeps them where the inner solver is stochastic, so that its
    image is a draw given x_s; after a deterministic one it has too much variance.
    Other arguments as in `trajectory`.

    Source: arXiv 2305.19066, Algorithm 1.
    """
    if transition not in TRANSITIONS:
        raise ValueError(f"Unknown transition {transition!r}: choose one of {', '.join(TRANSITIONS)}.")
    if isinstance(inner_steps, bool) or not isinstance(inner_steps, int) or inner_steps < 1:
        raise ValueError(f"The number of inner steps must be a whole number of at least 1, got {inner_steps!r}.")
    if len(levels) < 2:
        raise ValueError(f"A run needs at least two noise levels, {len(levels)} given: ask a grid for one step or more.")
    for s, t in pairwise(levels):
        check_falling(s, t)
    context = context or Context()
    before = context.evaluations
    for step, (s, t) in enumerate(pairwise(levels)):
        inner = remaining(denoiser.path, s, inner_steps)
        image = sample(denoiser, solver, x, inner, condition, noise=fork_noise(noise, "anytime", step), context=context)
        yield State(image, inner[-1], step + 1, evaluations=(context.evaluations - before) / x.shape[0])
        if t.sigma:
            x = _outer(x, image, s, t, noise(s, t), transition)  # Algorithm 1 (arXiv 2305.19066): the outer step


def _outer(x: Tensor, x0: Tensor, s: NoiseLevel, t: NoiseLevel, z: Tensor, transition: str) -> Tensor:
    """x_t given x_s and the image x0."""
    if transition == "renoise" or s.alpha == 0:
        return t.mix(x0, z)
    forget = -math.expm1(2 * (s.logsnr - t.logsnr))
    x = torch.add(t.alpha * forget * x0, x, alpha=(t.sigma / s.sigma) ** 2 * s.alpha / t.alpha)
    return torch.add(x, z, alpha=t.sigma * math.sqrt(forget))
