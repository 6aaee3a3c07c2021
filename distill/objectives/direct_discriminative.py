"""Direct discriminative optimisation, DDO (arXiv 2503.01103): a model tells data from its reference's pictures.

    L = -E_data log sigmoid(D) - alpha E_ref log sigmoid(-D),    D = beta log p / p_ref = -beta (e - e_ref)

with e the errors of denoising at one level with one noise, which bound the log-likelihood. The model that tells the two apart
best by its own likelihood is distributed as the data. Rounds of self-play make the student the next reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.losses.levels import TimeConfig, draw_levels
from distill.objectives.bases.frozen_copies import ema_update, frozen_copy
from distill.objectives.bases.paired import own_error
from distill.objectives.bases.policy import PolicyConfig, PolicyObjective
from distill.objectives.bases.student_rollout import twofold
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws, Phase


class DirectDiscriminativeConfig(PolicyConfig):
    """beta: what the difference of errors, means over dimensions, counts. alpha: what the reference's pictures count. steps: of
    the sampler that draws those. round_steps: after so many steps the student becomes the reference; None: never. time: the
    levels.

    With alpha and beta 1 and exact likelihoods the optimum is the distribution of the data; a small beta goes beyond it.
    """

    beta: float = Field(default=1.0, gt=0)
    alpha: float = Field(default=1.0, ge=0)
    round_steps: int | None = Field(default=None, gt=0)
    time: TimeConfig = TimeConfig(type="uniform")


class DirectDiscriminativeObjective(PolicyObjective):
    """See the module. With rounds, role `reference` is the student at the start of the round."""

    source = "arXiv 2503.01103"
    config: DirectDiscriminativeConfig

    def __init__(self, config: DirectDiscriminativeConfig, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        if config.round_steps is not None:
            self.roles["reference"] = frozen_copy(self.roles["student"].network)

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        data, scale = self.clean(batch), self.training_scale()
        condition = self.condition_of(batch, draws, data.device)
        reference = models["reference" if "reference" in self.roles else "teacher"]
        with torch.no_grad():
            fakes = self.descend(unwrap(reference), self.start(draws.normal_like("fake", data)), condition, scale)
        level = draw_levels(self.config.time, self.path, draws, data.device)
        x0, eps, both = torch.cat([data, fakes]), twofold(draws.normal_like("eps", data)), condition.map(twofold)
        level = self.path(twofold(level.t))
        x = level.mix(x0, eps)
        error = own_error(self.predict(models["student"], x, level, both, scale), x0, eps)
        with torch.no_grad():
            error_ref = own_error(self.predict(reference, x, level, both, scale), x0, eps)
        on_data, on_fakes = (-self.config.beta * (error - error_ref)).chunk(2)
        # arXiv 2503.01103, equation 8
        loss = -F.logsigmoid(on_data).mean() - self.config.alpha * F.logsigmoid(-on_fakes).mean()
        return loss, {"on_data": on_data.detach().mean(), "on_fakes": on_fakes.detach().mean()}

    def after_step(self, step: int) -> None:
        super().after_step(step)
        every = self.config.round_steps
        if every is not None and (step + 1) % every == 0:
            ema_update(self.roles["reference"].network, self.roles["student"].network, 0.0)

    def kept(self) -> dict[str, nn.Module]:
        copies = {"reference": self.roles["reference"].network} if "reference" in self.roles else {}
        return {**super().kept(), **copies}
