"""Guidance that was distilled into the network, which reads the scale as an input."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import check_scale
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class EmbeddedGuidance(DenoiserWrapper):
    """Sets `Condition.extra["guidance"]` (B,) to the scale; one evaluation, and nothing for a negative prompt to act on.

    Source: guidance distillation, arXiv 2210.03142, section 3; Flux.1 dev reads its scale this way.
    """

    denoiser: Denoiser
    scale: float

    def __post_init__(self) -> None:
        check_scale(self.scale)

    def __call__(self, x: torch.Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        # arXiv 2210.03142, section 3: the scale w is an input of the network
        with_scale = context.memo("embedded guidance", (condition,), lambda: self._with_scale(condition, x))
        return self.denoiser(x, level, with_scale, context)

    def _with_scale(self, condition: Condition, x: torch.Tensor) -> Condition:
        scale = torch.full((len(x),), float(self.scale), device=x.device)
        return replace(condition, extra={**condition.extra, "guidance": scale})
