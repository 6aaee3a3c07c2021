"""A denoiser of one noise path in a run on another: models that were trained differently, side by side."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel, Path, expand
from samplers.prediction import Prediction


@dataclass(frozen=True)
class PathAdapter:
    """`denoiser` as a denoiser of `path`: it sees the same picture under as much noise, on its own path's scale.

    x = alpha x0 + sigma eps at a log-SNR becomes alpha' x0 + sigma' eps at the same one. What a prediction says of x0 and eps
    does not depend on the scale, so it is only written for the run's x. Levels noisier than any that the denoiser knows are
    shown to it as its noisiest.
    """

    denoiser: Denoiser
    path: Path

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        own = self.denoiser.path
        last = own(own.t_noise)
        if isinstance(level.logsnr, Tensor):
            inner = own.at_logsnr(level.logsnr.clamp(min=last.logsnr))
        else:
            inner = own.at_logsnr(level.logsnr) if level.logsnr > last.logsnr else last
        # sqrt(alpha^2 + sigma^2), unlike alpha or sigma, is never 0
        scale = ((inner.alpha**2 + inner.sigma**2) / (level.alpha**2 + level.sigma**2)) ** 0.5
        said = self.denoiser(expand(scale, x) * x, inner, condition, context)
        return Prediction(x, level, said.raw, said.row, said.variance)


def adapt_path(denoiser: Denoiser, path: Path) -> Denoiser:
    """The denoiser itself where its path is that one already."""
    return denoiser if denoiser.path == path else PathAdapter(denoiser, path)
