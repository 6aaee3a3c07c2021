"""One network call for several choices of adapters: the batch is repeated, and every row says which act on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.lookup import nearest
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.rows import repeat_level, repeat_rows, take_prediction

Weights = Mapping[str, float]


def active_adapters(context: Context, method: str) -> dict[str, float]:
    """name -> weight of the adapters in force, those of weight 0 left out. ValueError where samples differ in them."""
    adapters = context.adapters
    weights = {n: w for n, w in adapters.items() if isinstance(w, int | float)} if isinstance(adapters, Mapping) else {}
    if len(weights) != len(adapters):
        raise ValueError(
            f"{method} chooses the adapters of every row itself: give it one weight per adapter, not one per sample."
        )
    return {name: float(w) for name, w in weights.items() if w != 0}


def check_known(names: Sequence[str], active: Weights, method: str) -> None:
    """ValueError for a name that is not among the adapters in force."""
    for name in names:
        if name not in active:
            near = nearest(name, active)
            hint = f" Did you mean {near!r}?" if near else ""
            known = ", ".join(active) or "none"
            raise ValueError(f"{method} names the adapter {name!r}, which is not in force; in force: {known}.{hint}")


def predict_choices(
    denoiser: Denoiser,
    x: Tensor,
    level: NoiseLevel,
    condition: Condition | Sequence[Condition],
    context: Context,
    choices: Sequence[Weights],
) -> list[Prediction]:
    """The prediction of x (B, ...) under each of N choices of adapters, from one batch of N B rows, choice by choice.

    condition: of all choices (B rows), or one for each choice, each of B rows.
    """
    each = (condition,) * len(choices) if isinstance(condition, Condition) else tuple(condition)
    if len(choices) == 1:
        return [denoiser(x, level, each[0], replace(context, adapters=dict(choices[0])))]
    rows = context.memo("joint condition", each, lambda: each[0].cat(each[1:]))
    adapters = [choice for choice in choices for _ in range(len(x))]
    joint = denoiser(repeat_rows(x, len(choices)), repeat_level(level, len(choices)), rows, replace(context, adapters=adapters))
    return [take_prediction(joint, x, level, slice(i * len(x), (i + 1) * len(x))) for i in range(len(choices))]


def weighted_sum(predictions: Sequence[Prediction], weights: Sequence[Any]) -> Prediction:
    """sum w_i raw_i, for weights that sum to 1: numbers, or tensors that broadcast to x."""
    raw = sum(w * p.raw for w, p in zip(weights, predictions, strict=True))
    variance = None
    if predictions[0].variance is not None:
        variance = sum(w * p.variance for w, p in zip(weights, predictions, strict=True))
    first = predictions[0]
    return Prediction(first.x, first.level, raw, first.row, variance)  # type: ignore[arg-type]


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> bool:
    """A finite number from low to high; True is none."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and low <= value <= high  # type: ignore[arg-type, operator]


def check_starts(starts: Sequence[float], what: str) -> None:
    """The log-SNR at which parts of a run begin must rise, because runs go from noise to picture."""
    if any(math.isnan(v) for v in starts) or any(b <= a for a, b in pairwise(starts)):
        raise ValueError(f"{what} begin at log-SNR {', '.join(f'{v:g}' for v in starts)}; give values that rise.")


def count_reached(starts: Sequence[float], logsnr: float) -> int:
    """How many of these log-SNR values a level has reached."""
    return sum(logsnr >= start for start in starts)
