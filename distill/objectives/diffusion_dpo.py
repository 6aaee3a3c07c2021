"""Diffusion-DPO (arXiv 2311.12908): to denoise the picture that people chose better than the reference does, the rejected one
worse.

    L = -log sigmoid(-beta / 2 [(e_w - e_ref,w) - (e_l - e_ref,l)])

with e the errors of the chosen (w) and the rejected (l) picture at one level with one noise. Rows 2 k and 2 k + 1 of a batch
are a pair, as the data source `preferences` gives them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.levels import TimeConfig, draw_levels
from distill.objectives.bases.paired import own_error, preference_loss
from distill.objectives.bases.policy import PolicyConfig, PolicyObjective
from distill.types import Batch, Draws, Phase


class DiffusionDpoConfig(PolicyConfig):
    """beta: how much a difference of errors, means over dimensions, counts: the published code's beta_dpo, which holds the
    number of levels too. time: the levels."""

    beta: float = Field(default=5000.0, gt=0)
    time: TimeConfig = TimeConfig(type="uniform")


class DiffusionDpoObjective(PolicyObjective):
    """See the module."""

    source = "arXiv 2311.12908"
    config: DiffusionDpoConfig

    def loss(
        self, phase: Phase, models: Mapping[str, nn.Module], batch: Batch, draws: Draws, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        batch, x0 = self.in_groups(batch, 2), self.clean(batch)
        condition, scale = self.condition_of(batch, draws, x0.device, 2), self.training_scale()
        pair = Draws(draws.seed, draws.index[::2], draws.phase)
        t = draw_levels(self.config.time, self.path, pair, x0.device).t
        level, eps = self.path(t.repeat_interleave(2)), pair.normal_like("eps", x0).repeat_interleave(2, 0)
        x = level.mix(x0, eps)
        error = own_error(self.predict(models["student"], x, level, condition, scale), x0, eps)
        with torch.no_grad():
            reference = own_error(self.reference(models, x, level, condition, scale), x0, eps)
        change = error - reference
        # arXiv 2311.12908, equation 14; the published code's 0.5
        loss, logged = preference_loss(-0.5 * self.config.beta * (change[::2] - change[1::2]))
        return loss, {**logged, "chosen_change": change[::2].detach().mean(), "rejected_change": change[1::2].detach().mean()}
