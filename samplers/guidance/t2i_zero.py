"""Several concepts in one prompt: text features drawn towards what they mean, and attention maps that do not overlap.

Both are Multi-Concept T2I-Zero's (arXiv 2310.07419): Correction by Similarities (Algorithm 1) changes the prompt's features
before a run, Cross-Token Non-Maximum Suppression (Algorithm 2) the maps of cross-attention during it. Neither evaluates
anything more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.reference_batch import check_places
from samplers.guidance.two_branch import count_conditional_rows
from samplers.hooks import Site, check_reached, with_hook
from samplers.interval import Interval
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.wrappers import DenoiserWrapper

METHOD = "Cross-token non-maximum suppression"


def correct_by_similarities(
    tokens: Tensor, concept: Sequence[int], strength: float = 0.1, window: int = 3, quantile: float = 0.7
) -> Tensor:
    """Correction by similarities of a prompt's features (L, D), for the tokens at the positions `concept`.

    For a token c, over the positions j within `window` of it, S_j = f_c * f_j (element by element), kept where it is above its
    `quantile` over all of them, and divided by its largest value; then f_c becomes

        (1 - strength) f_c + strength sum_j S_j * f_j.

    Every correction reads the features as they were. strength 0 changes nothing.
    """
    check_correction(strength, window, quantile)
    out = tokens.clone()
    for c in concept if strength else ():
        near = tokens[max(c - window, 0) : c + window + 1]
        likeness = tokens[c] * near
        kept = torch.where(likeness > likeness.float().quantile(quantile), likeness, 0.0)
        top = kept.max()
        if top > 0:
            out[c] = (1 - strength) * tokens[c] + strength * (kept / top * near).sum(0)  # Algorithm 1 (arXiv 2310.07419)
    return out


def check_correction(strength: float, window: int, quantile: float) -> None:
    if isinstance(window, bool) or not isinstance(window, int) or window < 0:
        raise ValueError(f"Correction by similarities got window={window!r}; give a whole number of at least 0.")
    for name, value in (("strength", strength), ("quantile", quantile)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise ValueError(f"Correction by similarities got {name}={value!r}; give a number from 0 to 1.")


def suppress_overlap(maps: Tensor, owners: Tensor, rows: int, columns: int, strength: float = 1.0) -> Tensor:
    """Attention maps with each place left to the concept that claims it most.

    maps (B, H, L, T): how much patch l of rows x columns attends to token t, in every head; owners (B, T) integers: the concept
    of each token, negative for none. A concept's claim is the sum of its tokens' maps, smoothed (3 x 3 Gaussian, sigma 1); its
    maps are 0 where another's claim is larger, by the share `strength`. What is lost is not given to others.
    """
    names = [name for name in owners.unique().tolist() if name >= 0]
    if len(names) < 2 or not strength:
        return maps
    belongs = torch.stack([owners == name for name in names], dim=1).to(maps)  # (B, C, T)
    claims = torch.einsum("bhlt,bct->bhcl", maps, belongs)
    claims = _smoothed(claims.unflatten(-1, (rows, columns))).flatten(-2)
    claims = claims.masked_fill((belongs.sum(-1) == 0)[:, None, :, None], -1.0)
    wins = F.one_hot(claims.argmax(2), len(names)).to(maps)  # (B, H, L, C)
    keep = torch.einsum("bhlc,bct->bhlt", wins, belongs) + (1 - belongs.sum(1))[:, None, None]
    return maps * (1 - strength * (1 - keep))  # Algorithm 2 (arXiv 2310.07419)


@dataclass(frozen=True)
class ConceptSuppression(DenoiserWrapper):
    """Cross-attention under `suppress_overlap`, for owners (B, T): the concept of each token of each picture's condition.

    Branches without the condition, and pictures of fewer than two concepts, are left alone. strength: 1 is the algorithm; its
    authors' blend of the maps has 0.1. interval: (lowest, highest) log-SNR, by default the noisier half of a flow's run. Put it
    around the network and its caches, under guidance. Needs the network's "cross" hook.
    """

    denoiser: Denoiser
    owners: Tensor
    strength: float = 1.0
    interval: Interval = (-math.inf, 0.0)

    def __post_init__(self) -> None:
        if isinstance(self.strength, bool) or not 0 <= self.strength <= 1:
            raise ValueError(f"{METHOD} got strength={self.strength!r}; give a number from 0 (off) to 1.")
        if self.owners.ndim != 2 or self.owners.is_floating_point():
            raise ValueError(f"{METHOD} needs owners (B, T) of integers, {tuple(self.owners.shape)} {self.owners.dtype} given.")
        check_places(METHOD, None, self.interval)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        low, high = self.interval
        guided = count_conditional_rows(context, len(x))
        if isinstance(level.logsnr, Tensor) or not low <= level.logsnr <= high or not guided or not self.strength:
            return self.denoiser(x, level, condition, context)
        if guided != len(self.owners):
            raise ValueError(f"{METHOD} knows the concepts of {len(self.owners)} pictures, and {guided} came; give all.")

        def hook(site: Site, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, run: Any) -> Tensor:
            rest = None if mask is None or len(mask) == 1 else mask[guided:]
            others = [run(q[guided:], k[guided:], v[guided:], mask if rest is None else rest)] if guided < len(q) else []
            scores = torch.einsum("blhd,bthd->bhlt", q[:guided], k[:guided]) / math.sqrt(q.shape[-1])
            if mask is not None:
                mask = mask if len(mask) == 1 else mask[:guided]
                scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
            maps = scores.softmax(-1)
            owners = F.pad(self.owners, (0, max(0, k.shape[1] - self.owners.shape[1])), value=-1)[:, : k.shape[1]]
            maps = suppress_overlap(maps, owners.to(maps.device), site.rows, site.columns, self.strength)
            return torch.cat([torch.einsum("bhlt,bthd->blhd", maps, v[:guided]), *others])

        inside = with_hook(context, "cross", hook)
        prediction = self.denoiser(x, level, condition, inside)
        check_reached(inside, "cross", METHOD)
        return prediction


def _smoothed(maps: Tensor) -> Tensor:
    """A 3 x 3 Gaussian of sigma 1 on (..., rows, columns), repeated at the border."""
    side = math.exp(-0.5)
    row = torch.tensor([side, 1.0, side], dtype=torch.float64) / (1 + 2 * side)
    kernel = (row[:, None] * row[None, :]).to(maps)
    flat = F.pad(maps.reshape(-1, 1, *maps.shape[-2:]), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(flat, kernel[None, None]).reshape(maps.shape)
