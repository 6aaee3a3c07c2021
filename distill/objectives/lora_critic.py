"""What distribution matching with a LoRA as the critic and a reward beside it has in common: DMDR and SwiftBrush.

The critic is a LoRA on the teacher whatever the student is, as in variational score distillation, so that
teacher and critic are one set of weights in memory.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from distill.networks.lora.overlay import LoraConfig
from distill.objectives.bases.picture_reward import PictureReward
from distill.objectives.bases.rewarded import RewardTerm
from distill.objectives.dmd2 import DistributionMatchingConfig, DistributionMatchingObjective


class LoraCriticConfig(DistributionMatchingConfig):
    """As DMD2's, without a discriminator, and:

    critic_lora: the critic's changes of the teacher; of a student that is a LoRA, too.
    reward: how good pictures are (`gen.rewards`), as {type: clip, weight: 1e-3, options: {model: FOLDER}}; None: not asked.
    """

    critic_lora: LoraConfig = LoraConfig(rank=64, alpha=128)
    reward: RewardTerm | None = None
    adversarial_weight: float = Field(default=0.0, ge=0)
    discriminator_weight: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _told_no_scale(self) -> LoraCriticConfig:
        if self.embed_guidance:
            raise ValueError("the critic is a LoRA, which has no input for the guidance scale: leave embed_guidance out")
        return self


class LoraCriticObjective(DistributionMatchingObjective):
    """See the module."""

    config: LoraCriticConfig

    def __init__(self, config, network, source=None, teacher=None):
        super().__init__(config, network, source, teacher)
        self.reward = None if config.reward is None else PictureReward(self, config.reward)

    @property
    def critic_lora(self) -> LoraConfig:
        return self.config.critic_lora
