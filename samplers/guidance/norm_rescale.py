"""Guidance with the length of the conditional output: Qwen-Image's, Z-Image's and Lumina 2's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import at_least_float32
from samplers.path import NoiseLevel
from samplers.prediction import Guided, Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class NormRescale(DenoiserWrapper):
    """Gives a guided output the norm of the conditional one:

        raw = raw_guided ||raw_cond|| / ||raw_guided||,

    the norm over the channels of every patch of patch x patch pixels, over every row of a channel, or over the whole picture.
    `denoiser` must guide; where
    its guidance does not act, nothing changes. A non-linear rule: it acts on the network's own output, as published.

    patch: pixels on a side, 1 for every pixel of its own (Qwen-Image: 2, its network's patch); 0 for the whole picture.
    shrink: only shorten what is longer (Z-Image, over the whole picture).
    rows: the norm over every row of pixels of every channel instead (Lumina 2).

    Raises ValueError for x whose sides the patch does not divide, and over a denoiser that does not guide.
    Source: `true_cfg_scale` of the Qwen-Image release, `cfg_normalization` of Z-Image's and of Lumina 2's in diffusers.
    """

    denoiser: Denoiser
    patch: int = 1
    shrink: bool = False
    rows: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.patch, bool) or not isinstance(self.patch, int) or self.patch < 0:
            raise ValueError(
                f"The patch of norm_rescale is {self.patch!r}; give pixels on its side, or 0 for the whole picture."
            )
        for name in ("shrink", "rows"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} of norm_rescale is {getattr(self, name)!r}; give True or False.")
        if self.rows and self.patch != 1:
            raise ValueError(f"norm_rescale got rows and a patch of {self.patch}; give one of the two.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if self.patch and (x.shape[-2] % self.patch or x.shape[-1] % self.patch):
            raise ValueError(
                f"Patches of {self.patch} do not divide pictures of {x.shape[-2]} x {x.shape[-1]}; choose another."
            )
        prediction = self.denoiser(x, level, condition, context)
        if not isinstance(prediction, Guided):
            raise ValueError(
                "NormRescale compares a guided output with the conditional one, and the denoiser under it does not guide: put "
                "it around guidance, NormRescale(ClassifierFree(denoiser, scale))."
            )
        cond = prediction.cond
        if cond is None or prediction.null is None:
            return prediction
        guided = prediction.raw
        wanted, length = (self._norm(value) for value in (cond.read(prediction.row), guided))
        ratio = torch.where(length > 0, wanted / length, 1.0)
        ratio = ratio.clamp(max=1.0) if self.shrink else ratio
        return prediction.with_raw(guided * self._spread(ratio).to(guided.dtype))

    def _norm(self, raw: Tensor) -> Tensor:
        """(B, 1, ...) of the whole picture, (B, C, h, 1) of rows, or (B, 1, h / patch, w / patch)."""
        raw = at_least_float32(raw)
        if self.rows:
            return torch.linalg.vector_norm(raw, dim=-1, keepdim=True)
        if not self.patch:
            return torch.linalg.vector_norm(raw, dim=tuple(range(1, raw.ndim)), keepdim=True)
        return torch.linalg.vector_norm(F.pixel_unshuffle(raw, self.patch), dim=1, keepdim=True)

    def _spread(self, ratio: Tensor) -> Tensor:
        """To the pixels of the patches."""
        if self.rows or not self.patch:
            return ratio
        return ratio.repeat_interleave(self.patch, -2).repeat_interleave(self.patch, -1)
