"""TaylorSeer: what the blocks add is forecast by a Taylor expansion between full evaluations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from samplers.cache.common import check_one_shape, check_stride
from samplers.denoiser import Condition, Context, Denoiser
from samplers.hooks import check_reached, with_hook
from samplers.interval import EVERYWHERE, Interval, check_interval, contains
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.step_cache import latest, network_id, remember
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class TaylorSeer(DenoiserWrapper):
    """Runs the blocks at every `stride`-th step. In between they add sum_i D^i (l - l_last)^i / i!, i <= `order`, at logsnr l.

    D^0 is what they added at the last full evaluation, D^i = (D^{i-1} - D^{i-1} of the full evaluation before) / (difference of
    their logsnr): the published expansion, with log-SNR in the place of the step number so that uneven grids are no trouble.
    It is linear, so one forecast of what all blocks add together is the same as one per block, and order + 1 tensors suffice.

    interval: (lowest, highest) logsnr in which blocks may be skipped. A forecast call evaluates no block, only the embeddings
    and the head, and still counts as an evaluation of the network. stride 1 changes nothing. Needs the "block" hook.

    Source: arXiv 2503.06923.
    """

    denoiser: Denoiser
    stride: int = 3
    order: int = 1
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        check_stride(self.stride)
        check_interval(self.interval, "cache interval")
        if isinstance(self.order, bool) or self.order not in (0, 1, 2, 3, 4):
            raise ValueError(f"TaylorSeer got order={self.order!r}; choose 0 (repeat) to 4.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if self.stride == 1 or isinstance(level.logsnr, Tensor):
            return self.denoiser(x, level, condition, context)
        name, logsnr = ("taylor", network_id(self.denoiser)), level.logsnr
        last = latest(context, name, within=self.stride)
        skip = last is not None and last[0] < self.stride and contains(self.interval, level)
        start: list[Tensor] = []  # the tokens that enter block 0 in this call

        def hook(index: int, count: int, tokens: Tensor, run: Any) -> Tensor:
            if index == 0:
                start.append(tokens)
            if last is not None and skip and last[1][1][0].shape == start[0].shape:
                known, differences = last[1]
                return tokens if index < count - 1 else start[0] + _forecast(differences, logsnr - known)
            out = run()
            if index == count - 1:
                check_one_shape(start[0], out, "TaylorSeer")
                before = None if last is None or last[1][1][0].shape != out.shape else last[1]
                remember(context, name, (logsnr, _differences(out - start[0], logsnr, before, self.order)))
            return out

        hooked = with_hook(context, "block", hook)
        prediction = self.denoiser(x, level, condition, hooked)
        check_reached(hooked, "block", "TaylorSeer")
        return prediction


def _differences(added: Tensor, logsnr: float, before: tuple[float, list[Tensor]] | None, order: int) -> list[Tensor]:
    """D^0 .. D^order as far as they are known: one more at each evaluation, none across pure noise."""
    result = [added]
    if before is not None and math.isfinite(logsnr - before[0]) and logsnr != before[0]:
        for previous in before[1][:order]:
            result.append((result[-1] - previous) / (logsnr - before[0]))  # its finite differences
    return result


def _forecast(differences: list[Tensor], distance: float) -> Tensor:
    result = differences[0]
    for i, difference in enumerate(differences[1:], start=1):
        result = result.add(difference, alpha=distance**i / math.factorial(i))  # the Taylor series of arXiv 2503.06923
    return result
