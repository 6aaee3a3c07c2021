"""The shipped judge as a reward (`gen.rewards`): how well the evaluation network finds a picture fits its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from distill.networks.evaluator.energy import LabelEnergy, TextEnergy
from gen.rewards.clip import check_prompts
from samplers.denoiser import Condition


@dataclass(frozen=True)
class EvaluatorReward:
    """by "text": the cosine of picture and prompt, times 20. by "label": log p(prompt) among the network's labels.

    copies: how many changed copies of a picture are judged beside it, which is harder to deceive. network: instead of the one
    that comes with the package. encoder: of prompts, instead of the default model's.
    """

    by: str = "text"
    copies: int = 0
    network: Any = None
    encoder: Any = None

    def __post_init__(self) -> None:
        if self.by not in ("text", "label"):
            raise ValueError(f"by is {self.by!r}; choose text or label.")
        given: dict[str, Any] = {"network": self.network, "copies": self.copies}
        energy = TextEnergy(encoder=self.encoder, **given) if self.by == "text" else LabelEnergy(**given)
        object.__setattr__(self, "_energy", energy)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_prompts("evaluator", prompts)
        energy: Any = self._energy  # type: ignore[attr-defined]
        return energy.for_prompts(prompts)(images, Condition())
