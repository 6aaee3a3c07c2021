"""Steps along a sampling trajectory for training: as the solvers', but with a level per sample, and differentiable.

Levels are s (noisier) and t (cleaner); scalars of a level are (B,), float64 so that no coefficient loses digits, and are cast
to x's dtype where they meet it. Images are (B, C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.path import NoiseLevel, Path, Scalar, expand
from samplers.prediction import Prediction

Predict = Callable[[Tensor, NoiseLevel], Prediction]
SOLVERS = ("ddim", "euler", "heun")


@dataclass(frozen=True)
class LevelTable:
    """Levels of a grid by number, 0 the cleanest: `ladder[index]` is one level per sample for index (B,)."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    @classmethod
    def of(cls, levels: Sequence[NoiseLevel], device: torch.device | str = "cpu") -> LevelTable:
        """From levels in the order that a sampler runs them, noisiest first."""

        def column(name: str) -> Tensor:
            return torch.tensor([float(getattr(level, name)) for level in reversed(levels)], dtype=torch.float64, device=device)

        return cls(column("t"), column("alpha"), column("sigma"))

    def __getitem__(self, index: Tensor) -> NoiseLevel:
        return NoiseLevel(self.t[index], self.alpha[index], self.sigma[index])

    @property
    def steps(self) -> int:
        return len(self.t) - 1

    def to(self, device: torch.device | str) -> LevelTable:
        return LevelTable(self.t.to(device), self.alpha.to(device), self.sigma.to(device))

    def between(self, path: Path, index: Tensor, share: Tensor) -> NoiseLevel:
        """The level on the clock at `share` (B,) of the way from level `index` up to the next."""
        t = torch.lerp(self.t[index], self.t[(index + 1).clamp(max=self.steps)], share.to(self.t))
        return path(t)


def ddim(x0: Tensor, x: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """alpha_t x0 + sigma_t (x - alpha_s x0) / sigma_s: from x at s to t with the clean image taken as x0. DDIM and Euler."""
    keep = t.sigma / s.sigma
    return expand(t.alpha - keep * s.alpha, x) * x0 + expand(keep, x) * x


def inverse_ddim(x_t: Tensor, x: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """The x0 with which `ddim` takes x at s to x_t at t. The levels must differ: at t = s every x0 does (0 / 0)."""
    keep = t.sigma / s.sigma
    return (x_t - expand(keep, x) * x) / expand(t.alpha - keep * s.alpha, x)


def adjusted_ddim(x0: Tensor, x: Tensor, s: NoiseLevel, t: NoiseLevel, variance: Tensor) -> Tensor:
    """aDDIM: DDIM whose noise is longer by what the spread of the clean images given x takes away from it.

    x_t = alpha_t x0 + sqrt(sigma_t^2 + d / |eps|^2 (alpha_t - alpha_s sigma_t / sigma_s)^2 variance) eps, for images of d
    numbers. variance (B,): the mean over pixels of Var[x0 | x]. A last step, to clean data, must not be taken with it: it would
    add the variance as noise.

    Source: arXiv 2403.06807, section 3.2.
    """
    eps = (x - expand(s.alpha, x) * x0) / expand(s.sigma, x)
    added = (t.alpha - s.alpha * t.sigma / s.sigma) ** 2 * variance
    length = eps.flatten(1).square().mean(1).clamp(min=torch.finfo(eps.dtype).tiny)
    return expand(t.alpha, x) * x0 + expand((t.sigma**2 + added / length).sqrt(), x) * eps


def step(solver: str, predict: Predict, x: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tensor:
    """x at t from x at s by one step of a solver: ddim and euler (the same), or heun (EDM's, on x / alpha)."""
    first = predict(x, s)
    if solver != "heun":
        return ddim(first.x0, x, s, t)
    single = (t.sigma == 0) | (s.alpha == 0)  # the ends of a path: an Euler step, as in the sampler

    def inside(end: Scalar, start: Scalar) -> Scalar:
        return torch.where(single, start, end)

    s_in = NoiseLevel(inside(s.t, s.t), torch.where(single, 1.0, s.alpha), s.sigma)
    t_in = NoiseLevel(inside(t.t, s.t), inside(t.alpha, s.alpha), inside(t.sigma, s.sigma))
    euler = ddim(first.x0, x, s, t)
    second = predict(torch.where(expand(single, x) != 0, x, euler), t_in)
    ratio = torch.where(single, 1.0, t.alpha / s_in.alpha)
    change = t.alpha * (t.sigma / torch.where(single, 1.0, t.alpha) - s.sigma / s_in.alpha) / 2
    both = expand(ratio, x) * x + expand(change, x) * (first.eps + second.eps)
    return torch.where(expand(single, x) != 0, euler, both)
