"""A reward of the student's pictures, for methods that match distributions and want more of something besides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.objectives.bases.rewarded import RewardTerm, prompts_of, score_pictures
from distill.objectives.bases.student import StudentObjective
from distill.types import Batch
from gen.rewards import get_reward, reward_info


class PictureReward:
    """`reward(x0, batch)` is (B,), for clean images x0 of a batch, differentiable; pictures are judged as they would be saved.

    ValueError for a teacher that draws no pictures and, when it is called, for a reward of prompts where the data have none.
    """

    def __init__(self, objective: StudentObjective, term: RewardTerm):
        objective.teacher.check_draws_pictures("leave reward out")
        self.objective, self.term, self.info = objective, term, reward_info(term.type)
        self.reward = get_reward(term.type, **term.options)

    def __call__(self, x0: Tensor, batch: Batch) -> Tensor:
        return score_pictures(self.objective.decode, [(1.0, self.reward)], x0, self.prompts(batch))

    def prompts(self, batch: Batch) -> Sequence[str]:
        if batch.captions is None and self.info.reads_prompts:
            raise ValueError(
                f"The reward {self.info.name!r} judges how well pictures fit their prompts, and the data have none: give data "
                "with captions, or another reward."
            )
        return prompts_of(batch)

    def judged(self, batch: Batch, device: torch.device) -> Tensor:
        """(B,) bool: the pictures that there is something to say of, which have a prompt or need none."""
        if not self.info.reads_prompts:
            return torch.ones(len(batch), dtype=torch.bool, device=device)
        return torch.tensor([bool(prompt) for prompt in self.prompts(batch)], device=device)
