"""First-block cache: the first block decides whether the others need to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.cache.common import check_one_shape, check_threshold
from samplers.denoiser import Condition, Context, Denoiser
from samplers.hooks import check_reached, with_hook
from samplers.interval import EVERYWHERE, Interval, check_interval, contains
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.step_cache import latest, network_id, remember
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class FirstBlockCache(DenoiserWrapper):
    """Blocks 1 and on are skipped, and what they last added is added again, while the first block adds much the same:

        mean |r - r_last| < threshold mean |r_last|,   r = output - input of block 0, r_last that of the last full evaluation.

    Every sample decides for itself, so an image does not depend on its batch: where one needs the other blocks they run for
    the whole batch, since a network's rounding depends on the number of rows, and the others keep what they have; blocks are
    skipped where all agree. threshold 0 changes nothing; 0.05 to 0.15 is usual. interval: (lowest, highest) logsnr in which
    blocks may be skipped. A skipped call evaluates one block. It still counts as an evaluation of the network. At most two
    device synchronisations per call. Needs the network's "block" hook.

    Source: the first-block cache of ParaAttention; TeaCache, arXiv 2411.19108, for the idea.
    """

    denoiser: Denoiser
    threshold: float = 0.08
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_interval(self.interval, "cache interval")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if self.threshold == 0 or isinstance(level.logsnr, Tensor):
            return self.denoiser(x, level, condition, context)
        name = ("first block", network_id(self.denoiser))
        past = latest(context, name)
        last = past[1] if past is not None and contains(self.interval, level) else None
        first: dict[str, Tensor] = {}  # of this call: block 0's output, what it added, and which samples may skip the rest

        def hook(index: int, count: int, tokens: Tensor, run: Any) -> Tensor:
            if index == 0:
                out = run()
                first.update(out=out, added=out - tokens)
                if last is not None and last[0].shape == out.shape:
                    same = self._same(first["added"], last[0])
                    if bool(same.any()):
                        first["same" if bool(same.all()) else "some"] = same[:, None, None]
                return out
            if "same" in first and last is not None:
                return tokens if index < count - 1 else first["out"] + last[1]
            out = run()
            if index == count - 1:
                check_one_shape(first["out"], out, "The first-block cache")
                added, rest = first["added"], out - first["out"]
                if "some" in first and last is not None:
                    added, rest = (torch.where(first["some"], old, new) for old, new in zip(last, (added, rest), strict=True))
                    out = torch.where(first["some"], first["out"] + last[1], out)
                remember(context, name, (added, rest))
            return out

        hooked = with_hook(context, "block", hook)
        prediction = self.denoiser(x, level, condition, hooked)
        check_reached(hooked, "block", "The first-block cache")
        return prediction

    def _same(self, added: Tensor, last: Tensor) -> Tensor:
        """(B,) bool: the first block adds much what it added when all blocks ran."""
        change, size = ((v.abs().flatten(1).float().mean(1)) for v in (added - last, last))
        return change < self.threshold * size  # the relative change of TeaCache (arXiv 2411.19108), of one block
