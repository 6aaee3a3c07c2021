"""Adapters with a part of the picture each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.composition.adapter_batch import active_adapters, check_known, predict_choices, weighted_sum
from samplers.denoiser import Condition, Context, Denoiser
from samplers.noise import NoiseSource
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.sample import Solver, State
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True, eq=False)
class AdapterRegion:
    """Where some adapters act: mask (H, W), (1, H, W), (1 or B, 1, H, W) in [0, 1], scaled to x's size by averaging.

    adapters: of those in force, the ones that act here and not elsewhere. condition: what is here, where that is not what is
    everywhere; of x's batch or of 1. It takes the place of the whole condition, so a region that has one goes around guidance:
    Regional(ClassifierFree(denoiser, 5), regions).
    """

    mask: Tensor
    adapters: tuple[str, ...] = ()
    condition: Condition | None = None

    def __post_init__(self) -> None:
        mask = self.mask if isinstance(self.mask, Tensor) else torch.as_tensor(self.mask)
        mask = mask.to(torch.float32) if not mask.is_floating_point() else mask
        mask = mask.reshape(*[1] * (4 - mask.ndim), *mask.shape)
        if mask.ndim != 4 or mask.shape[1] != 1:
            raise ValueError(f"A region's mask is {tuple(mask.shape)}; give (H, W), (1, H, W) or (B, 1, H, W).")
        if not bool(((mask >= 0) & (mask <= 1)).all()):
            raise ValueError("A region's mask has values outside 0 to 1; 1 is inside the region and 0 outside.")
        object.__setattr__(self, "mask", mask)
        object.__setattr__(self, "adapters", (self.adapters,) if isinstance(self.adapters, str) else tuple(self.adapters))


@dataclass(frozen=True)
class Regional(DenoiserWrapper):
    """raw = (m_0 raw(x; everywhere) + sum_i m_i raw(x; everywhere and region i)) / (m_0 + sum_i m_i) at every pixel.

    m_i are the regions' masks and m_0 = max(0, 1 - sum_i m_i), so every pixel is covered, and where regions overlap they are
    averaged: equal predictions stay what they are. "everywhere" are the adapters in force that no region names; each acts
    at its own weight. Below the log-SNR `start`, where the layout of a picture forms, no region acts.

    All are evaluated as one batch: one evaluation per image for each region, and one more unless regions cover everything.
    Source: the second stage of arXiv 2403.10983.
    """

    denoiser: Denoiser
    regions: tuple[AdapterRegion, ...]
    start: float = -math.inf

    def __post_init__(self) -> None:
        if not self.regions:
            raise ValueError("No region is given; give at least one, or leave Regional out.")
        object.__setattr__(self, "regions", tuple(self.regions))

    def everywhere(self, context: Context) -> dict[str, float]:
        """The adapters in force that no region names."""
        active = active_adapters(context, "Regional adapters")
        named = [name for region in self.regions for name in region.adapters]
        check_known(named, dict(context.adapters), "A region")  # type: ignore[arg-type]
        return {name: w for name, w in active.items() if name not in named}

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        common, active = self.everywhere(context), active_adapters(context, "Regional adapters")
        if isinstance(level.logsnr, Tensor):
            raise ValueError(
                "Regional adapters begin at a log-SNR, and the samples of this batch have one each; give one level."
            )
        if level.logsnr < self.start:
            return self.denoiser(x, level, condition, replace(context, adapters=common))
        shares = context.memo("region shares", (self, x.shape[-2:]), lambda: self._shares(x))
        conditions = context.memo("region conditions", (self, condition), lambda: self._conditions(condition, len(x)))
        choices = [common, *({n: w for n, w in active.items() if n in common or n in r.adapters} for r in self.regions)]
        if shares[0] is None:
            shares, choices = shares[1:], choices[1:]
            conditions = conditions[1:] if isinstance(conditions, list) else conditions
        return weighted_sum(predict_choices(self.denoiser, x, level, conditions, context, choices), shares)

    def _shares(self, x: Tensor) -> list[Tensor | None]:
        """m_i / sum m for the rest of the picture and every region; the first is None where regions cover all of it."""
        masks = [scaled_mask(region.mask, x.shape[-2:]).to(x) for region in self.regions]
        inside = torch.stack(torch.broadcast_tensors(*masks)).sum(0)
        rest = (1 - inside).clamp_min(0)
        total = inside + rest
        return [rest / total if bool((rest > 0).any()) else None, *(mask / total for mask in masks)]

    def _conditions(self, condition: Condition, batch: int) -> Condition | list[Condition]:
        own = [region.condition for region in self.regions]
        if all(one is None for one in own):
            return condition
        wide = [condition if one is None else one.map(lambda v: v.expand(batch, *v.shape[1:])) for one in own]
        return [condition, *wide]


def scaled_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (..., H, W) at another size: each pixel the mean of what it covers, or its nearest where the size grows."""
    if mask.shape[-2:] == tuple(size):
        return mask
    if mask.shape[-2] >= size[0] and mask.shape[-1] >= size[1]:
        return F.adaptive_avg_pool2d(mask, (size[0], size[1]))
    return F.interpolate(mask, tuple(size), mode="nearest-exact")


@dataclass(frozen=True, eq=False)
class Stages:
    """What `two_stages` made: the layout and the picture (B, ...), and the regions that the layout was cut into."""

    layout: Tensor
    picture: Tensor
    regions: tuple[AdapterRegion, ...]


def two_stages(
    denoiser: Denoiser,
    solver: Solver,
    x: Tensor,
    levels: Sequence[NoiseLevel],
    regions: Callable[[Tensor], Sequence[AdapterRegion]],
    names: Sequence[str],
    condition: Condition | None = None,
    *,
    start: float,
    wrap: Callable[[Denoiser], Denoiser] = lambda denoiser: denoiser,
    noise: NoiseSource | None = None,
    context: Context | None = None,
) -> Stages:
    """A picture without the adapters `names` first; `regions(layout)` says where each belongs; then the picture with them.

    Both stages begin with the same noise and agree up to the log-SNR `start`, so the second goes on from the first one's state
    there. wrap: what goes around both, guidance for example. regions gets what the run ends with, (B, ...), and returns the
    regions, whose masks a detector or a user makes. Other arguments as in `sample`.

    Source: arXiv 2403.10983 (its attention maps of the first stage are not carried over; equal noise and start are).
    """
    context = replace(context or Context(), steps=len(levels) - 1, levels=tuple(levels))
    condition = condition or Condition()
    active = active_adapters(context, "Two stages")
    check_known(names, active, "Two stages")
    first = replace(context, adapters={name: w for name, w in active.items() if name not in names})
    state, steps = replace(solver.init(x), level=levels[0]), list(enumerate(pairwise(levels)))

    def run(field: Denoiser, state: State, part: list, context: Context) -> State:
        for i, (s, t) in part:
            state = replace(solver.step(field, state, s, t, condition, context.at(i), noise), level=t, step=i + 1)
        return state

    before = [one for one in steps if one[1][0].logsnr < start]
    rest = steps[len(before) :]
    shared = run(wrap(denoiser), state, before, first)
    second = replace(context, store=dict(context.store))
    layout = run(wrap(denoiser), shared, rest, first).x
    found = tuple(regions(layout))
    picture = run(wrap(Regional(denoiser, found, start)), shared, rest, second).x
    return Stages(layout, picture, found)
