"""Guidance by a perturbed network: away from what it says with part of its structure taken out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.guidance.two_branch import as_guided, check_scale
from samplers.hooks import Site, check_reached, with_hook
from samplers.interval import EVERYWHERE, Interval, check_interval
from samplers.path import NoiseLevel, expand, lift
from samplers.prediction import Guided, Prediction
from samplers.wrappers import DenoiserWrapper


@dataclass(frozen=True)
class Perturbed(DenoiserWrapper, ABC):
    """raw + scale (raw_cond - raw_perturbed): one more evaluation, with the blocks numbered `layers` (from 0) perturbed.

    Without `layers`, those whose middle lies within `usual`, shares of the network's depth; at least the one nearest to it.
    scale 0, or a level outside `interval` (logsnr), evaluates nothing more. Around other guidance the perturbed evaluation is
    of the plain conditional model, `base`: PerturbedAttention(ClassifierFree(net, 5), 3, (4,), base=net). The network must
    offer the hook that a subclass perturbs (`samplers.hooks`).
    """

    denoiser: Denoiser
    scale: float
    layers: tuple[int, ...] | None = None
    base: Denoiser | None = None
    interval: Interval = EVERYWHERE

    hook_name: ClassVar[str]
    method: ClassVar[str]
    usual: ClassVar[tuple[float, float]]

    def __post_init__(self) -> None:
        if callable(self.scale):
            raise ValueError(f"{self.method} takes a fixed scale; restrict it to part of the run with interval.")
        check_scale(self.scale, f"{self.method} scale")
        check_interval(self.interval)
        if self.layers is not None and (
            not self.layers or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in self.layers)
        ):
            raise ValueError(f"{self.method} got layers={self.layers!r}; give the numbers of the blocks to perturb, from 0.")

    @abstractmethod
    def perturb(self, *args: Any) -> Any:
        """The hook that takes the place of `hook_name`."""

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        strong = self.denoiser(x, level, condition, context)
        low, high = self.interval
        inside = lift(lambda v: ((v >= low) & (v <= high)).to(v), level.logsnr)
        cond = strong.cond if isinstance(strong, Guided) else strong
        if cond is None or self.scale == 0 or (not isinstance(inside, Tensor) and not inside):
            return strong
        if self.base is None and isinstance(strong, Guided) and strong.null is not None:
            raise ValueError(
                f"{self.method} around other guidance needs the plain model to perturb: give base=, the denoiser that the "
                "other guidance is around."
            )
        changed = with_hook(context.fork(self.method), self.hook_name, self.perturb)
        weak = (self.base or self.denoiser)(x, level, condition, changed)
        check_reached(changed, self.hook_name, self.method)
        away = cond.read(strong.row) - weak.read(strong.row)
        # arXiv 2403.17377, section 4: away from the perturbed network
        raw = strong.raw + expand(self.scale * inside, away) * away
        return strong.with_raw(raw) if isinstance(strong, Guided) else as_guided(strong, raw, strong, weak)

    def chosen(self, index: int, count: int) -> bool:
        """Is block `index` of `count` perturbed?"""
        if self.layers and max(self.layers) >= count:
            raise ValueError(f"{self.method} got layers={self.layers}, but the network has blocks 0 to {count - 1}.")
        return index in (layers_within(self.usual, count) if self.layers is None else self.layers)


def layers_within(shares: tuple[float, float], count: int) -> tuple[int, ...]:
    """The blocks of `count` whose middle lies within two shares of the depth, or the one nearest to the middle of these.

    The network decides how many blocks there are, and they are counted in the order in which they run.
    """
    low, high = shares
    places = [(index + 0.5) / count for index in range(count)]
    inside = tuple(index for index, place in enumerate(places) if low <= place < high)
    return inside or (min(range(count), key=lambda index: abs(places[index] - (low + high) / 2)),)


class SkipLayer(Perturbed):
    """Skip-layer guidance: the perturbed network leaves `layers` out.

    Source: Spatiotemporal skip guidance, arXiv 2411.18664; known from Stable Diffusion 3.5, where scale is 2.8 and the layers
    are 7 to 9 of 24.
    """

    hook_name, method = "block", "skip-layer guidance"
    usual = (7 / 24, 10 / 24)

    def perturb(self, index: int, count: int, x: Tensor, run: Any) -> Tensor:
        return x if self.chosen(index, count) else run()


class PerturbedAttention(Perturbed):
    """Perturbed-attention guidance: in `layers`, every patch attends to itself instead of to the other patches.

    Without further tokens in the sequence, the attention output is then v. Where label, time or text are tokens too, patches
    go on attending to those, and those to everything.

    Source: arXiv 2403.17377, section 4.
    """

    hook_name, method = "heads", "perturbed-attention guidance"
    usual = (0.345, 0.465)  # the middle stage of the U-Nets of Stable Diffusion 1 and XL, as published

    def perturb(self, site: Site, q: Tensor, k: Tensor, v: Tensor, run: Any) -> Tensor:
        if not self.chosen(site.index, site.count):
            return run(q, k, v)
        if not site.extras:
            return v
        return torch.cat([run(q, k, v)[:, : site.extras], _self_and_extras(site.extras, q, k, v)], dim=1)


def _self_and_extras(extras: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of every patch over the extra tokens and itself, without an L x L matrix: (B, patches, H, D)."""
    q = q[:, extras:] * q.shape[-1] ** -0.5
    scores = torch.einsum("blhd,behd->blhe", q, k[:, :extras])
    own = (q * k[:, extras:]).sum(-1, keepdim=True)
    weights = torch.cat([scores, own], dim=-1).softmax(-1)
    return torch.einsum("blhe,behd->blhd", weights[..., :-1], v[:, :extras]) + weights[..., -1:] * v[:, extras:]


@dataclass(frozen=True)
class SmoothedEnergy(Perturbed):
    """Smoothed-energy guidance: in `layers`, the queries of the patches are blurred over the image by a Gaussian.

    blur is its standard deviation in patches; infinite, the default, replaces every query by their mean, the strongest form.

    Source: arXiv 2408.00760.
    """

    blur: float = math.inf

    hook_name, method = "heads", "smoothed-energy guidance"
    usual = (0.345, 0.465)  # as of perturbed attention

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blur > 0:
            raise ValueError(f"Smoothed-energy guidance got blur={self.blur}; give a width in patches above 0, or infinity.")

    def perturb(self, site: Site, q: Tensor, k: Tensor, v: Tensor, run: Any) -> Tensor:
        if not self.chosen(site.index, site.count):
            return run(q, k, v)
        extras, patches = q[:, : site.extras], q[:, site.extras :]
        if math.isinf(self.blur):
            patches = patches.mean(1, keepdim=True).expand_as(patches)
        else:
            grid = patches.unflatten(1, (site.rows, site.columns))
            patches = _blur(_blur(grid, 1, self.blur), 2, self.blur).flatten(1, 2)
        return run(torch.cat([extras, patches], dim=1), k, v)


def _blur(x: Tensor, axis: int, width: float) -> Tensor:
    """A Gaussian along one axis, reflected at the borders, cut at three widths or where the reflection would run out."""
    radius = min(math.ceil(3 * width), x.shape[axis] - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / width) ** 2)
    kernel = (kernel / kernel.sum()).to(x)
    moved = x.movedim(axis, -1)
    lines = F.pad(moved.flatten(0, -2)[:, None], (radius, radius), mode="reflect")
    return F.conv1d(lines, kernel[None, None])[:, 0].unflatten(0, moved.shape[:-1]).movedim(-1, axis)
