"""What denoisers of several parts share: stacking samples, and reading several predictions alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from samplers.denoiser import Condition
from samplers.path import NoiseLevel, Scalar
from samplers.prediction import Prediction, Row


def raw_in(prediction: Prediction, row: Row) -> Tensor:
    """The raw output in a row's reading, untouched where it is in that one already: at pure noise not everything can be
    converted."""
    same = all(not isinstance(v, Tensor) and v == w for v, w in zip(prediction.row, row, strict=True) if v is not w)
    return prediction.raw if same else prediction.read(row)


def repeat_level(level: NoiseLevel, times: int) -> NoiseLevel:
    """For `times` copies of the batch, one after another."""
    return NoiseLevel(*(repeat(v, times) for v in (level.t, level.alpha, level.sigma)))


def repeat(v: Scalar, times: int) -> Scalar:
    return v.repeat(times) if isinstance(v, Tensor) and v.ndim else v


def first(v: Scalar, count: int) -> Scalar:
    return v[:count] if isinstance(v, Tensor) and v.ndim else v


def told(own: Condition | None, run: Condition) -> Condition:
    """A part's own condition with what else a run tells the network (`extra`, a solver's target time for instance); the run's
    whole condition for a part without its own."""
    if own is None:
        return run
    return replace(own, extra={**run.extra, **own.extra}) if run.extra else own


def stack(conditions: Sequence[Condition]) -> Condition:
    """Conditions as rows; where only some have a mask, the others' tokens are all real."""
    if len({c.mask is None for c in conditions}) > 1:
        conditions = [_with_mask(c) for c in conditions]
    return conditions[0].cat(conditions[1:])


def _with_mask(condition: Condition) -> Condition:
    if condition.tokens is None or condition.mask is not None:
        return condition
    return replace(condition, mask=condition.tokens.new_ones(condition.tokens.shape[:2], dtype=torch.bool))


def expand_rows(condition: Condition, batch: int) -> Condition:
    """One row per sample, of a condition that has as many or one for all."""
    return condition.map(lambda v: v.expand(batch, *v.shape[1:]) if len(v) == 1 else v)
