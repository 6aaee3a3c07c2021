"""Methods whose student draws pictures that are then judged: what it draws from.

The student goes to the clean image from any of the `steps` levels it will be sampled at. At the noisiest it is given noise; at
the others what it itself would have come to, or noised data.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.losses.levels import draw_start_index
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.teacher import Scale
from distill.parallel.shards import unwrap
from distill.types import Batch, Draws
from samplers.denoiser import Condition
from samplers.path import expand


class RolloutConfig(StudentConfig):
    """inputs: what the student is given below the noisiest level: what it itself makes from noise, as when it is sampled
    (simulated), or noised data. noisiest_share: of the samples that start at the noisiest level; the others start at any of the
    `steps` levels alike.
    """

    inputs: Literal["simulated", "data"] = "simulated"
    noisiest_share: float = Field(default=0.0, ge=0, le=1)


class RolloutObjective(StudentObjective):
    """See the module."""

    config: Any
    sampler = "lcm"

    def start(self, draws: Draws, device: torch.device) -> Tensor:
        """(B,) int64: the number of the level where each sample starts, `steps` being the noisiest."""
        return 1 + draw_start_index(draws, self.levels.steps, self.config.noisiest_share, device)

    @torch.no_grad()
    def simulate(
        self, student: nn.Module, start: Tensor, like: Tensor, condition: Condition, scale: Scale, draws: Draws
    ) -> Tensor:
        """What the student itself comes to at the levels `start`, sampled from noise with new noise at each step."""
        ladder = self.levels.to(like.device)
        level = ladder[torch.full_like(start, ladder.steps)]
        z = expand(level.sigma, like) * draws.normal_like("eps", like)
        last = ladder.steps if self.config.noisiest_share == 1 else 1  # as often on every process, whatever starts it drew
        for number in range(ladder.steps - 1, last - 1, -1):
            x0 = self.predict(unwrap(student), z, level, condition, scale).x0
            level = ladder[torch.full_like(start, number)]
            ahead = level.mix(x0, draws.normal_like(f"eps {number}", like))
            below = start <= number
            z = torch.where(expand(below.to(like), like) != 0, ahead, z)
            level = ladder[torch.where(below, number, start)]
        return z

    def rollout(self, student: nn.Module, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor, Condition, Scale]:
        """(x0 (B, C, h, w) that the student draws, the data's, the condition, the guidance scale)."""
        real = self.clean(batch)
        condition, scale = self.condition(batch, real.device, draws), self.scale(draws, real.device)
        start = self.start(draws, real.device)
        level = self.levels.to(real.device)[start]
        if self.config.inputs == "data":
            z = level.mix(real, draws.normal_like("eps", real))
        else:
            z = self.simulate(student, start, real, condition, scale, draws)
        return self.predict(student, z, level, condition, scale).x0, real, condition, scale


def twofold(value: Any) -> Any:
    """Of the samples of a batch, for the batch and another beside it; what is one for all stays one."""
    return torch.cat([value, value]) if isinstance(value, Tensor) else value
