"""Autoguidance: a model guided by a bad version of itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import Schedule, as_guided, check_scale, lerp, scale_at
from samplers.interval import EVERYWHERE, Interval, check_interval
from samplers.path import NoiseLevel
from samplers.prediction import Guided, Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class Autoguidance(DenoiserWrapper):
    """raw = raw_weak + scale (raw - raw_weak): away from what a weaker model of the same data would say.

    `weak` is another denoiser on the same path (smaller, less trained, of any prediction kind), evaluated under the same
    condition. scale 1, or a level outside `interval` (logsnr), evaluates only `denoiser`, scale 0 only `weak`. Around
    classifier-free guidance it guides the guided model: Autoguidance(ClassifierFree(denoiser, 2), weak, 2). A learned variance
    is that of `denoiser`.

    Source: arXiv 2406.02507, section 3.
    """

    denoiser: Denoiser
    weak: Denoiser
    scale: float | Schedule
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        check_scale(self.scale)
        check_interval(self.interval)
        if self.weak.path != self.denoiser.path:
            raise ValueError(
                f"Autoguidance needs both models on one noise path, got {self.denoiser.path} and {self.weak.path}: "
                "choose a weak model that was trained on the path of the strong one."
            )

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        scale = scale_at(self.scale, self.interval, level)
        single = not isinstance(scale, Tensor)
        if single and scale == 0:
            weak = self.weak(x, level, condition, context.fork("weak"))
            return as_guided(weak, weak.raw, None, weak)
        strong = self.denoiser(x, level, condition, context)
        if single and scale == 1:
            return strong if isinstance(strong, Guided) else as_guided(strong, strong.raw, strong)
        weak = self.weak(x, level, condition, context.fork("weak"))
        raw = lerp(weak.read(strong.row), strong.raw, scale)  # arXiv 2406.02507, section 3: D_0 + w (D_1 - D_0)
        return strong.with_raw(raw) if isinstance(strong, Guided) else as_guided(strong, raw, strong, weak)
