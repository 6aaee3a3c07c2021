"""What acts from a noise level on: before it another denoiser, which lays out the picture."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class Late(DenoiserWrapper):
    """`denoiser` from the log-SNR `start` on, `before` at noisier levels; each remembers by itself.

    Source: the second stage of OMG, arXiv 2403.10983, whose concepts join a picture after its layout has formed.
    """

    denoiser: Denoiser
    before: Denoiser
    start: float

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if isinstance(level.logsnr, Tensor):
            raise ValueError("What begins at a log-SNR needs one level for all samples, as in sampling; it got one for each.")
        if level.logsnr < self.start:
            return self.before(x, level, condition, context.fork("before"))
        return self.denoiser(x, level, condition, context)
