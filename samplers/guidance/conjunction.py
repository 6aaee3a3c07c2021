"""Several conditions at once, by the sum of what each adds: the prompts that AND joins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import one_branch
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.rows import merge_condition, read_as, take_prediction, take_rows
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class Conjunction(DenoiserWrapper):
    """raw = raw_null + sum_k w_k (raw_k - raw_null) where guidance asks for the condition; under guidance, around the network.

    conditions: those beside the run's own, which is the first; each of B samples, or of a part of the batch, which is repeated.
    weights: (K, B), the run's own condition first. They need not sum to 1, and may be negative.
    negative: what the branch without a condition is of, as in `TwoBranch`; the empty condition if None.
    mean: the weighted mean sum_k w_k raw_k / sum_k w_k instead, for networks that have no such branch (guidance distilled into
        them); the weights of a sample must then sum to more than 0.
    Where guidance evaluates both branches, the one without a condition serves for the sum too: K + 1 evaluations in all.
    ValueError for weights that do not fit.

    Source: composable diffusion, arXiv 2206.01714, equation 11.
    """

    denoiser: Denoiser
    conditions: tuple[Condition, ...]
    weights: Tensor
    negative: Condition | None = None
    mean: bool = False

    def __post_init__(self) -> None:
        if self.weights.ndim != 2 or len(self.weights) != len(self.conditions) + 1:
            raise ValueError(
                f"{len(self.conditions) + 1} joined conditions have weights {tuple(self.weights.shape)}; give one row of "
                "weights, (B,), for each."
            )
        if self.mean and bool((self.weights.sum(0) <= 0).any()):
            raise ValueError(
                "The weights of joined prompts must sum to more than 0 for a network with guidance inside, which has no "
                "prediction without a prompt to subtract from; raise one of them."
            )

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        both = context.branch[-2:] == ("cond", "null")
        if not both and context.branch[-1:] == ("null",):
            return self.denoiser(x, level, condition, context)
        rows = slice(len(x) // 2 if both else len(x))
        first = self.denoiser(x, level, condition, context)
        x_cond = x[rows]
        level_cond = NoiseLevel(*(take_rows(v, rows) for v in (level.t, level.alpha, level.sigma)))
        own = take_prediction(first, x_cond, level_cond, rows)
        raws = [own.raw]
        base = replace(context, branch=context.branch[:-2]) if both else context
        conditions = base.memo("joined conditions", (condition, self.conditions), lambda: self._told(condition, rows))
        for k, one in enumerate(conditions):
            joined = self.denoiser(x_cond, level_cond, one, base.fork("AND", k + 1))
            raws.append(read_as(joined, own.row))
        weights = base.memo("joined weights", (self.weights,), lambda: self.weights.to(x))
        weights = weights.repeat(1, len(x_cond) // self.weights.shape[1])
        weights = weights.view(*weights.shape, *[1] * (x.ndim - 1))
        if self.mean:
            weights = weights / weights.sum(0)
        raw = (weights * torch.stack(raws)).sum(0)
        if both:
            null = first.raw[len(x_cond) :]
        elif self.mean or bool((self.weights.sum(0) == 1).all()):
            null = None
        else:
            alone = one_branch(self.denoiser, x_cond, level_cond, condition, self.negative, base.fork("AND"))
            null = read_as(alone, own.row)
        if null is not None:
            raw = raw + (1 - weights.sum(0)) * null  # equation 11 (arXiv 2206.01714), its sum put in order
        if both:
            raw = torch.cat([raw, first.raw[len(x_cond) :]])
        return Prediction(x, level, raw, first.row, first.variance)

    def _told(self, condition: Condition, rows: slice) -> list[Condition]:
        """The conditions beside the first as rows of the batch, with what the solver tells the network."""
        count = rows.stop
        run = condition[rows]
        repeated = [c.map(lambda v: v.repeat(count // len(v), *[1] * (v.ndim - 1))) for c in self.conditions]
        return [merge_condition(one, run) for one in repeated]
