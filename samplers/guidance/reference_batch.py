"""Pictures that a network sees beside those that it makes: references, noised to the same level, in the same batch.

A hook then finds the tokens of both in one call: rows 0 .. n - 1 are the pictures', rows (r + 1) n .. (r + 2) n - 1 those of
reference r, each beside the row that it belongs to, under the same condition or one of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import count_conditional_rows
from samplers.hooks import Site, check_reached, with_hook
from samplers.interval import Interval
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.rows import expand_rows, take_prediction


@dataclass(frozen=True)
class References:
    """images (R, C, h, w): clean references, as the denoiser sees pictures; noise (B, R, C, h, w): unit noise for each picture
    of a batch, kept for the whole run; masks (R, 1, H, W): above one half where a reference counts, of any size, None for
    everywhere; conditions: what each reference shows, None for what the picture beside it shows."""

    images: Tensor
    noise: Tensor
    masks: Tensor | None = None
    conditions: tuple[Condition | None, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.images)
        if not count or self.noise.ndim != self.images.ndim + 1 or self.noise.shape[1:] != self.images.shape:
            raise ValueError(
                f"References {tuple(self.images.shape)} need noise (B, *that), {tuple(self.noise.shape)} given; "
                "draw it for every picture and reference."
            )
        if self.masks is not None and (self.masks.ndim != 4 or self.masks.shape[:2] != (count, 1)):
            raise ValueError(f"The masks of {count} references are {tuple(self.masks.shape)}; give ({count}, 1, H, W).")
        if self.conditions and len(self.conditions) != count:
            raise ValueError(f"{len(self.conditions)} conditions were given for {count} references; give one each, or none.")

    def at(self, level: NoiseLevel, rows: int) -> Tensor:
        """(R rows, C, h, w): reference r for each of n = rows rows, then reference r + 1."""
        pictures = len(self.noise)
        if rows % pictures:
            raise ValueError(f"References were made for {pictures} pictures, and a batch of {rows} came; give noise for each.")
        noisy = level.alpha * self.images + level.sigma * self.noise  # (B, R, ...)
        return noisy.repeat(rows // pictures, *[1] * (noisy.ndim - 1)).transpose(0, 1).flatten(0, 1)

    def allowed(self, site: Site) -> Tensor | None:
        """(R, rows * columns) bool: the tokens of each reference that count at a site; None for all of them."""
        if self.masks is None:
            return None
        return F.adaptive_avg_pool2d(self.masks, (site.rows, site.columns)).flatten(1) > 0.5


def predict_with_references(
    denoiser: Denoiser,
    references: References,
    x: Tensor,
    level: NoiseLevel,
    condition: Condition,
    context: Context,
    hook: tuple[str, Any],
    method: str,
) -> Prediction:
    """The prediction at x with the references in the same batch and the hook (name, function) in the network."""
    if isinstance(level.logsnr, Tensor):
        raise ValueError(f"{method} works on one noise level at a time, and got a level for every sample; use it for sampling.")
    name, function = hook
    rows = len(x)
    everyone = context.memo(
        f"{method} conditions", (condition, references), lambda: _conditions(condition, references, context, rows)
    )
    inside = with_hook(context.fork(method), name, function)
    joint = denoiser(torch.cat([x, references.at(level, rows).to(x)]), level, everyone, inside)
    check_reached(inside, name, method)
    return take_prediction(joint, x, level, slice(rows))


def check_places(method: str, layers: tuple[int, ...] | None, interval: Interval) -> None:
    low, high = interval
    if not low < high:
        raise ValueError(f"{method} got interval={interval}; give (lowest, highest) log-SNR.")
    if layers is not None and any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in layers):
        raise ValueError(f"{method} got layers={layers!r}; give numbers of blocks, from 0, or None for its usual ones.")


def acts_in(method: str, layers: tuple[int, ...], site: Site) -> bool:
    """ValueError for a block that the network does not have."""
    if layers and max(layers) >= site.count:
        raise ValueError(f"{method} got layers={layers}, but the network has blocks 0 to {site.count - 1}.")
    return site.index in layers


def _conditions(condition: Condition, references: References, context: Context, rows: int) -> Condition:
    """The pictures' condition, then each reference's in the rows that have one; the others are beside rows without."""
    parts, guided_rows = [condition], count_conditional_rows(context, rows)
    for own in references.conditions or [None] * len(references.images):
        if own is None:
            parts.append(condition)
            continue
        with_reference = expand_rows(own, rows)
        parts.append(with_reference[:guided_rows].cat([condition[guided_rows:]]) if guided_rows < rows else with_reference)
    return parts[0].cat(parts[1:])
