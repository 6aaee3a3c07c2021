"""Regions: several prompts on one canvas, each where its mask says.

Shapes: x (B, C, H, W); masks (1 or B, 1, H, W) on x's grid, 0 to 1; R regions, stacked as rows region after region.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from samplers.denoiser import AdapterWeights, Condition, Context, Denoiser
from samplers.guidance.two_branch import Schedule, check_scale
from samplers.multi_model.masks import Box, check_box, check_mask
from samplers.noise import fold
from samplers.path import NoiseLevel, Scalar, wide_dtype
from samplers.prediction import Prediction
from samplers.rows import expand_rows, merge_condition, read_as, repeat_level, repeat_rows, stack_conditions, take_rows
from samplers.wrappers import DenoiserWrapper

# (denoiser, scale, negative) -> the denoiser under guidance; a scale that differs by row is a function that gives (rows,)
Guide: TypeAlias = Callable[[Denoiser, float | Schedule, Condition | None], Denoiser]


@dataclass(frozen=True)
class Region:
    """What one part of the canvas is to show.

    condition, negative: batch of x's or 1; None is the run's own condition, and nothing. weight: factor on the mask where
    regions overlap. guidance_scale, adapters: None is the run's. window: the box (top, left, height, width) that the network
    sees, None for the whole canvas; the mask counts inside it only. bootstrap: begin on a plain background (`Bootstrap`).
    """

    mask: Tensor
    condition: Condition | None = None
    negative: Condition | None = None
    weight: float = 1.0
    guidance_scale: float | None = None
    adapters: Mapping[str, float] | None = None
    window: Box | None = None
    bootstrap: bool = True
    name: str = ""


@dataclass(frozen=True)
class Bootstrap:
    """Backgrounds on which regions begin, so that each object is made inside its own mask.

    Below the log-SNR `until`, a region sees a plain picture in place of what lies outside its mask: one of `backgrounds`
    (K, C, 1 or H, 1 or W), clean, noised with `eps` (B or 1, C, H, W), the noise that the run began with. Which one is a
    function of (seed of the row, region, level). Outside the mask the region has no say, so nothing of it is left.

    Source: MultiDiffusion, arXiv 2302.08113, section 4.2 (the first 20 of 50 DDIM steps, which is a log-SNR of about -0.7).
    """

    backgrounds: Tensor
    eps: Tensor
    until: float = -0.7
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if self.backgrounds.ndim != 4 or not len(self.backgrounds):
            raise ValueError(f"Backgrounds are {tuple(self.backgrounds.shape)}; give one or more clean pictures (K, C, 1, 1).")

    def acts(self, level: NoiseLevel) -> bool:
        return not isinstance(level.logsnr, Tensor) and level.logsnr < self.until

    def behind(self, region: int, level: NoiseLevel) -> Tensor:
        """What a region sees outside its mask at a level, (B or 1, C, H, W)."""
        rows = [fold(seed, region, float(level.t)) % len(self.backgrounds) for seed in self.seeds]
        return level.mix(self.backgrounds[rows].to(self.eps), self.eps)


@dataclass(frozen=True)
class Regions(DenoiserWrapper):
    """raw = sum_i w_i raw(x, c_i) / sum_i w_i, pixel by pixel, with w_i = weight_i mask_i (MultiDiffusion).

    All regions of a step go through the network together, `at_once` of them at most (None: all that see equally large
    windows); where they share what guidance leads away from, that is evaluated once for all. guide: how each region is guided,
    for example `lambda denoiser, scale, negative: ClassifierFree(denoiser, scale, negative)`; None: `denoiser` is what it is.
    ValueError where masks do not fit one another or the canvas, or leave a pixel to no region.

    Source: arXiv 2302.08113, equation 5 (with crops that are whole canvases, or windows of it).
    """

    denoiser: Denoiser
    regions: tuple[Region, ...]
    guide: Guide | None = None
    guidance_scale: float = 1.0
    bootstrap: Bootstrap | None = None
    at_once: int | None = None

    def __post_init__(self) -> None:
        if not self.regions:
            raise ValueError("There are no regions; give one or more.")
        if self.at_once is not None and (isinstance(self.at_once, bool) or self.at_once < 1):
            raise ValueError(f"at_once is {self.at_once!r}; give how many regions go through the network together, or None.")
        check_scale(self.guidance_scale)
        size = self.regions[0].mask.shape[-2:]
        for i, region in enumerate(self.regions):
            name = self._name(i)
            check_mask(region.mask, name)
            if region.mask.shape[-2:] != size:
                raise ValueError(
                    f"The mask of {name} is {_by(region.mask.shape)}, and that of {self._name(0)} {_by(size)}; "
                    "all must have the canvas's size."
                )
            if isinstance(region.weight, bool) or not 0 < region.weight < float("inf"):
                raise ValueError(f"The weight of {name} is {region.weight}; give a finite number above 0, or leave it out.")
            if region.guidance_scale is not None:
                check_scale(region.guidance_scale, f"guidance scale of {name}")
                if self.guide is None:
                    raise ValueError(
                        f"{name[0].upper()}{name[1:]} has a guidance scale of its own, but no guide to apply it; "
                        "give Regions a plain denoiser and a guide."
                    )
            if region.window is not None:
                check_box(region.window, size[0], size[1], f"window of {name}")
        total = sum((w for w in self._own_weights()), torch.zeros(()))
        if bool((total == 0).any()):
            *_, top, left = (int(v) for v in (total == 0).nonzero()[0])
            raise ValueError(
                f"{int((total == 0).sum())} cells of the canvas belong to no region, the first in row {top}, column {left}; "
                "add a background that covers them."
            )

    def _name(self, i: int) -> str:
        return f"region {self.regions[i].name!r}" if self.regions[i].name else f"region {i}"

    def _own_weights(self) -> list[Tensor]:
        """weight_i mask_i, inside the window."""
        found = []
        for region in self.regions:
            own = region.weight * region.mask.to(wide_dtype(region.mask.device))
            if region.window is not None:
                inside = torch.zeros_like(own)
                _crop(inside, region.window)[:] = 1
                own = own * inside
            found.append(own)
        return found

    def _shares(self, like: Tensor) -> list[Tensor]:
        """w_i / sum_j w_j, each cut to its region's window, as x is stored."""
        own = self._own_weights()
        total = torch.stack(torch.broadcast_tensors(*own)).sum(0)
        return [_crop((w / total).to(like), r.window) for w, r in zip(own, self.regions, strict=True)]

    def _groups(self) -> list[list[int]]:
        """Regions that go through the network together: windows of one size, `at_once` at most."""
        size = self.regions[0].mask.shape[-2:]
        sizes: dict[Hashable, list[int]] = {}
        for i, region in enumerate(self.regions):
            sizes.setdefault(tuple(size) if region.window is None else tuple(region.window[2:]), []).append(i)
        most = self.at_once or len(self.regions)
        return [group[i : i + most] for group in sizes.values() for i in range(0, len(group), most)]

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if x.shape[-2:] != self.regions[0].mask.shape[-2:]:
            raise ValueError(f"The masks are {_by(self.regions[0].mask.shape)}, but x is {_by(x.shape)}; make them equal.")
        shares = context.memo("region shares", (self.regions,), lambda: self._shares(x))
        raw = variance = row = None
        for group in self._groups():
            stacked = self._evaluate(group, x, level, condition, context)
            row = (take_rows(stacked.row[0], slice(len(x))), take_rows(stacked.row[1], slice(len(x)))) if row is None else row
            said = read_as(stacked, (repeat_rows(row[0], len(group)), repeat_rows(row[1], len(group))))
            if raw is None:
                raw = x.new_zeros(len(x), said.shape[1], *x.shape[2:])
                variance = None if stacked.variance is None else torch.zeros_like(raw)
            for i, part in zip(group, said.chunk(len(group)), strict=True):
                _crop(raw, self.regions[i].window).add_(shares[i] * part)  # equation 5 (arXiv 2302.08113)
            if variance is not None and stacked.variance is not None:
                for i, part in zip(group, stacked.variance.chunk(len(group)), strict=True):
                    _crop(variance, self.regions[i].window).add_(shares[i] * part)
        assert raw is not None and row is not None
        return Prediction(x, level, raw, row, variance)

    def _evaluate(
        self, group: Sequence[int], x: Tensor, level: NoiseLevel, condition: Condition, context: Context
    ) -> Prediction:
        """One call for some regions: a prediction of their windows, (rows, C, h, w)."""
        regions, batch = [self.regions[i] for i in group], len(x)
        behind = self.bootstrap is not None and self.bootstrap.acts(level) and any(r.bootstrap for r in regions)
        seen = torch.cat([self._seen(i, x, level, behind) for i in group])
        context = context.fork("regions", tuple(group))
        own, negative = context.memo("region conditions", (self.regions, condition), lambda: _stack(regions, condition, batch))
        context = _with_adapters(context, regions, batch)
        denoiser = self.denoiser
        if self.guide is not None:
            alike = not behind and len({r.window for r in regions}) == 1 and _one_null(regions, condition)
            if len(group) > 1 and alike and isinstance(context.adapters, Mapping):
                denoiser = _NullOnce(denoiser, len(group))
            scales = [self.guidance_scale if r.guidance_scale is None else r.guidance_scale for r in regions]
            scale: float | Schedule = scales[0]
            if len(set(scales)) > 1:
                wide = wide_dtype(x.device)
                by_row = context.memo(
                    "region scales",
                    (self.regions,),
                    lambda: torch.tensor(scales, dtype=wide, device=x.device).repeat_interleave(
                        batch, output_size=batch * len(scales)
                    ),
                )

                def scale(level: NoiseLevel) -> Scalar:
                    return by_row

            denoiser = self.guide(denoiser, scale, negative)
        return denoiser(seen, repeat_level(level, len(group)), own, context)

    def _seen(self, i: int, x: Tensor, level: NoiseLevel, behind: bool) -> Tensor:
        """What the network is shown of a region."""
        region = self.regions[i]
        if behind and region.bootstrap and self.bootstrap is not None:
            # all of the mask's support shows x itself, so what the region says there is about x
            x = torch.where(region.mask.to(x.device) > 0, x, self.bootstrap.behind(i, level).to(x))
        return _crop(x, region.window)


@dataclass(frozen=True)
class _NullOnce(DenoiserWrapper):
    """Inside guidance, below a stack of `copies` equal canvases: the unconditional rows, all alike, are evaluated once."""

    denoiser: Denoiser
    copies: int

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if context.branch[-2:] != ("cond", "null") and context.branch[-1:] != ("null",):
            return self.denoiser(x, level, condition, context)
        cond = len(x) // 2 if context.branch[-2:] == ("cond", "null") else 0
        keep = cond + (len(x) - cond) // self.copies
        part = context.memo("null once", (condition,), lambda: condition[:keep])
        levels = NoiseLevel(*(take_rows(v, slice(keep)) for v in (level.t, level.alpha, level.sigma)))
        few = self.denoiser(x[:keep], levels, part, context.fork("once"))

        def spread(v: Scalar) -> Scalar:
            if not isinstance(v, Tensor) or not v.ndim:
                return v
            return torch.cat([v[:cond], v[cond:].repeat(self.copies, *[1] * (v.ndim - 1))])

        variance = None if few.variance is None else spread(few.variance)
        return Prediction(x, level, spread(few.raw), (spread(few.row[0]), spread(few.row[1])), variance)


def _crop(x: Tensor, window: Box | None) -> Tensor:
    if window is None:
        return x
    top, left, height, width = window
    return x[..., top : top + height, left : left + width]


def _stack(regions: Sequence[Region], condition: Condition, batch: int) -> tuple[Condition, Condition | None]:
    """(conditions, negatives) of all regions as rows."""

    def rows(one: Condition, window: Box | None) -> Condition:
        return expand_rows(one if window is None else one.slice(window), batch)

    own = [rows(merge_condition(r.condition, condition), r.window) for r in regions]
    negative = None
    if any(r.negative is not None for r in regions):
        refused = [
            rows(merge_condition(r.negative, condition.null()), r.window) if r.negative is not None else c.null()
            for r, c in zip(regions, own, strict=True)
        ]
        negative = stack_conditions(refused)
    return stack_conditions(own), negative


def _one_null(regions: Sequence[Region], condition: Condition) -> bool:
    """Is what guidance leads away from the same for all of them?"""
    if any(r.negative is not regions[0].negative for r in regions):
        return False
    one, *others = [merge_condition(r.condition, condition) for r in regions]
    names = one.extra.keys()
    return all(
        c.image is one.image and c.extra.keys() == names and all(c.extra[name] is one.extra[name] for name in names)
        for c in others
    )


def _with_adapters(context: Context, regions: Sequence[Region], batch: int) -> Context:
    """The run's adapters for every row, or each region's own."""
    run = context.adapters
    shared = isinstance(run, Mapping) and all(isinstance(w, int | float) for w in run.values())
    one = regions[0].adapters if regions[0].adapters is not None else run
    if shared and all((run if r.adapters is None else r.adapters) == one for r in regions):
        return replace(context, adapters=one)
    common = adapters_by_row(run, batch)
    rows = [own if r.adapters is None else r.adapters for r in regions for own in common]
    return replace(context, adapters=tuple(rows))


def adapters_by_row(adapters: AdapterWeights, batch: int) -> list[Mapping[str, float]]:
    """One mapping per sample."""
    if not isinstance(adapters, Mapping):
        return [adapters[i % len(adapters)] for i in range(batch)]
    values = {name: [float(w)] * batch if isinstance(w, int | float) else [float(v) for v in w] for name, w in adapters.items()}
    return [{name: own[i] for name, own in values.items()} for i in range(batch)]


def _by(shape: Sequence[int]) -> str:
    return f"{shape[-2]} x {shape[-1]}"
