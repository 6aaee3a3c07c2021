"""Regions inside of attention: each part of the picture attends to a prompt of its own, under adapters of its own (MultiBooth).

Shapes: x (B, C, H, W); masks (1 or B, 1, H, W) on x's grid, 0 to 1; q, k, v (B, L, heads, width).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.nag import equally_long
from samplers.guidance.two_branch import count_conditional_rows
from samplers.hooks import Site, check_reached, with_hook
from samplers.multi_model.masks import check_mask
from samplers.multi_model.regions import adapters_by_row
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.rows import expand_rows, repeat_level, stack_conditions, take_prediction, take_rows
from samplers.wrappers import DenoiserWrapper

METHOD = "Regional attention"


@dataclass(frozen=True)
class AttentionRegion:
    """What one part of the picture attends to. condition: batch of x's or 1, with text. adapters: None is the run's."""

    mask: Tensor
    condition: Condition
    adapters: Mapping[str, float] | None = None
    name: str = ""


@dataclass(frozen=True)
class RegionalAttention(DenoiserWrapper):
    """One picture whose patches attend to the text of the regions that they lie in, and elsewhere to the run's own:

        out = sum_i m_i Attention(Q, K_i, V_i) / sum_i m_i     where masks m_i cover a patch
        out = (1 - sum_i m_i) Attention(Q, K, V) + sum_i m_i Attention(Q, K_i, V_i)   where they cover less than all of it

    K_i and V_i are made of prompt i by layers under the adapters of region i; queries, and all the rest of the network, are the
    run's. So regions share one picture's self-attention, and are not evaluations put together (`Regions`). Put it around the
    network and its caches, under guidance: it acts on rows with a condition. Each region costs an evaluation for every one of
    these, of which its keys and values alone are read. Needs the network's "cross" hook.

    Source: MultiBooth, arXiv 2404.14239 (regional customization module): queries of a box, cut out, attend to its concept.
    """

    denoiser: Denoiser
    regions: tuple[AttentionRegion, ...]

    def __post_init__(self) -> None:
        if not self.regions:
            raise ValueError("There are no regions; give one or more.")
        for i, region in enumerate(self.regions):
            check_mask(region.mask, f"region {region.name or i}")
            if region.condition.tokens is None:
                raise ValueError(f"Region {region.name or i} has no text; {METHOD.lower()} needs a prompt for each.")

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        rows, led, count = len(x), count_conditional_rows(context, len(x)), len(self.regions)
        if not led:
            return self.denoiser(x, level, condition, context)
        everyone = context.memo("regional conditions", (self.regions, condition), lambda: self._conditions(condition, led))
        own = context.fork("regional attention")
        inside = with_hook(self._with_adapters(own, rows, led), "cross", self._hook(rows, led))
        parts = (level.t, level.alpha, level.sigma)
        levels = repeat_level(level, 1)
        if any(isinstance(part, Tensor) and part.ndim for part in parts):
            levels = NoiseLevel(*(torch.cat([p, *[take_rows(p, slice(led))] * count]) for p in parts))  # type: ignore[list-item]
        joint = self.denoiser(torch.cat([x, *[x[:led]] * count]), levels, everyone, inside)
        check_reached(inside, "cross", METHOD)
        return take_prediction(joint, x, level, slice(rows))

    def _conditions(self, condition: Condition, led: int) -> Condition:
        """The rows' own conditions, then those of each region, which have all but the text of the rows'."""
        first = condition[:led]
        texts = [expand_rows(region.condition, led) for region in self.regions]
        return stack_conditions(
            equally_long([condition, *(replace(first, tokens=text.tokens, mask=text.mask) for text in texts)])
        )

    def _with_adapters(self, context: Context, rows: int, led: int) -> Context:
        if all(region.adapters is None for region in self.regions):
            return context
        run = adapters_by_row(context.adapters, rows)
        own = [a for region in self.regions for a in (run[:led] if region.adapters is None else [region.adapters] * led)]
        return replace(context, adapters=(*run, *own))

    def _hook(self, rows: int, led: int) -> Callable[..., Tensor]:
        def hook(site: Site, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, run: Callable[..., Tensor]) -> Tensor:
            def part(value: Tensor, start: int, end: int) -> Tensor:
                return value if len(value) == 1 and len(q) > 1 else value[start:end]

            def seen(start: int, end: int) -> Tensor | None:
                return None if mask is None else part(mask, start, end)

            base = run(q[:rows], k[:rows], v[:rows], seen(0, rows))
            total, covered = torch.zeros_like(base[:led]), base.new_zeros(1, site.rows * site.columns, 1, 1)
            for number, region in enumerate(self.regions):
                start = rows + number * led
                found = run(q[:led], k[start : start + led], v[start : start + led], seen(start, start + led))
                area = F.adaptive_avg_pool2d(region.mask.to(base.device).float(), (site.rows, site.columns))
                share = area.flatten(1)[..., None, None].to(base.dtype)
                total, covered = total + share * found, covered + share
            mixed = (total + (1 - covered).clamp_min(0) * base[:led]) / covered.clamp_min(1)
            return torch.cat([mixed, base[led:], *[mixed] * len(self.regions)])

        return hook
