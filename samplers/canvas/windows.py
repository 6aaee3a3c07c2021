"""Where the windows of a canvas lie, and how much each of their pixels counts.

Canvases and what is aligned with them are (B, C, H, W); windows (h, w), one size for all of a canvas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# name -> weight of a pixel by its distance from the window's middle, 0 to 1 at the edge; above 0 wherever a pixel can be
PROFILES: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": torch.ones_like,
    "linear": lambda u: 1 - u,
    "cosine": lambda u: torch.cos(math.pi / 2 * u).square(),
    "gaussian": lambda u: torch.exp(-(u**2) / (2 * 0.4**2)),
}


def starts(length: int, window: int, stride: int, wrap: bool = False) -> tuple[int, ...]:
    """Where windows begin along an axis: every `stride` pixels, the last one aligned to the edge.

    wrap: the axis is a circle, and windows, some of which go across its end, are spread evenly over it, at most `stride`
    apart; where stride divides length they are exactly that far apart.
    """
    if not 1 <= window <= length:
        raise ValueError(f"A window of {window} does not fit a canvas of {length}; give at most {length}, or a larger canvas.")
    if not 1 <= stride <= window:
        raise ValueError(f"A stride of {stride} is not possible with windows of {window}: give 1 to {window}, without gaps.")
    if wrap:
        count = -(-length // stride)
        return tuple(i * length // count for i in range(count))
    return (*range(0, length - window, stride), length - window)


@dataclass(frozen=True)
class Windows:
    """Windows of one size on a canvas: canvas (H, W), size (h, w), corners the (top, left) of each.

    profile: how weights fall from a window's middle to its edge (`PROFILES`), or weights (h, w) of your own. wrap: whether the
    canvas is a circle (vertically, horizontally): only there may a window go across its end. origins: where each window's
    weights begin, if not at its corner: one that would hang over an edge is moved inside and keeps the weights that it would
    have there, 0 where it would not reach. Raises ValueError if a window leaves the canvas or a pixel has no weight.
    """

    canvas: tuple[int, int]
    size: tuple[int, int]
    corners: tuple[tuple[int, int], ...]
    profile: str | Tensor = "cosine"
    wrap: tuple[bool, bool] = (False, False)
    origins: tuple[tuple[int, int], ...] | None = None

    @classmethod
    def regular(
        cls,
        canvas: tuple[int, int],
        size: tuple[int, int],
        stride: tuple[int, int],
        profile: str | Tensor = "cosine",
        wrap: tuple[bool, bool] = (False, False),
    ) -> Windows:
        """A lattice of windows that covers any canvas at least as large as one of them; see `starts`."""
        rows, columns = (starts(*one) for one in zip(canvas, size, stride, wrap, strict=True))
        return cls(canvas, size, tuple((top, left) for top in rows for left in columns), profile, wrap)

    def __post_init__(self) -> None:
        for length, window in zip(self.canvas, self.size, strict=True):
            starts(length, window, 1)
        if isinstance(self.profile, str) and self.profile not in PROFILES:
            raise ValueError(f"Unknown window weights {self.profile!r}: choose one of {', '.join(PROFILES)}.")
        own = self.profile
        if isinstance(own, Tensor) and (own.shape != self.size or not bool(((own >= 0) & own.isfinite()).all())):
            raise ValueError(f"Window weights of shape {tuple(own.shape)} were given; give finite ones from 0 up, {self.size}.")
        if self.origins is not None and len(self.origins) != len(self.corners):
            raise ValueError(
                f"{len(self.corners)} windows have {len(self.origins)} origins of their weights; give one for each."
            )
        for corner in self.corners:
            for start, length, window, wrap in zip(corner, self.canvas, self.size, self.wrap, strict=True):
                if not 0 <= start < length or (start + window > length and not wrap):
                    raise ValueError(f"The window of {self.size} at {corner} leaves the canvas of {self.canvas}; move it in.")
        missing = int((self.total <= 0).sum())
        if missing:
            raise ValueError(
                f"{missing} of the canvas' {self.canvas[0] * self.canvas[1]} pixels lie in no window, or have no weight there: "
                "give more windows, or larger ones."
            )

    def __len__(self) -> int:
        return len(self.corners)

    @cached_property
    def weights(self) -> Tensor:
        """(h, w) in float64: what the pixels of a window within the canvas count, before they are normalised."""
        return profile_weights(self.profile, self.size)

    def weight(self, indices: Sequence[int]) -> Tensor:
        """What the pixels of windows count, in float64: (len(indices), 1, 1, h, w), or (1, 1, 1, h, w) for all of them."""
        if self.origins is None:
            return self.weights[None, None, None]
        found = []
        for index in indices:
            own = self.weights
            for axis, (start, origin) in enumerate(zip(self.corners[index], self.origins[index], strict=True)):
                own = _moved(own, axis, origin - start)
            found.append(own)
        return torch.stack(found)[:, None, None]

    @cached_property
    def total(self) -> Tensor:
        """(H, W) in float64: the sum of all windows' weights at every pixel."""
        total = torch.zeros(self.canvas, dtype=torch.float64)
        for index in range(len(self)):
            self.add(total, self.weight((index,))[0, 0, 0], index)
        return total

    def sides(self, index: int) -> list[list[tuple[slice, slice]]]:
        """Vertically and horizontally, (where on the canvas, where in the window): one piece, or two where it wraps."""
        by_side = []
        for start, length, window in zip(self.corners[index], self.canvas, self.size, strict=True):
            inside = min(window, length - start)
            pieces = [(slice(start, start + inside), slice(0, inside))]
            by_side.append(pieces if inside == window else [*pieces, (slice(0, window - inside), slice(inside, window))])
        return by_side

    def crop(self, x: Tensor, indices: Sequence[int]) -> Tensor:
        """(len(indices) B, C, h, w) of a canvas (B, C, H, W): all images' first window, then all images' second, and so on."""
        self.check(x)
        out = []
        for index in indices:
            rows, columns = self.sides(index)
            part = x[..., rows[0][0], :] if len(rows) == 1 else torch.cat([x[..., there, :] for there, _ in rows], dim=-2)
            out.append(
                part[..., columns[0][0]] if len(columns) == 1 else torch.cat([part[..., there] for there, _ in columns], dim=-1)
            )
        return torch.cat(out)

    def add(self, canvas: Tensor, value: Tensor, index: int) -> None:
        """Add a window's values (..., h, w) to a canvas (..., H, W), in place."""
        rows, columns = self.sides(index)
        for down, from_down in rows:
            for across, from_across in columns:
                canvas[..., down, across] += value[..., from_down, from_across]

    def check(self, x: Tensor) -> None:
        if tuple(x.shape[-2:]) != self.canvas:
            raise ValueError(
                f"The windows are for a canvas of {self.canvas}, and x is {tuple(x.shape)}: make them for its size."
            )


def profile_weights(profile: str | Tensor, size: tuple[int, int]) -> Tensor:
    """(h, w) in float64, of a name (`PROFILES`) or weights of one's own."""
    if isinstance(profile, Tensor):
        return profile.double()
    down, across = (PROFILES[profile]((2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1).abs()) for n in size)
    return down[:, None] * across


def _moved(weights: Tensor, axis: int, by: int) -> Tensor:
    """(h, w) moved by so many pixels along an axis, 0 where nothing comes in."""
    if not by:
        return weights
    along = torch.arange(weights.shape[axis]) - by
    inside = (along >= 0) & (along < len(along))
    return weights.index_select(axis, along.clamp(0, len(along) - 1)) * inside.unsqueeze(1 - axis)
