"""Classifier guidance: a class imposed by a classifier of noisy images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.energy import gradients, log_density
from samplers.guidance.two_branch import Schedule, check_scale
from samplers.interval import EVERYWHERE, Interval, check_interval
from samplers.path import NoiseLevel, expand
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper


class Classifier(Protocol):
    """(x (B, C, H, W) at a level, the level, condition) -> log p(condition | x) (B,), differentiable in x.

    Take it from log_softmax: log(softmax) is infinite for a confident classifier.
    """

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Tensor: ...


@dataclass(frozen=True)
class ClassifierGuided(DenoiserWrapper):
    """eps = eps_model - scale sigma grad_x log p(y | x_t): by Bayes' rule, the conditional model for scale 1.

    It is linear in the output, so it acts on raw: the class is the classifier's affair, and the denoiser is asked without its
    label where `unconditional`. No gradient runs through the denoiser. scale: a number or a function of the level; 0, or a
    log-SNR outside `interval`, is the denoiser itself. At pure noise, where x says nothing of the class, nothing is added.
    Published scales at 64, 128, 256 and 512 pixels: 1, 0.5, 1 (10 on an unconditional model) and 4.

    Source: arXiv 2105.05233, Algorithm 2 (equation 14), on any path.
    """

    denoiser: Denoiser
    classifier: Classifier
    scale: float | Schedule = 1.0
    interval: Interval = EVERYWHERE
    unconditional: bool = True

    def __post_init__(self) -> None:
        check_scale(self.scale, "classifier scale")
        check_interval(self.interval)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        asked = condition
        if self.unconditional:
            asked = context.memo("classifier null", (condition,), condition.null)
        prediction = self.denoiser(x, level, asked, context)
        scale = self.scale(level) if callable(self.scale) else self.scale
        low, high = self.interval
        if isinstance(level.logsnr, Tensor):
            scale = torch.where((level.logsnr >= low) & (level.logsnr <= high) & (level.alpha > 0), scale, 0.0)
        elif scale == 0 or not low <= level.logsnr <= high or level.alpha == 0:
            return prediction
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = log_density(self.classifier, leaf, level, condition)
            (gradient,) = gradients(value, (leaf,), self.classifier)
        # raw = a x0 + b eps with x kept: a move of eps by -sigma g moves x0 by (sigma^2 / alpha) g
        a, b = prediction.row
        alpha = level.alpha if not isinstance(level.alpha, Tensor) else torch.where(level.alpha > 0, level.alpha, 1.0)
        weight = scale * level.sigma * (a * level.sigma / alpha - b)  # equation 14 (arXiv 2105.05233) on raw
        return prediction.with_raw(prediction.raw + expand(weight, x) * gradient)
