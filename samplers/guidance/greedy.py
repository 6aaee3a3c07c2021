"""Greedy guidance: at every step, of several clean images the one that a heuristic of the user's scores best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.energy import (
    check_count,
    check_numbers,
    detach_prediction,
    draw_shifts,
    gradients,
    limit_rms,
    log_density,
)
from samplers.guidance.two_branch import inner_product, read_x0
from samplers.interval import EVERYWHERE, Interval, check_interval, contains
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.prediction import Guided, Prediction
from samplers.wrappers import DenoiserWrapper

Heuristic = Callable[[Tensor, Condition], Tensor]  # (x0 (B, C, H, W), condition) -> (B,), higher is better
Candidates = Callable[[Prediction], Sequence[Tensor]]  # what else x0 might be, each (B, C, H, W)
BETAS = (0.5, 0.9)  # of the published search by gradients


@dataclass(frozen=True)
class Greedy(DenoiserWrapper):
    """x0 becomes, for every sample, what scores highest of the denoiser's own x0, the `candidates`, and the points of
    `iterations` steps of RAdam (learning rate `rate`) up the heuristic's gradient from the best of those.

    What is returned is what was scored: heuristic(x0) is the largest value of all that were seen, never less than the model's
    own, and stays in context.store["greedy", branch][step] (B,). The heuristic needs gradients for iterations only. No
    candidates and no iterations, or a log-SNR outside `interval`, is the denoiser itself, exactly. limit: the largest root mean
    square of x0's move. Nothing is differentiated through the denoiser, so a step costs its evaluation and those of the
    heuristic. A field, so every solver can run it; put it around all other guidance.

    Source: Greedy-DiM, arXiv 2404.06025, Algorithms 1 and 2, for any heuristic. Published: 50 iterations at rate 0.01, or 21
    candidates (`interpolations`), in every one of 20 steps.
    """

    denoiser: Denoiser
    heuristic: Heuristic
    candidates: Candidates | None = None
    iterations: int = 0
    rate: float = 0.01
    interval: Interval = EVERYWHERE
    limit: float | None = None

    def __post_init__(self) -> None:
        check_count("Greedy guidance", 0, iterations=self.iterations)
        check_numbers("Greedy guidance", rate=self.rate)
        check_interval(self.interval)
        if self.limit is not None:
            check_numbers("Greedy guidance", limit=self.limit)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        prediction = self.denoiser(x, level, condition, context)
        if (self.candidates is None and not self.iterations) or not contains(self.interval, level):
            return prediction
        prediction = detach_prediction(prediction, x)
        x0 = read_x0(prediction)
        best = _Best(x0, self._score(x0, condition))
        for candidate in () if self.candidates is None else self.candidates(prediction):
            moved = x0 + limit_rms(candidate - x0, self.limit)
            best.offer(moved, self._score(moved, condition))
        if self.iterations:
            self._climb(x0, best, condition)
        context.store.setdefault(("greedy", context.branch), {})[context.step] = best.score
        return prediction.with_x0(best.image)

    def _score(self, x0: Tensor, condition: Condition) -> Tensor:
        with torch.no_grad():
            return log_density(self.heuristic, x0, condition, what="heuristic")

    def _climb(self, x0: Tensor, best: _Best, condition: Condition) -> None:
        if torch.is_inference_mode_enabled():
            raise ValueError("Greedy guidance by gradients is not possible in torch.inference_mode(); use torch.no_grad().")
        z, ascent = best.image, RAdam(self.rate)
        for _ in range(self.iterations):
            with torch.enable_grad():
                leaf = z.detach().requires_grad_()
                value = log_density(self.heuristic, leaf, condition, what="heuristic")
            best.offer(z, value.detach())
            (slope,) = gradients(value, (leaf,), self.heuristic, what="heuristic")
            z = z + ascent(slope)  # Algorithm 2 (arXiv 2404.06025)
            z = x0 + limit_rms(z - x0, self.limit)
        best.offer(z, self._score(z, condition))


@dataclass
class _Best:
    """image (B, ...) and its score (B,): of each sample the first that scored highest."""

    image: Tensor
    score: Tensor

    def offer(self, image: Tensor, score: Tensor) -> None:
        wins = score > self.score
        self.image = torch.where(wins.reshape(-1, *[1] * (image.ndim - 1)), image, self.image)
        self.score = torch.where(wins, score, self.score)


class RAdam:
    """Rectified Adam (arXiv 1908.03265, Algorithm 2): a gradient to climb -> the step to add, every element on its own.

    It is written out because torch.optim imports a compiler at the first step.
    """

    def __init__(self, rate: float, betas: tuple[float, float] = BETAS, eps: float = 1e-8):
        self.rate, self.betas, self.eps = rate, betas, eps
        self.first: Tensor | float = 0.0
        self.second: Tensor | float = 0.0
        self.count = 0

    def __call__(self, gradient: Tensor) -> Tensor:
        b1, b2 = self.betas
        self.count += 1
        self.first = b1 * self.first + (1 - b1) * gradient
        self.second = b2 * self.second + (1 - b2) * gradient.square()
        mean = self.first / (1 - b1**self.count)
        room, decay = 2 / (1 - b2) - 1, b2**self.count
        length = room - 2 * self.count * decay / (1 - decay)
        if length <= 5:
            return self.rate * mean
        rectified = math.sqrt((length - 4) * (length - 2) * room / ((room - 4) * (room - 2) * length))
        return self.rate * rectified * math.sqrt(1 - decay) * mean / (self.second.sqrt() + self.eps)


def guidance_scales(scales: Sequence[float]) -> Candidates:
    """Candidates: what classifier-free guidance of other scales would have said, from evaluations that are made anyway.

    None where guidance did not evaluate both branches."""
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
            raise ValueError(f"Greedy guidance got the scale {scale!r}; give finite guidance scales, for example 1, 3, 5, 8.")

    def propose(prediction: Prediction) -> list[Tensor]:
        if not isinstance(prediction, Guided) or prediction.cond is None or prediction.null is None:
            return []
        null = read_x0(prediction.null)
        return [torch.lerp(null, read_x0(prediction.cond), scale) for scale in scales]

    return propose


def interpolations(count: int) -> Candidates:
    """Candidates: `count` spherical interpolations between the noise predictions of guidance's two branches, ends included.

    None where guidance did not evaluate both, and at pure noise."""
    check_count("Greedy guidance", 2, interpolations=count)

    def propose(prediction: Prediction) -> list[Tensor]:
        level = prediction.level
        if not isinstance(prediction, Guided) or prediction.cond is None or prediction.null is None or level.alpha == 0:
            return []
        a, b = prediction.null.eps, prediction.cond.eps
        return [(prediction.x - level.sigma * slerp(a, b, k / (count - 1))) / level.alpha for k in range(count)]

    return propose


def draws(noise: NoiseSource, count: int, spread: float) -> Candidates:
    """Candidates: x0 plus `count` normal draws of standard deviation spread sigma / sqrt(alpha^2 + sigma^2)."""
    check_count("Greedy guidance", 1, draws=count)
    check_numbers("Greedy guidance", spread=spread)

    def propose(prediction: Prediction) -> list[Tensor]:
        level, x0 = prediction.level, read_x0(prediction)
        size = spread * level.sigma / math.hypot(level.alpha, level.sigma)
        return [x0 + shift for shift in draw_shifts(noise, level, count, size)]

    return propose


def together(sources: Sequence[Candidates]) -> Candidates | None:
    """All of several; None of none."""
    return (lambda prediction: [one for source in sources for one in source(prediction)]) if sources else None


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """From a to b along the arc between them, for every sample (B, ...); the straight line where they are nearly parallel."""
    cosine = inner_product(a, b) / (inner_product(a, a) * inner_product(b, b)).sqrt().clamp(min=torch.finfo(a.dtype).tiny)
    angle = cosine.clamp(-1, 1).acos()
    straight = angle.sin() < 1e-6
    sine = torch.where(straight, 1.0, angle.sin())
    first = torch.where(straight, 1 - share, ((1 - share) * angle).sin() / sine)
    last = torch.where(straight, share, (share * angle).sin() / sine)
    return first * a + last * b


__all__ = ["Greedy", "RAdam", "draws", "guidance_scales", "interpolations", "slerp", "together"]
