"""SwiftBrush: one step by variational score distillation, with no picture of the data's; and its second version.

The student is moved by the difference of the guided teacher's noise and that of a critic, which is a LoRA on the teacher and
learns what the student draws: the gradient of distribution matching, with a weight of the level alone. Version 2 adds a reward
of text and picture, for those pictures only that do not have enough of it, as beyond that a reward is raised by what nobody
sees. Two students, one of full weights and one that is a LoRA with the reward, merge into a better one:
`fewstep lora interpolate A B OUT`.

Sources: arXiv 2312.05239 (SwiftBrush), Algorithm 1; arXiv 2408.14176 (version 2).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses import distances as losses
from distill.objectives.dmd2 import Compared
from distill.objectives.lora_critic import LoraCriticConfig, LoraCriticObjective
from distill.types import Batch, Draws
from samplers.path import expand


class SwiftBrushConfig(LoraCriticConfig):
    """As of all with a LoRA critic, and:

    enough: a picture of this reward is left alone, in the reward's own numbers; CLIP's here is 100 cosines.
    reward_steps: over so many the reward's weight falls to 0 in a straight line; 0: it stays.
    """

    enough: float = 35.0
    reward_steps: int = Field(default=0, ge=0)
    steps: int = Field(default=1, gt=0)
    noisiest_share: float = Field(default=1.0, ge=0, le=1)
    max_weight: float = Field(default=1e6, gt=0)


class SwiftBrushObjective(LoraCriticObjective):
    """See the module."""

    config: SwiftBrushConfig
    source = "arXiv 2408.14176"

    def matched(self, models: Mapping[str, nn.Module], seen: Compared, draws: Draws) -> Tensor:
        # arXiv 2312.05239, Algorithm 1: sigma^2 (eps of the teacher - eps of the critic), in denoised means
        weight = expand(seen.level.sigma * seen.level.alpha, seen.x0).to(seen.x0)
        return losses.along(seen.x0, weight * (seen.fake - seen.real.x0))

    def beside(self, x0: Tensor, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        if self.reward is None or config.reward is None:
            return super().beside(x0, batch, step)
        found, judged = self.reward(x0, batch), self.reward.judged(batch, x0.device)
        # arXiv 2408.14176, the clamped CLIP loss: max(0, tau - cos)
        lacking = torch.where(judged, (config.enough - found).clamp(min=0), 0.0).mean()
        left = max(0.0, 1 - step / config.reward_steps) if config.reward_steps else 1.0
        return config.reward.weight * left * lacking.to(x0), {"reward": found.detach().mean(), "lacking": lacking.detach()}
