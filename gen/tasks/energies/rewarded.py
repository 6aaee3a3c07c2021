"""A reward of `gen.rewards` as an energy: `reward:NAME`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gen.io.validators import check_float
from gen.rewards import Reward, RewardInfo, get_reward
from samplers.denoiser import Condition


@dataclass(frozen=True)
class RewardEnergy:
    """weight * reward of the pictures for their prompts, as a log-density."""

    reward: Reward
    weight: float = 1.0
    prompts: tuple[str, ...] = ()

    def for_prompts(self, prompts: Sequence[str]) -> RewardEnergy:
        return replace(self, prompts=tuple(prompts))

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        return self.weight * self.reward(images, self.prompts)


@dataclass(frozen=True)
class RewardEnergyFactory:
    """Makes the energy of a reward's row from its options and `weight`, which is the row's `scale` if it is not given."""

    info: RewardInfo

    def __call__(self, weight: float | None = None, **options: Any) -> RewardEnergy:
        amount = self.info.scale if weight is None else check_float("weight", weight, 0, 1e6)
        return RewardEnergy(get_reward(self.info.name, **options), amount)
