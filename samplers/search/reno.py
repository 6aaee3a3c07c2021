"""Searching for the noise that a model makes the best picture of: ReNO by gradients, and the best of several by trying."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.guidance.energy import gradients, log_density


@dataclass(frozen=True)
class Chosen:
    """For every sample its best noise (B, ...), the picture of that, its reward (B,), and the rewards of all tries (T, B)."""

    noise: Tensor
    images: Tensor
    rewards: Tensor
    tried: Tensor


def log_radius(noise: Tensor) -> Tensor:
    """log p of the norm of unit normal noise (B, ...), up to a constant: (d - 1) log |z| - |z|^2 / 2, highest at d - 1."""
    square = noise.flatten(1).square().sum(1)
    return (noise[0].numel() - 1) / 2 * square.log() - square / 2


def reno(
    generate: Callable[[Tensor], Tensor],
    reward: Callable[[Tensor], Tensor],
    noise: Tensor,
    *,
    iterations: int = 50,
    rate: float = 5.0,
    momentum: float = 0.9,
    clip: float = 0.1,
    regularisation: float = 0.01,
) -> Chosen:
    """Ascend reward(generate(z)) + regularisation log_radius(z) over the noise z (B, ...), and keep the best by reward.

    Nesterov momentum, with each sample's gradient clipped to the norm `clip`: samples do not look at one another, so B of them
    go as B alone would.

    generate: noise -> pictures, differentiable and a function of the noise alone: one or a few steps of
    `sample(..., grad=True)`, any other noise of the run fixed.
    reward: pictures -> (B,), higher is better.
    noise: (B, ...) the start; iterations + 1 pictures are made, with 0 only the first.

    Source: arXiv 2406.04312, equations 3 to 6; the defaults are its code's for SD-Turbo.
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 0:
        raise ValueError(f"ReNO got iterations={iterations!r}; give a whole number of at least 0.")
    for name, value in (("rate", rate), ("clip", clip)):
        if not 0 < value < math.inf:
            raise ValueError(f"ReNO got {name}={value!r}; give a finite number above 0.")
    if not 0 <= momentum < 1 or not 0 <= regularisation < math.inf:
        raise ValueError(
            f"ReNO got momentum={momentum} and regularisation={regularisation}; give 0 <= momentum < 1, and 0 or more."
        )
    z, velocity = noise.detach(), torch.zeros_like(noise)
    best: tuple[Tensor, Tensor, Tensor] | None = None
    tried: list[Tensor] = []
    for i in range(iterations + 1):
        with torch.set_grad_enabled(i < iterations):
            leaf = z.detach().requires_grad_(i < iterations)
            images = generate(leaf)
            rewards = log_density(reward, images)
            objective = rewards + regularisation * log_radius(leaf).to(rewards)  # equations 3 to 6 (arXiv 2406.04312)
        tried.append(rewards.detach())
        best = _better(best, (z, images.detach(), rewards.detach()))
        if i < iterations:
            slope = -gradients(objective, (leaf,), reward)[0]
            size = slope.flatten(1).norm(dim=1).reshape(-1, *[1] * (z.ndim - 1))
            slope = slope * (clip / (size + 1e-6)).clamp(max=1)
            velocity = momentum * velocity + slope
            z = z - rate * (slope + momentum * velocity)
    assert best is not None
    return Chosen(*best, torch.stack(tried))


def best_of(generate: Callable[[Tensor], Tensor], reward: Callable[[Tensor], Tensor], noises: Sequence[Tensor]) -> Chosen:
    """For every sample the noise of several (each (B, ...)) whose picture has the highest reward, the earlier of equals."""
    if not noises:
        raise ValueError("The best of no noise cannot be chosen; give one or more.")
    best: tuple[Tensor, Tensor, Tensor] | None = None
    tried = []
    for noise in noises:
        with torch.no_grad():
            images = generate(noise)
            rewards = log_density(reward, images)
        tried.append(rewards)
        best = _better(best, (noise, images, rewards))
    assert best is not None
    return Chosen(*best, torch.stack(tried))


def _better(best: tuple[Tensor, Tensor, Tensor] | None, new: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(noise, images, rewards), each row from whichever has the higher reward."""
    if best is None:
        return new
    wins = new[2] > best[2]
    noise, images, rewards = (torch.where(wins.reshape(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(best, new, strict=True))
    return noise, images, rewards
