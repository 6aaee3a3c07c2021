"""Methods that tune a model by rewards (`gen.rewards`): a weighted sum of some of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

import distill.networks.evaluator  # noqa: F401  (makes the shipped judge known as a reward)
from distill.objectives.bases.policy import PolicyConfig, PolicyObjective
from distill.types import Batch
from gen.models.folder import Option
from gen.nn.registry import Config
from gen.rewards import Reward, get_reward, reward_info


class RewardTerm(Config):
    """A reward of `gen.rewards` by name, what it counts, and its options."""

    type: str
    weight: float = 1.0
    options: dict[str, Option] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> RewardTerm:
        reward_info(self.type)
        return self


class RewardedConfig(PolicyConfig):
    """rewards: their weighted sum is raised."""

    rewards: tuple[RewardTerm, ...] = (RewardTerm(type="evaluator"),)

    @model_validator(mode="after")
    def _some(self) -> RewardedConfig:
        if not self.rewards:
            raise ValueError("rewards is empty, so nothing is learned; give one or more, such as {type: evaluator}")
        return self


class RewardedObjective(PolicyObjective):
    """See the module."""

    config: Any

    def __init__(self, config: Any, network: nn.Module, source: Any = None, teacher: Any = None):
        super().__init__(config, network, source, teacher)
        self.teacher.check_draws_pictures("tune by pairs of pictures (diffusion_dpo)")
        self.rewards = [(term.weight, get_reward(term.type, **term.options)) for term in config.rewards]

    def score(self, x0: Tensor, batch: Batch) -> Tensor:
        """(B,): the reward of clean images x0. Differentiable."""
        return score_pictures(self.decode, self.rewards, x0, prompts_of(batch))


def prompts_of(batch: Batch) -> list[str]:
    """The captions, which rewards judge pictures by; empty ones where there are none."""
    return [""] * len(batch) if batch.captions is None else list(batch.captions)


def score_pictures(
    decode: Callable[[Tensor], Tensor], rewards: Sequence[tuple[float, Reward]], x0: Tensor, prompts: Sequence[str]
) -> Tensor:
    """(B,): the weighted sum of rewards of clean images x0, as the pictures that would be saved: what lies outside of [0, 1]
    gains nothing. Differentiable. decode: clean images to pictures in [-1, 1]."""
    with torch.autocast(x0.device.type, enabled=False):
        pictures = (decode(x0.to(torch.promote_types(x0.dtype, torch.float32))) / 2 + 0.5).clamp(0, 1)
        total = sum(weight * reward(pictures, prompts) for weight, reward in rewards)
    assert isinstance(total, Tensor)
    return total
