"""Shifted windows: a canvas whose windows lie elsewhere at every noise level, so that no place of it is a border.

Canvases (B, C, H, W), windows (h, w); every picture of a batch has offsets of its own, from its own seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from samplers.canvas.windows import Windows, starts
from samplers.interval import EVERYWHERE, Interval, check_interval
from samplers.noise import fold
from samplers.path import NoiseLevel


@dataclass(frozen=True)
class ShiftedWindows:
    """A lattice of windows (`Windows.regular`) that is moved at every level, by less than its stride along each axis.

    The offset is a function of (seed, clock of the level) and nothing else: repeated steps, replays, resumed runs and several
    ranks see the same windows, whatever the solver. seeds: one per picture, or one for all. interval: of log-SNR; at other
    levels the offset is 0.

    On a circle windows go across the end, as many as of a lattice that stays. Between edges one more is needed along an axis
    (unless the stride is 1): a window that would hang over an edge is moved inside, and its weights are those of where it would
    lie, so that the borders that count are spread evenly. An axis of one window between edges does not move.

    Source: SpotDiffusion, arXiv 2407.15507, whose windows do not overlap: stride = size. Smaller strides serve as well.
    """

    canvas: tuple[int, int]
    size: tuple[int, int]
    stride: tuple[int, int]
    profile: str | Tensor = "linear"
    wrap: tuple[bool, bool] = (False, False)
    seeds: tuple[int, ...] = (0,)
    interval: Interval = EVERYWHERE

    def __post_init__(self) -> None:
        check_interval(self.interval)
        if not self.seeds:
            raise ValueError("Shifted windows need a seed, one for all pictures or one for each.")
        self.moved_by((0, 0))  # refuses what does not fit, or is not covered

    def __len__(self) -> int:
        return len(self._still)

    @cached_property
    def _still(self) -> Windows:
        return self.moved_by((0, 0))

    def offsets(self, level: NoiseLevel, seed: int) -> tuple[int, int]:
        """Pixels, (down, across), by which the lattice is moved up and left between edges, down and right on a circle."""
        if isinstance(level.t, Tensor):
            raise ValueError("Windows move with the level of a run; these are levels of single pictures, as in training.")
        if not self.interval[0] <= level.logsnr <= self.interval[1]:
            return 0, 0
        down, across = (
            fold(seed, "windows", axis, float(level.t)) % self.period(axis) if self.moves(axis) else 0 for axis in (0, 1)
        )
        return down, across

    def moves(self, axis: int) -> bool:
        return self.wrap[axis] or self.size[axis] < self.canvas[axis]

    def period(self, axis: int) -> int:
        """How many offsets there are: as many as pixels from one window to the next, at most."""
        if not self.wrap[axis]:
            return self.stride[axis]
        return -(-self.canvas[axis] // len(starts(self.canvas[axis], self.size[axis], self.stride[axis], True)))

    def moved_by(self, offsets: tuple[int, int]) -> Windows:
        """The windows at offsets (down, across)."""
        rows, columns = (self._along(axis, offset) for axis, offset in enumerate(offsets))
        pairs = [(row, column) for row in rows for column in columns]
        corners = tuple((row[0], column[0]) for row, column in pairs)
        origins = tuple((row[1], column[1]) for row, column in pairs)
        return Windows(self.canvas, self.size, corners, self.profile, self.wrap, None if origins == corners else origins)

    def _along(self, axis: int, offset: int) -> list[tuple[int, int]]:
        """(where a window begins, where its weights do) along an axis."""
        length, window, stride = self.canvas[axis], self.size[axis], self.stride[axis]
        begins = starts(length, window, stride, self.wrap[axis])
        if self.wrap[axis]:
            return [((begin + offset) % length,) * 2 for begin in begins]
        if not self.moves(axis):
            return [(0, 0)]
        count = -(-(length - window + stride - 1) // stride) + 1
        origins = [k * stride - offset for k in range(count)]
        return [(min(max(origin, 0), length - window), origin) for origin in origins]

    def at(self, level: NoiseLevel, images: int) -> Windows | WindowsPerImage:
        """The windows of a level, for so many pictures: row i has seed i, from the first again where there are fewer seeds."""
        found = {seed: self.moved_by(self.offsets(level, seed)) for seed in dict.fromkeys(self.seeds)}
        if len(found) == 1:
            return next(iter(found.values()))
        return WindowsPerImage(tuple(found[self.seeds[i % len(self.seeds)]] for i in range(images)))


@dataclass(frozen=True)
class WindowsPerImage:
    """As many windows for every picture of a batch, of one size, each picture's where it has them. Otherwise as `Windows`."""

    each: tuple[Windows, ...]

    def __len__(self) -> int:
        return len(self.each[0])

    @property
    def canvas(self) -> tuple[int, int]:
        return self.each[0].canvas

    @property
    def size(self) -> tuple[int, int]:
        return self.each[0].size

    @cached_property
    def total(self) -> Tensor:
        """(B, 1, H, W)."""
        return torch.stack([one.total for one in self.each])[:, None]

    def weight(self, indices: Sequence[int]) -> Tensor:
        """(len(indices) or 1, B, 1, h, w)."""
        own = [one.weight(indices).expand(len(indices), 1, 1, *self.size) for one in self.each]
        return torch.cat(own, dim=1)

    def crop(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        return torch.cat([one.crop(x[i : i + 1], (index,)) for index in indices for i, one in enumerate(self.each)])

    def add(self, canvas: Tensor, value: Tensor, index: int) -> None:
        for i, one in enumerate(self.each):
            one.add(canvas[i : i + 1], value[i : i + 1], index)
