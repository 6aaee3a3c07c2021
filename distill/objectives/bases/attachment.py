"""What the objectives share that train a part beside a model which stays as it is: a control, a reference encoder.

The loss is the model's own, of its prediction at a noise level.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.levels import TimeConfig, draw_levels
from distill.losses.loss_weighting import bounded_level, factor_on_x0
from distill.objectives.bases.objective import Objective
from distill.objectives.bases.teacher import Teacher, TeacherConfig
from distill.types import Batch, Draws, Phase, drop_labels, knows_no_label
from gen.nn.registry import Config
from samplers.denoiser import Condition, Context
from samplers.path import expand
from samplers.prediction import Prediction


class AttachmentConfig(Config):
    """teacher: the model. time: how noise levels are drawn. loss: the reading whose error is measured, the predicted one if not
    given; min_sigma bounds the weight of the cleanest levels. drop_label: share of the samples without their label; empty
    captions are the data's (`drop_caption`)."""

    teacher: TeacherConfig = TeacherConfig()
    time: TimeConfig = TimeConfig()
    loss: Literal["eps", "x0", "v", "flow", "edm"] | None = None
    min_sigma: float = Field(default=0.05, gt=0)
    drop_label: float = Field(default=0.1, ge=0, le=1)


class AttachmentObjective(Objective):
    """Role `trained` trains, the model with the part beside it; `teacher` is frozen."""

    makes_network = True
    trained: ClassVar[str]
    config: Any

    def __init__(self, config: AttachmentConfig, teacher: Teacher | None = None):
        self.config = config
        self.teacher = teacher or Teacher.load(config.teacher)
        self.path, self.autoencoder, self.text_encoder = self.teacher.path, self.teacher.autoencoder, self.teacher.text_encoder

    def condition(self, batch: Batch, draws: Draws, device: torch.device) -> Condition:
        """What captions or labels say, and what the part is shown."""
        raise NotImplementedError

    def clean(self, batch: Batch) -> Tensor:
        return self.teacher.clean(batch)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        if knows_no_label(self.teacher.network):
            batch = drop_labels(batch, config.drop_label, draws)
        x0 = self.clean(batch)
        level = draw_levels(config.time, self.path, draws, x0.device)
        eps = draws.normal_like("eps", x0)
        x = level.mix(x0, eps)
        denoiser = self.teacher.denoiser(models[self.trained], self.teacher.dtype)
        prediction = denoiser(x, level, self.condition(batch, draws, x0.device), Context())
        error, weight = self.error(prediction, x0, eps)
        return (weight * error).mean(), {"raw_error": error.detach().mean()}

    def error(self, prediction: Prediction, x0: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """(squared error of the raw prediction, its weight in the loss), (B,) each."""
        config, model = self.config, self.teacher.model
        a, b = prediction.row
        error = (prediction.raw.float() - expand(a, x0) * x0 - expand(b, x0) * eps).square().flatten(1).mean(1)
        bounded = bounded_level(prediction.level, config.min_sigma)
        kinds = (config.loss or model.prediction, model.prediction)
        measured, predicted = (factor_on_x0(kind, bounded, self.path, model.sigma_data) for kind in kinds)
        return error, (measured / predicted) ** 2

    def inputs(self) -> dict[str, str]:
        return {"teacher": self.teacher.files_digest()}
