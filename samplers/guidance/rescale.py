"""CFG rescale: guidance without its overexposure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import at_least_float32, read_x0
from samplers.path import NoiseLevel
from samplers.prediction import Guided, Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class Rescale(DenoiserWrapper):
    """Gives a guided x0 the standard deviation of the conditional one, by a share `factor`:

        x0 = factor (std(x0_cond) / std(x0_guided)) x0_guided + (1 - factor) x0_guided,

    std over all but the batch; a guided x0 that has none beyond rounding stays as it is. `denoiser` must guide; where its
    guidance does not act, nothing changes. A non-linear rule: it acts on x0. on="raw" applies it to the network's own
    output, as published for v and as diffusers does for every kind. Clipping on top of it sees the rescaled image; below it,
    what it rescales is already clipped: the order matters.

    Source: arXiv 2305.08891, section 3.4.
    """

    denoiser: Denoiser
    factor: float = 0.7
    on: str = "x0"

    def __post_init__(self) -> None:
        if isinstance(self.factor, bool) or not 0 <= self.factor <= 1:
            raise ValueError(f"The rescale factor must lie between 0 (off) and 1, got {self.factor!r}; 0.7 is usual.")
        if self.on not in ("x0", "raw"):
            raise ValueError(f"Rescale got on={self.on!r}; choose x0 or raw.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        prediction = self.denoiser(x, level, condition, context)
        if not isinstance(prediction, Guided):
            raise ValueError(
                "Rescale compares a guided image with the conditional one, and the denoiser under it does not guide: put it "
                "around guidance, Rescale(ClassifierFree(denoiser, scale))."
            )
        cond = prediction.cond
        if cond is None or prediction.null is None or self.factor == 0:
            return prediction
        if self.on == "raw":
            return prediction.with_raw(self._rescaled(prediction.raw, cond.read(prediction.row)))
        return prediction.with_x0(self._rescaled(read_x0(prediction), read_x0(cond)))

    def _rescaled(self, guided: Tensor, cond: Tensor) -> Tensor:
        spread, wanted = (_std(v) for v in (guided, cond))
        seen = spread > torch.finfo(guided.dtype).eps * at_least_float32(guided).abs().flatten(1).amax(1).reshape(spread.shape)
        ratio = torch.where(seen, wanted / spread, 1.0)
        return guided * (self.factor * ratio + (1 - self.factor)).to(guided.dtype)  # equations 15 and 16 (arXiv 2305.08891)


def _std(x: Tensor) -> Tensor:
    """(B, 1, ...)."""
    return at_least_float32(x).flatten(1).std(1).reshape(-1, *[1] * (x.ndim - 1))
