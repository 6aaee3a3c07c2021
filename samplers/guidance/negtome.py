"""Negative token merging: away from what a reference, or another picture of the batch, looks like."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.reference_batch import References, acts_in, check_places, predict_with_references
from samplers.guidance.two_branch import check_scale, count_branches
from samplers.hooks import Site, check_reached, with_hook
from samplers.interval import Interval
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper

METHOD = "Negative token merging"


def push_apart(tokens: Tensor, reference: Tensor, scale: float, threshold: float, allowed: Tensor | None = None) -> Tensor:
    """Every token o with its nearest r of the reference, by cosine: o + scale (o - r) where the cosine is above threshold.

    tokens (N, L, D), reference (N or 1, K, D); allowed (K,) bool: which of the reference's count.
    """
    likeness = F.normalize(tokens, dim=-1) @ F.normalize(reference, dim=-1).transpose(1, 2)  # (N, L, K)
    if allowed is not None:
        likeness = likeness.masked_fill(~allowed.to(likeness.device), -math.inf)
    best, which = likeness.max(dim=-1)  # over the reference's tokens
    rows = torch.arange(len(reference), device=tokens.device)[:, None].expand(-1, which.shape[1])
    nearest = reference[rows.expand_as(which), which]
    # section 3 (arXiv 2412.01339): push away
    return torch.where((best > threshold)[..., None], torch.lerp(tokens, nearest, -scale), tokens)


@dataclass(frozen=True)
class NegativeMerging(DenoiserWrapper):
    """Pushes what self-attention says of each patch away from the most similar patch of `references`, noised to the same level.

    references None: from the batch's first picture, which stays as it is. Every branch of guidance is matched with itself.
    scale is the paper's alpha, threshold the least cosine; scale 0 or a threshold of 1 is the denoiser itself. layers: the
    blocks where it acts, None for all; interval: (lowest, highest) log-SNR, by default where layout is decided. A reference
    costs one more evaluation per branch inside the interval. Put it around the network and its caches, under guidance. Needs
    the network's "attention" hook.

    Source: arXiv 2412.01339, section 3. (Its published code looks for the nearest along the wrong axis.)
    """

    denoiser: Denoiser
    references: References | None = None
    scale: float = 0.9
    threshold: float = 0.65
    layers: tuple[int, ...] | None = None
    interval: Interval = (-math.inf, -1.0)

    def __post_init__(self) -> None:
        check_scale(self.scale, f"{METHOD.lower()} scale")
        check_scale(self.threshold, f"{METHOD.lower()} threshold")
        check_places(METHOD, self.layers, self.interval)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        low, high = self.interval
        if self.scale == 0 or self.threshold >= 1 or isinstance(level.logsnr, Tensor) or not low <= level.logsnr <= high:
            return self.denoiser(x, level, condition, context)
        rows = len(x)
        if self.references is not None:
            return predict_with_references(
                self.denoiser, self.references, x, level, condition, context, ("attention", self._away(rows)), METHOD
            )
        inside = with_hook(context, "attention", self._within(count_branches(context)))
        prediction = self.denoiser(x, level, condition, inside)
        check_reached(inside, "attention", METHOD)
        return prediction

    def _acts(self, site: Site) -> bool:
        return site.kind == "self" and (self.layers is None or acts_in(METHOD, self.layers, site))

    def _away(self, rows: int) -> Any:
        """From the references, rows `rows` and on."""
        references = self.references
        assert references is not None

        def hook(site: Site, tokens: Tensor, run: Any) -> Tensor:
            out = run()
            if not self._acts(site):
                return out
            extras, count = site.extras, len(references.images)
            allowed = references.allowed(site)
            seen = out[rows:, extras:].unflatten(0, (count, rows)).transpose(0, 1).flatten(1, 2)  # (rows, R K, D)
            own = push_apart(
                out[:rows, extras:], seen, self.scale, self.threshold, None if allowed is None else allowed.flatten()
            )
            return torch.cat([torch.cat([out[:rows, :extras], own], dim=1), out[rows:]])

        return hook

    def _within(self, halves: int) -> Any:
        """From the first picture of each half."""

        def hook(site: Site, tokens: Tensor, run: Any) -> Tensor:
            out = run()
            if not self._acts(site):
                return out
            extras, parts = site.extras, []
            for half in out.chunk(halves):
                own = push_apart(half[1:, extras:], half[:1, extras:], self.scale, self.threshold)
                parts += [half[:1], torch.cat([half[1:, :extras], own], dim=1)]
            return torch.cat(parts)

        return hook
