"""Frozen networks in whose features distributions of pictures are compared, by name.

`teacher` stands for the mean and deviation over places of the frozen teacher's tokens after one of its blocks, which sees
latents at their full resolution and needs no decoder; other names are those of distill/networks/features.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.networks.discriminator import PooledHeads, block_features
from distill.networks.features import FEATURES, in_range, open_named
from distill.optim.precision import autocast
from samplers.denoiser import Condition

if TYPE_CHECKING:
    from distill.objectives.bases.student import StudentObjective

Represent = Callable[[Tensor], Tensor]
TEACHER = "teacher"


class Representations:
    """`represent(x0, condition, noise)` gives features (B, D) by name, differentiable in x0.

    given: names of networks. block: of the teacher, whose tokens are read; None: half way through. judged: log of sigma / alpha
    at which the teacher sees x0. ValueError for a name that is not there, or a teacher that draws no pictures.
    """

    def __init__(self, objective: StudentObjective, given: Sequence[str], block: int | None = None, judged: float = -2.0):
        self.objective, self.judged = objective, judged
        kinds = [name.partition(":")[0] for name in given]
        keys = [k if kinds.count(k) == 1 else f"{k}_{number}" for number, k in enumerate(kinds)]
        named = dict(zip(keys, given, strict=True))
        if TEACHER in kinds:
            self.block = objective.judged_blocks(() if block is None else (block,), lambda depth: (depth // 2,))[0][-1:]
        self.of_pictures = {key: self._open(name) for key, name in named.items() if name != TEACHER}
        self.names = tuple(named)

    def _open(self, name: str) -> Represent:
        self.objective.teacher.check_draws_pictures(f"representations: [{TEACHER}]")
        features = open_named(FEATURES, "representation", name, also=(TEACHER,))
        if features.network is not None:
            features.network.requires_grad_(False)
        return lambda images: features.to(images.device).function(images)

    def tokens(self, x0: Tensor, condition: Condition, noise: Tensor) -> Tensor:
        """(B, 2 D): the mean and deviation over places of the frozen teacher's tokens."""
        objective = self.objective
        level = objective.path.at_logsnr(torch.full((len(x0),), -self.judged, dtype=torch.float64, device=x0.device))
        denoiser = objective.teacher.denoiser(objective.teacher.network.to(x0.device), objective.dtype)
        return PooledHeads.pooled(block_features(denoiser, level.mix(x0, noise), level, condition, self.block))[:, 0]

    def __call__(self, x0: Tensor, condition: Condition, noise: Tensor) -> dict[str, Tensor]:
        """The data's and the student's alike in bfloat16 arithmetic, whatever the run's."""
        with autocast(x0.device):
            images = in_range(self.objective.decode(x0)) if self.of_pictures else x0
            found = {name: represent(images).float() for name, represent in self.of_pictures.items()}
            return {name: found[name] if name in found else self.tokens(x0, condition, noise).float() for name in self.names}
