"""The tiled canvas: an image of any size from a network of one size, as a denoiser (MultiDiffusion).

Every window is denoised on its own and the canvas is their weighted mean. Solvers step linearly in (x, raw), so that a step
of the mean is the mean of the steps: no window needs a solver, or a scheduler, of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from samplers.canvas.shifted import ShiftedWindows, WindowsPerImage
from samplers.canvas.windows import Windows
from samplers.denoiser import Condition, Context, Denoiser
from samplers.path import NoiseLevel
from samplers.prediction import Guided, Prediction, Row
from samplers.rows import expand_rows, repeat_level
from samplers.wrappers import DenoiserWrapper

Chooser: TypeAlias = Callable[[float, float], int]  # (down, across) of a window's middle -> the number of its condition


@dataclass(frozen=True)
class MultiDiffusion(DenoiserWrapper):
    """x0(x) = sum_i W_i pad(D(crop_i x)) / sum_i W_i for any canvas x (B, C, H, W), whatever D is around its network.

    It goes around guidance and caches, and under what knows the whole image (inpainting, energies, measurements).
    windows: `Windows` that stay, or `ShiftedWindows`, of which caches remember nothing from step to step.
    conditions, chosen: conditions of batch 1 or B, and for every window the number of its own, or a function that tells it from
    where a window's middle lies (down, across, as shares of the canvas from 0 to 1); without them all windows get the run's
    condition. What a condition has aligned with x (`image`) is cropped. batch: at most so many rows (windows times
    images) per evaluation of D, one window of every image at least; memory beyond the canvas grows with it alone.
    group: a torch.distributed process group, over whose ranks the windows are spread; all of them must make the same calls
    with the same x, and get the same result. No gradients there.

    Source: arXiv 2302.08113, equation 5.
    """

    denoiser: Denoiser
    windows: Windows | ShiftedWindows | WindowsPerImage
    conditions: Sequence[Condition] = ()
    chosen: Sequence[int] | Sequence[tuple[int, ...]] | Chooser = ()
    batch: int = 8
    group: Any = None
    moment: float | None = None  # of windows that were shifted, the clock of their level

    def __post_init__(self) -> None:
        if isinstance(self.batch, bool) or not isinstance(self.batch, int) or self.batch < 1:
            raise ValueError(f"The rows of one evaluation must be a whole number of at least 1, got batch={self.batch!r}.")
        if callable(self.chosen):
            return
        if self.conditions and isinstance(self.windows, ShiftedWindows):
            raise ValueError("Shifted windows get their condition by a function of where they lie; give one as chosen.")
        if self.conditions and len(self.chosen) != len(self.windows):
            raise ValueError(
                f"There are {len(self.windows)} windows, and {len(self.chosen)} of them have a condition; give all."
            )
        if not all(0 <= k < len(self.conditions) for own in self.chosen for k in _each(own)):
            raise ValueError(f"Windows choose conditions 0 to {len(self.conditions) - 1}, got {list(self.chosen)}.")

    def at(self, level: NoiseLevel, images: int) -> MultiDiffusion:
        """With the windows of a level in their places, and their conditions chosen; itself where both are."""
        windows, chosen, moment = self.windows, self.chosen, self.moment
        if isinstance(windows, ShiftedWindows):
            windows, moment = windows.at(level, images), float(level.t)
        if callable(chosen):
            own = [_choices(chosen, one) for one in (windows.each if isinstance(windows, WindowsPerImage) else [windows])]
            chosen = own[0] if len(own) == 1 else list(zip(*own, strict=True))
        if windows is self.windows and chosen is self.chosen:
            return self
        return replace(self, windows=windows, chosen=chosen, moment=moment)

    @property
    def placed(self) -> Windows | WindowsPerImage:
        """The windows of `at`."""
        assert not isinstance(self.windows, ShiftedWindows)
        return self.windows

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        return self.at(level, len(x))._blended(x, level, condition, context)

    def _blended(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        blend = Blend(self, x, level, context)
        chunks = list(self.chunks(len(x), range(len(self.windows))))
        for chunk in chunks or [(0,)]:  # a rank without a window evaluates one all the same, to know what there is to share
            prediction = self.evaluate(self.placed.crop(x, chunk), chunk, level, condition, context)
            blend.add(chunk, prediction, weight=1.0 if chunks else 0.0)
        return blend.prediction(x)

    def chunks(self, images: int, windows: Sequence[int]) -> Iterator[tuple[int, ...]]:
        """The windows of this process, as they are evaluated together: those of one condition next to one another."""
        ordered = sorted(windows, key=lambda i: _each(self.chosen[i]) if self.conditions else (0,))  # type: ignore[index]
        if self.group is not None:
            ordered = ordered[torch.distributed.get_rank(self.group) :: torch.distributed.get_world_size(self.group)]
        count = -(-len(ordered) // max(1, self.batch // images))
        for i in range(count):  # of nearly one size
            yield tuple(ordered[i * len(ordered) // count : (i + 1) * len(ordered) // count])

    def evaluate(
        self, rows: Tensor, chunk: tuple[int, ...], level: NoiseLevel, condition: Condition, context: Context
    ) -> Prediction:
        """What D says of windows: rows (len(chunk) B, C, h, w), in the order of `Windows.crop`."""
        images, count = len(rows) // len(chunk), len(chunk)
        told: Hashable = tuple(self.chosen[i] for i in chunk) if self.conditions else count  # type: ignore[index]
        where: Hashable = chunk if self.moment is None else (chunk, self.moment)
        told = (told, where) if condition.is_aligned or any(c.is_aligned for c in self.conditions) else told
        inside = replace(context.fork("windows", told), view=(context.view, where))
        own = inside.memo("windows", (condition,), lambda: self._condition(condition, chunk, images))
        return self.denoiser(rows, repeat_level(level, count), own, inside)

    def _condition(self, condition: Condition, chunk: tuple[int, ...], images: int) -> Condition:
        """Of the rows of a chunk. What the solver tells the network (`extra`) goes to every window."""
        conditions = []
        for i in chunk:
            one = condition
            if self.conditions:
                one = self._chosen(i, images)
                one = replace(one, extra={**one.extra, **condition.extra})
            conditions.append(one.map_aligned(partial(self._crop_to, i)))
        return conditions[0].cat(conditions[1:])

    def _crop_to(self, window: int, value: Tensor) -> Tensor:
        return self.placed.crop(value, (window,))

    def _chosen(self, window: int, images: int) -> Condition:
        """A window's own condition, of all images."""
        own = _each(self.chosen[window])  # type: ignore[index]
        if len(own) == 1:
            return expand_rows(self.conditions[own[0]], images)
        rows = [expand_rows(self.conditions[k], images)[i : i + 1] for i, k in enumerate(own)]
        return rows[0].cat(rows[1:])


class Blend:
    """The weighted mean of windows' predictions, as they come: raw, a learned variance, and the branches of guidance."""

    def __init__(self, canvas: MultiDiffusion, x: Tensor, level: NoiseLevel, context: Context):
        self.canvas, self.like, self.level, self.context = canvas, x, level, context
        self.before, windows = context.evaluations, canvas.placed
        everyone = range(len(windows))
        self.weights, self.total = context.memo(
            f"window weights {x.dtype} {x.device}", (windows,), lambda: (windows.weight(everyone).to(x), windows.total.to(x))
        )
        self.sums: dict[str, Tensor] = {}
        self.row: Row | None = None

    def add(self, chunk: Sequence[int], prediction: Prediction, rows: Tensor | None = None, weight: float = 1.0) -> None:
        """rows: what the windows held, where it is not what the canvas holds there; they are averaged too."""
        if self.row is None:
            self.row = self._row(prediction, len(chunk))
        own = self.weights if len(self.weights) == 1 else self.weights[list(chunk)]  # (chunk or 1, images or 1, 1, h, w)
        parts = {"x": rows, "raw": self._raw(prediction), "variance": prediction.variance}
        if isinstance(prediction, Guided):
            for name, branch in (("cond", prediction.cond), ("null", prediction.null)):
                parts[name] = None if branch is None else self._raw(branch)
        for name, value in parts.items():
            if value is not None:
                self._add(name, chunk, value.unflatten(0, (len(chunk), -1)) * (weight * own))

    def prediction(self, x: Tensor) -> Prediction:
        """Of the canvas x, or of the mean of the rows that were given."""
        if self.canvas.group is not None:
            self._share(self.canvas.group)
        # equation 5 (arXiv 2302.08113)
        mean, row, level = {name: total / self.total for name, total in self.sums.items()}, self.row, self.level
        assert row is not None
        x = mean.get("x", x)
        if "cond" not in mean and "null" not in mean:
            return Prediction(x, level, mean["raw"], row, mean.get("variance"))
        cond, null = (Prediction(x, level, mean[name], row) if name in mean else None for name in ("cond", "null"))
        return Guided(x, level, mean["raw"], row, mean.get("variance"), cond, null)

    def _row(self, prediction: Prediction, count: int) -> Row:
        if self.canvas.group is not None and not isinstance(self.level.alpha, Tensor) and self.level.alpha:
            return -self.level.sigma, self.level.alpha  # one for all ranks, whatever each of them got
        a, b = (v[: len(v) // count] if isinstance(v, Tensor) and v.ndim else v for v in prediction.row)
        return a, b

    def _raw(self, prediction: Prediction) -> Tensor:
        """In the row of the first window: a cache may give one window's x0 and another one's eps."""
        same = any(isinstance(v, Tensor) for v in prediction.row) or prediction.row == self.row
        return prediction.raw if same else prediction.read(self.row)  # type: ignore[arg-type]

    def _add(self, name: str, chunk: Sequence[int], value: Tensor) -> None:
        if name not in self.sums:
            self.sums[name] = value.new_zeros(len(self.like), value.shape[2], *self.canvas.windows.canvas)
        for index, one in zip(chunk, value, strict=True):
            self.canvas.placed.add(self.sums[name], one, index)

    def _share(self, group: Any) -> None:
        """Sum over all ranks what each of them has, the count of evaluations too."""
        if any(total.requires_grad for total in self.sums.values()):
            raise ValueError("Windows on several ranks have no gradients: leave group out where guidance needs them.")
        for name in sorted(self.sums):
            torch.distributed.all_reduce(self.sums[name], group=group)
        own = self.context.evaluations - self.before
        everyone = torch.tensor(own, device=self.like.device)
        torch.distributed.all_reduce(everyone, group=group)
        self.context.count(int(everyone) - own)


def _each(chosen: int | tuple[int, ...]) -> tuple[int, ...]:
    return chosen if isinstance(chosen, tuple) else (chosen,)


def _choices(chooser: Chooser, windows: Windows) -> list[int]:
    """What windows choose, by their middles."""
    return [
        chooser(
            *((begin + own / 2) / whole % 1 for begin, own, whole in zip(corner, windows.size, windows.canvas, strict=True))
        )
        for corner in windows.corners
    ]
