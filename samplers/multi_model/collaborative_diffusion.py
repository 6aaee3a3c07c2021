"""Collaborative diffusion: several models make one picture, and learned maps say whose word counts where and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.multi_model.path_adapter import adapt_path
from samplers.multi_model.unite_and_conquer import with_adapters
from samplers.path import NoiseLevel, Path
from samplers.prediction import Prediction
from samplers.rows import merge_condition, read_as

# (x (B, C, H, W), level, condition) -> logits (B, 1, H, W) of one model's influence
Influence: TypeAlias = Callable[[Tensor, NoiseLevel, Condition], Tensor]


@dataclass(frozen=True)
class Collaborator:
    """One model, its condition (None: the run's), and the network that says how much it has to say where."""

    denoiser: Denoiser
    influence: Influence
    condition: Condition | None = None
    adapters: dict[str, float] | None = None


@dataclass(frozen=True)
class CollaborativeDiffusion:
    """raw = sum_i M_i raw_i(x, c_i), with M = softmax over the models of influence_i(x, level, c_i), at every pixel.

    The maps sum to one everywhere. Equal logits give the mean of the models, one infinitely larger that model alone. The
    models may differ in what they predict and in their paths (`PathAdapter`); the run is on the first one's. Guidance goes
    around each model, or around the whole.

    Source: arXiv 2304.10530, equations 3 and 4.
    """

    members: tuple[Collaborator, ...]

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("There are no models to work together; give one or more.")

    @property
    def path(self) -> Path:
        return self.members[0].denoiser.path

    def maps(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
        """(B, N, H, W): how much each of the N models has to say, summing to one over them."""
        logits = [m.influence(x, level, merge_condition(m.condition, condition)) for m in self.members]
        for i, one in enumerate(logits):
            if one.shape != (len(x), 1, *x.shape[2:]):
                raise ValueError(
                    f"The influence of model {i} is {tuple(one.shape)}; it must be one number per pixel, "
                    f"{(len(x), 1, *x.shape[2:])}."
                )
        return torch.cat(logits, dim=1).softmax(1)  # equation 3 (arXiv 2304.10530)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        maps = self.maps(x, level, condition)
        first, raw = None, None
        for i, member in enumerate(self.members):
            here = with_adapters(context.fork("collaborator", i), member.adapters)
            said = adapt_path(member.denoiser, self.path)(x, level, merge_condition(member.condition, condition), here)
            first = said if first is None else first
            part = maps[:, i : i + 1].to(said.raw.dtype) * read_as(said, first.row)  # equation 4 (arXiv 2304.10530)
            raw = part if raw is None else raw + part
        assert first is not None and raw is not None
        return first.with_raw(raw)
