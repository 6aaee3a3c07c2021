"""Rows of a batch: repeating and stacking what goes through a network together, and taking its predictions apart again.

A stack holds B rows of the first part, then B rows of the second, and so on. Tensors are (B, ...), levels floats or (B,).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from samplers.denoiser import Condition
from samplers.path import NoiseLevel, Scalar
from samplers.prediction import Prediction, Row


def repeat_rows(value: Any, times: int) -> Any:
    """`times` copies of a batch, one after another; a number is the same for all of them."""
    return torch.cat([value] * times) if isinstance(value, Tensor) and value.ndim else value


def repeat_level(level: NoiseLevel, times: int) -> NoiseLevel:
    """The level of `times` copies of a batch, one after another."""
    return NoiseLevel(*(repeat_rows(v, times) for v in (level.t, level.alpha, level.sigma)))


def take_rows(value: Scalar, rows: slice) -> Scalar:
    """Some rows of a (B, ...) value; a number is the same for all of them."""
    return value[rows] if isinstance(value, Tensor) and value.ndim else value


def take_prediction(stacked: Prediction, x: Tensor, level: NoiseLevel, rows: slice) -> Prediction:
    """Some rows of a stacked prediction, as a prediction of x (B, ...) at `level`."""
    a, b = (take_rows(v, rows) for v in stacked.row)
    return Prediction(x, level, stacked.raw[rows], (a, b), None if stacked.variance is None else stacked.variance[rows])


def read_as(prediction: Prediction, row: Row) -> Tensor:
    """The raw output that a network with this row would have given.

    It is untouched where the row is the prediction's own: at pure noise not every reading can be converted into another.
    """
    same = all(not isinstance(v, Tensor) and v == w for v, w in zip(prediction.row, row, strict=True) if v is not w)
    return prediction.raw if same else prediction.read(row)


def merge_condition(part: Condition | None, run: Condition) -> Condition:
    """The condition of one part of a picture: its own with the run's `extra` added, or the run's where it has none.

    `extra` holds what a solver hands to the network, the target time of a flow map for example.
    """
    if part is None:
        return run
    return replace(part, extra={**run.extra, **part.extra}) if run.extra else part


def stack_conditions(conditions: Sequence[Condition]) -> Condition:
    """Conditions as rows of one batch; where only some have a mask, all tokens of the others are real."""
    if len({c.mask is None for c in conditions}) > 1:
        conditions = [_with_mask(c) for c in conditions]
    return conditions[0].cat(conditions[1:])


def expand_rows(condition: Condition, batch: int) -> Condition:
    """A condition with one row for each of B samples, from one that has B rows already or one row for all."""
    return condition.map(lambda v: v.expand(batch, *v.shape[1:]) if len(v) == 1 else v)


def _with_mask(condition: Condition) -> Condition:
    if condition.tokens is None or condition.mask is not None:
        return condition
    return replace(condition, mask=condition.tokens.new_ones(condition.tokens.shape[:2], dtype=torch.bool))
