"""Cached multi-LoRA composition: adapters take turns in leading, and the others repeat what their deep blocks last added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samplers.cache.common import check_one_shape
from samplers.composition.adapter_batch import (
    active_adapters,
    check_known,
    check_starts,
    count_reached,
    is_number,
    predict_choices,
    weighted_sum,
)
from samplers.denoiser import Condition, Context, Denoiser
from samplers.hooks import check_reached, with_hook
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.step_cache import latest, network_id, remember
from samplers.wrappers import DenoiserWrapper

# (from this share of the run, steps between refreshes), and the share of the run in which the fine adapters lead, as published
PUBLISHED = ((0.0, 2), (0.375, 3), (0.875, 2))
FINE_UNTIL = 120 / 220
DECAY = 0.5  # of the leader's weight, from turn to turn


@dataclass(frozen=True)
class Plan:
    """When a `CachedComposite` refreshes, and whose turn it is to lead from then on.

    refreshes: rising log-SNR values. leaders: for each of them, the adapter that leads from there until the next.
    """

    refreshes: tuple[float, ...]
    leaders: tuple[str, ...]

    def __post_init__(self) -> None:
        check_starts(self.refreshes, "Refreshes")
        if not self.refreshes or len(self.leaders) != len(self.refreshes):
            raise ValueError(
                f"A plan has {len(self.refreshes)} refreshes and {len(self.leaders)} leaders; give one leader per refresh, and "
                "at least one."
            )


def refresh_steps(steps: int, strides: Sequence[tuple[float, int]] = PUBLISHED) -> tuple[int, ...]:
    """The steps of a run at which every adapter is evaluated in full: every `stride`-th from each share of the run on.

    strides: ((share of the run, stride), ...), the first share 0; by default the published (0, 2), (0.375, 3), (0.875, 2).
    """
    shares = [share for share, _ in strides]
    whole = all(isinstance(stride, int) and not isinstance(stride, bool) and stride >= 1 for _, stride in strides)
    if not strides or shares[0] != 0 or sorted(set(shares)) != shares or shares[-1] >= 1 or not whole:
        raise ValueError(
            f"Strides are {tuple(strides)}; give (share of the run, whole steps), shares rising from 0, steps at least 1."
        )
    ends = [*(int(share * steps) for share in shares), steps]
    return tuple(i for n, (_, stride) in enumerate(strides) for i in range(ends[n], ends[n + 1], stride))


def plan(
    order: Sequence[str],
    levels: Sequence[NoiseLevel],
    strides: Sequence[tuple[float, int]] = PUBLISHED,
    fine_until: float = FINE_UNTIL,
) -> Plan:
    """The published schedule for a run along `levels`: the finer half of `order` leads in turns, then the coarser half.

    order: from fine to coarse (`frequency_order`). The lead changes at every refresh. fine_until: share of the run.
    """
    if not order:
        raise ValueError("No adapter is there to lead; put at least one in force.")
    if not is_number(fine_until, 0, 1):
        raise ValueError(f"The finer adapters lead until {fine_until!r} of the run; give a number from 0 to 1.")
    steps = len(levels) - 1
    half = (len(order) + 1) // 2
    fine, coarse = tuple(order[:half]), tuple(order[half:]) or tuple(order)
    at = refresh_steps(steps, strides)
    early = [i for i in at if i < fine_until * steps]
    leaders = [fine[n % len(fine)] for n in range(len(early))]
    leaders += [coarse[n % len(coarse)] for n in range(len(at) - len(early))]
    return Plan(tuple(float(levels[i].logsnr) for i in at), tuple(leaders))


def shares(count: int, turn: int = 0, decay: float = DECAY) -> tuple[float, float]:
    """(leader's, everyone else's) weight among `count` adapters, which sum to `count`: N / (c + N - 1) times c, and times 1.

    c = (N - 1/2) decay^turn, as published: from leading, the leader goes over to following the others. A decay of 1 keeps c, as
    the authors' code does.
    """
    c = (count - 0.5) * decay**turn if count > 1 else 1.0
    other = count / (c + count - 1)
    return c * other, other  # arXiv 2502.04923: the dominant adapter's weight


@dataclass(frozen=True)
class CachedComposite(DenoiserWrapper):
    """raw = sum_i w_i raw(x; adapter i alone) / N with sum w_i = N: the leader weighs more, and it alone runs in full.

    The others run their first and last `shallow` blocks, and between those add what their deep blocks added when they last ran
    in full: at the last refresh, where all adapters run in full, as one batch. So a refresh costs N evaluations, any other call
    one and the N - 1 others' shallow blocks, as one batch; `Context.evaluations` counts N for each. decay: of the leader's
    weight with every turn (`shares`). A plan that refreshes at every step is a weighted `Composite`. Needs the network's
    "block" hook and more than 2 `shallow` blocks.

    Source: arXiv 2502.04923; of deep features, arXiv 2312.00858 (here what the deep blocks add is repeated, not their output).
    """

    denoiser: Denoiser
    plan: Plan
    shallow: int = 1
    decay: float = DECAY

    def __post_init__(self) -> None:
        if isinstance(self.shallow, bool) or not isinstance(self.shallow, int) or self.shallow < 1:
            raise ValueError(f"The cached composite got shallow={self.shallow!r}; give a number of blocks, at least 1.")
        if not is_number(self.decay, 0, 1):
            raise ValueError(f"The cached composite got decay={self.decay!r}; give a number from 0 to 1 (1: none).")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        active = active_adapters(context, "A cached composite")
        check_known(list(dict.fromkeys(self.plan.leaders)), active, "A cached composite")
        names, per_sample = list(active), isinstance(level.logsnr, Tensor)
        if not names:
            return self.denoiser(x, level, condition, context)
        turn = -1 if per_sample else max(count_reached(self.plan.refreshes, level.logsnr) - 1, 0)
        leader = self.plan.leaders[max(turn, 0)]
        most, other = shares(len(names), max(turn, 0), self.decay)
        weights = {name: (most if name == leader else other) / len(names) for name in names}
        if len(names) == 1 or per_sample:
            predictions = predict_choices(self.denoiser, x, level, condition, context, [{name: active[name]} for name in names])
            return weighted_sum(predictions, list(weights.values())) if len(names) > 1 else predictions[0]

        key = ("deep features", network_id(self.denoiser))
        kept = latest(context, key)
        added = kept[1][1] if kept is not None and kept[1][0] == turn and _fits(kept[1][1], x, names) else None
        if added is None:
            chosen = [{name: active[name]} for name in names]
            watch = _Deep(self.shallow)
            predictions = self._call(watch, x, level, condition, context, chosen)
            if watch.added is not None:
                by_adapter = watch.added.unflatten(0, (-1, len(names), len(x))).unbind(1)
                remember(context, key, (turn, dict(zip(names, by_adapter, strict=True))))
            return weighted_sum(predictions, list(weights.values()))
        followers = [name for name in names if name != leader]
        [first] = predict_choices(self.denoiser, x, level, condition, context, [{leader: active[leader]}])
        rest = self._call(
            _Deep(self.shallow, torch.stack([added[name] for name in followers], 1).flatten(0, 2)),
            x, level, condition, context, [{name: active[name]} for name in followers],
        )  # fmt: skip
        return weighted_sum([first, *rest], [weights[leader], *(weights[name] for name in followers)])

    def _call(self, deep: _Deep, x, level, condition, context: Context, choices) -> list[Prediction]:
        hooked = with_hook(context, "block", deep)
        predictions = predict_choices(self.denoiser, x, level, condition, hooked, choices)
        check_reached(hooked, "block", "The cached composite")
        return predictions


@dataclass
class _Deep:
    """A block hook: sees what the blocks between the outer `shallow` ones add (R, L, D), or adds `repeat` in their place, where
    that has the shape of the tokens (guidance around the network may stop, and with it half of the rows)."""

    shallow: int
    repeat: Tensor | None = None
    start: Tensor | None = None
    added: Tensor | None = None

    def __call__(self, index: int, count: int, tokens: Tensor, run: Any) -> Tensor:
        if count <= 2 * self.shallow:
            raise ValueError(
                f"The cached composite keeps {self.shallow} blocks at either end, and this network has {count}; give a smaller "
                "shallow, or compose without a cache."
            )
        if not self.shallow <= index < count - self.shallow:
            return run()
        if index == self.shallow:
            self.start = tokens
            self.repeat = self.repeat if self.repeat is not None and self.repeat.shape == tokens.shape else None
        last = index == count - self.shallow - 1
        if self.repeat is not None:
            return tokens if not last else self.start + self.repeat  # type: ignore[operator]
        out = run()
        if last:
            check_one_shape(self.start, out, "The cached composite")  # type: ignore[arg-type]
            self.added = out - self.start  # type: ignore[operator]
        return out


def _fits(added: dict[str, Tensor], x: Tensor, names: Sequence[str]) -> bool:
    return list(added) == list(names) and all(one.shape[1] == len(x) for one in added.values())
