"""SyncTweedies: one canonical thing seen through several views, all of them denoised together.

Canonical things are (B, C, H, W) of any kind (a panorama, a texture, a picture that is read in two ways); a view of one is
(B, c, h, w), the size that a network works on. V views are stacked as rows, view after view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Prediction
from samplers.rows import merge_condition, repeat_level, stack_conditions
from samplers.wrappers import DenoiserWrapper

Map: TypeAlias = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """How an instance is seen: `project` (B, C, H, W) -> (B, c, h, w), and `unproject` back, 0 where the view shows nothing.

    weight: (1, 1, H, W), how much the view has to say where on the canonical thing; 0 where it shows nothing. condition: batch
    of x's or 1; None is the run's.
    """

    project: Map
    unproject: Map
    weight: Tensor
    condition: Condition | None = None


@dataclass(frozen=True)
class SyncTweedies(DenoiserWrapper):
    """A denoiser of all views at once, x (V B, c, h, w): what they say of x0 is averaged on the canonical thing and projected
    back, while each view keeps its own noisy x.

    x0_i <- project_i(sum_j weight_j unproject_j(x0_j) / sum_j weight_j): case 2 of the paper's table, the one it found best.
    Start from `project(views, noise)` with noise drawn on the canonical thing, so that views agree where they overlap (the mean
    of independent noises would be too small there); read the result with `unproject`. Non-linear maps (through an autoencoder,
    for instance) are allowed, as only x0 passes through them.

    Source: arXiv 2403.14370, algorithm 1 and equation 8.
    """

    denoiser: Denoiser
    views: tuple[View, ...]

    def __post_init__(self) -> None:
        check_views(self.views)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        if len(x) % len(self.views):
            raise ValueError(f"{len(x)} rows are not {len(self.views)} views each; start from project(views, noise).")
        own = context.memo("view conditions", (self.views, condition), lambda: conditions(self.views, condition, len(x)))
        said = self.denoiser(x, level, own, context.fork("views"))
        weights = context.memo("view weights", (self.views,), lambda: [view.weight.to(x) for view in self.views])
        return said.with_x0(project(self.views, unproject(self.views, said.x0, weights)))  # equation 8 (arXiv 2403.14370)


@dataclass(frozen=True)
class CanonicalDenoiser(DenoiserWrapper):
    """A denoiser of the canonical thing itself, x (B, C, H, W): views of x are predicted, and what they say of x0 is averaged.

    For views that only move pixels (rotations, flips, permutations, crops) this is `SyncTweedies` with fewer numbers to keep,
    and MultiDiffusion where they are crops: unit noise must stay unit noise when it is projected.
    """

    denoiser: Denoiser
    views: tuple[View, ...]

    def __post_init__(self) -> None:
        check_views(self.views)

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        count = len(self.views)
        rows = count * len(x)
        own = context.memo("view conditions", (self.views, condition), lambda: conditions(self.views, condition, rows))
        said = self.denoiser(project(self.views, x), repeat_level(level, count), own, context.fork("views"))
        weights = context.memo("view weights", (self.views,), lambda: [view.weight.to(x) for view in self.views])
        return Prediction(x, level, unproject(self.views, said.x0, weights), (1.0, 0.0))


def project(views: Sequence[View], canonical: Tensor) -> Tensor:
    """All views of (B, C, H, W), stacked (V B, c, h, w)."""
    shown = [view.project(canonical) for view in views]
    if len({one.shape for one in shown}) > 1:
        sizes = ", ".join(dict.fromkeys("x".join(map(str, one.shape[1:])) for one in shown))
        raise ValueError(f"The views show pictures of different sizes ({sizes}); all must be of the network's size.")
    return torch.cat(shown)


def unproject(views: Sequence[View], instances: Tensor, weights: Sequence[Tensor] | None = None) -> Tensor:
    """The weighted mean (B, C, H, W) of stacked views on the canonical thing. weights: the views' on the device, if they are
    there already."""
    back = [view.unproject(one) for view, one in zip(views, instances.chunk(len(views)), strict=True)]
    weights = [view.weight.to(back[0]) for view in views] if weights is None else weights
    return torch.stack([w * one for w, one in zip(weights, back, strict=True)]).sum(0) / torch.stack(list(weights)).sum(0)


def conditions(views: Sequence[View], condition: Condition, rows: int) -> Condition:
    """Each view's condition, or its share of the run's, which has one row per canonical thing or one per row of the stack."""
    batch = rows // len(views)

    def share(i: int, value: Tensor) -> Tensor:
        if len(value) == rows and len(views) > 1:
            return value[i * batch : (i + 1) * batch]
        return value.expand(batch, *value.shape[1:]) if len(value) == 1 else value

    own = [merge_condition(v.condition, condition).map(partial(share, i)) for i, v in enumerate(views)]
    return stack_conditions(own)


def check_views(views: Sequence[View]) -> None:
    """ValueError unless there are views, and together they show everything."""
    if not views:
        raise ValueError("There are no views; give one or more.")
    shape = views[0].weight.shape
    for i, view in enumerate(views):
        if view.weight.shape != shape:
            raise ValueError(
                f"The weight of view {i} is {tuple(view.weight.shape)}, and that of view 0 {tuple(shape)}; "
                "all are on the same canonical thing."
            )
        if not bool(((view.weight >= 0) & view.weight.isfinite()).all()):
            raise ValueError(f"The weight of view {i} must hold finite numbers of at least 0.")
    unseen = torch.stack([view.weight for view in views]).sum(0) == 0
    if bool(unseen.any()):
        raise ValueError(f"{int(unseen.sum())} of {unseen.numel()} canonical pixels are shown by no view; add one that does.")


def index_view(
    index: Tensor, height: int, width: int, condition: Condition | None = None, weight: Tensor | None = None
) -> View:
    """A view of which each pixel is one canonical pixel: index (h, w) holds row * width + column of an (H, W) thing.

    Rotations, flips, permutations, crops and textures on surfaces are such views. Where several pixels of the view show one
    canonical pixel, unproject takes their mean. weight (1, 1, H, W) is cut to what the view shows; None: 1 there.
    """
    if index.ndim != 2 or index.is_floating_point() or index.numel() == 0:
        raise ValueError(f"An index is {tuple(index.shape)} of {index.dtype}; give whole numbers (h, w).")
    if int(index.min()) < 0 or int(index.max()) >= height * width:
        raise ValueError(f"An index has {int(index.min())} to {int(index.max())}; pixels are 0 to {height * width - 1}.")
    flat, size = index.reshape(-1), (*index.shape,)
    times = torch.bincount(flat, minlength=height * width).double()
    shown = (times > 0).double().reshape(1, 1, height, width)

    def gather(canonical: Tensor) -> Tensor:
        return canonical.flatten(2)[..., flat.to(canonical.device)].unflatten(-1, size)

    def scatter(instance: Tensor) -> Tensor:
        values = instance.flatten(2)
        empty = values.new_zeros(*values.shape[:2], height * width)
        total = empty.index_add(-1, flat.to(values.device), values)
        return (total / times.clamp(min=1).to(values)).unflatten(-1, (height, width))

    return View(gather, scatter, shown if weight is None else shown * weight.to(shown), condition)


def grid_index(height: int, width: int) -> Tensor:
    """(H, W): every pixel's own number. `grid_index(8, 8).rot90(2)` is the index of a view that is turned upside down."""
    return torch.arange(height * width).reshape(height, width)


def cylinder_view(height: int, width: int, angle: float, side: int, condition: Condition | None = None) -> View:
    """What one sees of a texture (H, W) around an upright cylinder from `angle` (radians), `side` pixels wide and H high.

    Column u in (-1, 1) of the view shows the texture at angle + asin(u): half of the circumference, foreshortened at the edges.
    At most width / pi pixels, so that none of the texture's is seen twice and its noise stays white in the view.
    """
    if side > width / math.pi:
        raise ValueError(
            f"A view {side} wide shows pixels of a texture {width} around twice; give at most {math.floor(width / math.pi)}."
        )
    u = (torch.arange(side, dtype=torch.float64) + 0.5) / side * 2 - 1
    column = ((angle + torch.asin(u)) / (2 * math.pi) * width).floor().long() % width
    rows = torch.arange(height)[:, None] * width
    # what faces the viewer is shown in more detail, so it counts for more
    weight = torch.zeros(width, dtype=torch.float64).index_copy(0, column, torch.sqrt(1 - u**2))
    return index_view(rows + column[None], height, width, condition, weight.expand(1, 1, height, width))
