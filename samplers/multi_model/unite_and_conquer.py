"""Unite and conquer: one picture by several models, each with a condition of its own kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from samplers.denoiser import AdapterWeights, Condition, Context, Denoiser
from samplers.guidance.two_branch import both_branches, one_branch
from samplers.multi_model.path_adapter import adapt_path
from samplers.path import NoiseLevel, Path
from samplers.prediction import Prediction
from samplers.rows import expand_rows, merge_condition, read_as


@dataclass(frozen=True)
class Member:
    """One model of several.

    condition: batch of x's or 1; None is the run's. scale: how strongly its condition counts, a_i. reliability: how much its
    unconditional prediction is trusted, beta_i; of all members they sum to 1. adapters: None is the run's.
    """

    denoiser: Denoiser
    condition: Condition | None = None
    scale: float = 1.0
    reliability: float = 1.0
    negative: Condition | None = None
    adapters: Mapping[str, float] | None = None


@dataclass(frozen=True)
class UniteAndConquer:
    """raw = sum_i a_i raw_i(x, c_i) - (sum_i a_i - 1) sum_i beta_i raw_i(x, nothing).

    Equal models with equal conditions are classifier-free guidance of scale sum a_i. The models may predict different things
    and have different paths (`PathAdapter`); the run is on `run_path`, the first one's if None. What is multiplied by 0 is not
    evaluated. ValueError unless the reliabilities are at least 0 and sum to 1.

    Source: arXiv 2212.00793, equations 5 and 6.
    """

    members: tuple[Member, ...]
    run_path: Path | None = None

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("There are no models to unite; give one or more.")
        for i, member in enumerate(self.members):
            if not math.isfinite(member.scale) or not 0 <= member.reliability <= 1:
                raise ValueError(
                    f"Model {i} has scale {member.scale} and reliability {member.reliability}; give a finite scale, and a "
                    "reliability from 0 to 1."
                )
        total = math.fsum(m.reliability for m in self.members)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"The reliabilities sum to {total:g}; divide them by that, so that they sum to 1.")

    @property
    def path(self) -> Path:
        return self.members[0].denoiser.path if self.run_path is None else self.run_path

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        away = sum(m.scale for m in self.members) - 1
        said: list[tuple[float, Prediction]] = []
        for i, member in enumerate(self.members):
            denoiser = adapt_path(member.denoiser, self.path)
            own = context.memo(
                f"member {i}", (member, condition), partial(expand_rows, merge_condition(member.condition, condition), len(x))
            )
            here = with_adapters(context.fork("member", i), member.adapters)
            trusted = away * member.reliability
            if member.scale and trusted:
                cond, null = both_branches(denoiser, x, level, own, member.negative, here)
                said += [(member.scale, cond), (-trusted, null)]  # equations 5 and 6 (arXiv 2212.00793)
            elif member.scale:
                said.append((member.scale, denoiser(x, level, own, here.fork("cond"))))
            elif trusted:
                said.append((-trusted, one_branch(denoiser, x, level, own, member.negative, here)))
        return weighted_sum(said)


def weighted_sum(said: Sequence[tuple[float, Prediction]]) -> Prediction:
    """sum_i w_i prediction_i of one x, in the first one's reading."""
    first = said[0][1]
    raw = torch.zeros_like(first.raw)
    for weight, prediction in said:
        raw = raw + weight * read_as(prediction, first.row)
    return first.with_raw(raw)


def with_adapters(context: Context, adapters: AdapterWeights | None) -> Context:
    return context if adapters is None else replace(context, adapters=adapters)
