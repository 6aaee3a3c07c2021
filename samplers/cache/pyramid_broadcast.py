"""Pyramid attention broadcast: attention outputs serve several steps, each kind as long as it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from samplers.cache.common import check_stride
from samplers.denoiser import Condition, Context, Denoiser
from samplers.hooks import Site, check_reached, with_hook
from samplers.interval import EVERYWHERE, Interval, check_interval, contains
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.step_cache import latest, network_id, remember
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class PyramidBroadcast(DenoiserWrapper):
    """Attention layers run at every `self_stride`-th step (cross-attention: `cross_stride`-th) and are repeated in between.

    Cross-attention changes least from step to step, so its stride is the longer one. What is repeated is the layer's output
    before the residual, so projections are saved too; the MLPs run at every step. interval: (lowest, highest) logsnr in which
    outputs may be repeated, in the paper all but the first and last part of a run. Strides of 1 change nothing. It keeps one
    tensor per attention layer and branch. Needs the network's "attention" hook.

    Source: arXiv 2408.12588.
    """

    denoiser: Denoiser
    self_stride: int = 2
    cross_stride: int = 4
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        check_stride(self.self_stride, "self_stride")
        check_stride(self.cross_stride, "cross_stride")
        check_interval(self.interval, "cache interval")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if self.self_stride == self.cross_stride == 1 or isinstance(level.logsnr, Tensor):
            return self.denoiser(x, level, condition, context)

        def hook(site: Site, tokens: Tensor, run: Any) -> Tensor:
            stride = self.cross_stride if site.kind == "cross" else self.self_stride
            if stride == 1:
                return run()
            name = ("broadcast", network_id(self.denoiser), site.index, site.kind)
            last = latest(context, name, within=stride - 1)
            if last is not None and last[1].shape == tokens.shape and contains(self.interval, level):
                return last[1]
            out = run()
            remember(context, name, out, keep=0)
            return out

        hooked = with_hook(context, "attention", hook)
        prediction = self.denoiser(x, level, condition, hooked)
        check_reached(hooked, "attention", "Pyramid attention broadcast")
        return prediction
