"""Colours that run on into a hole from what is around it: Poisson's equation on the hole's pixels.

Conjugate gradients with one V-cycle of multigrid as their preconditioner, in the smallest window that holds the hole: a dozen
rounds whatever its size, where plain conjugate gradients need as many as the hole has pixels across.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

DAMPING = 0.8  # of Jacobi's steps, the best in the plane (Trottenberg, Oosterlee and Schüller 2001, "Multigrid", section 2.1)
SWEEPS = 2  # before and after the coarser grid
MOST = 200  # rounds
ENOUGH = 1e-8  # of the residual at the start
_WEIGHTS = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4  # bilinear interpolation between the middles of cells


def run_on(picture: Tensor, hole: Tensor, guess: Tensor | None = None, *, progress: bool = False) -> Tensor:
    """Pictures (1, 3, H, W) whose hole (1, 1, H, W) is filled so that it runs on from what is around it.

    Inside the hole the Laplacian is that of `guess`, or zero, and at its edge are the picture's colours: Poisson's equation
    (Perez, Gangnet and Blake 2003, "Poisson image editing", equation 3). Outside it is the picture, to the bit.
    progress: show a bar.
    """
    inside = hole > 0
    rows, columns = (inside[0, 0].any(side).nonzero()[:, 0] for side in (1, 0))
    if not len(rows):
        return picture.clone()
    # a pixel more on each side: at its edge are known colours, or the picture's own edge
    window = (..., slice(max(int(rows[0]) - 1, 0), int(rows[-1]) + 2), slice(max(int(columns[0]) - 1, 0), int(columns[-1]) + 2))
    known, open_ = picture[window], inside[window]
    source = torch.zeros_like(known) if guess is None else guess[window]
    # what is added to `source`: harmonic inside, and known outside
    difference = torch.where(open_, torch.zeros_like(known), known - source)
    added = _solved(open_, -_laplacian(difference, open_), progress)
    filled = picture.clone()
    filled[window] = torch.where(open_, (source + added).clamp(0, 1), known)
    return filled


def _laplacian(x: Tensor, inside: Tensor) -> Tensor:
    """Of a window whose edge reflects: 4 x less its neighbours inside, zero elsewhere."""
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    around = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
    return torch.where(inside, 4 * x - around, torch.zeros_like(x))


def _solved(inside: Tensor, right: Tensor, progress: bool) -> Tensor:
    """x (1, 3, H, W), zero outside, whose Laplacian inside is `right`."""
    x, residual = torch.zeros_like(right), right
    start = float(residual.square().sum())
    if not start > 0:
        return x
    from tqdm import tqdm

    grids, precise = _grids(inside), right.dtype
    direction, last = torch.zeros_like(right), torch.ones(())
    shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"
    with tqdm(total=100, desc="Filling in", bar_format=shape, leave=False, disable=None if progress else True) as bar:
        for _ in range(MOST):
            share = math.sqrt(float(residual.square().sum()) / start)
            bar.update(max(round(100 * math.log(max(share, ENOUGH)) / math.log(ENOUGH)) - bar.n, 0))
            if share <= ENOUGH:
                break
            better = _cycle(grids, residual.float()).to(precise)  # only a direction to search in: single precision does
            size = (residual * better).sum((2, 3), keepdim=True)
            direction = better + size / last.clamp_min(1e-300) * direction
            moved = _laplacian(direction, inside)
            step = size / (direction * moved).sum((2, 3), keepdim=True).clamp_min(1e-300)
            x, residual, last = x + step * direction, residual - step * moved, size
    return x


@dataclass(frozen=True)
class _Grid:
    """inside: of its pixels (1, 1, h, w). pull: of Jacobi's steps, DAMPING / diagonal; zero outside, where nothing moves."""

    inside: Tensor
    pull: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.inside.shape[2], self.inside.shape[3]


def _grids(inside: Tensor) -> list[_Grid]:
    """The window, and coarser ones as long as the hole has pixels in them: a coarse pixel is inside where all of its own are,
    so that known colours stay known."""
    grids = []
    while bool(inside.any()):
        height, width = inside.shape[2:]
        diagonal = 4.0 - _edges(height)[:, None] - _edges(width)[None]  # a side that reflects has one neighbour less
        pull = DAMPING / diagonal.clamp_min(1).to(inside.device)
        grids.append(_Grid(inside, torch.where(inside, pull, 0.0)))
        if max(height, width) == 1:
            break
        inside = F.max_pool2d((~inside).float(), 2, ceil_mode=True) == 0
    return grids


def _edges(length: int) -> Tensor:
    """1 at both ends of a side, 2 where they are one."""
    ends = torch.zeros(length)
    ends[0] += 1
    ends[-1] += 1
    return ends


def _cycle(grids: list[_Grid], right: Tensor) -> Tensor:
    """About the solution of a right side: a V-cycle, symmetric, as conjugate gradients need it."""
    grid, coarser = grids[0], grids[1:]
    x = grid.pull * right
    for _ in range(SWEEPS - 1):
        x = x + grid.pull * (right - _laplacian(x, grid.inside))
    if coarser:
        left = right - _laplacian(x, grid.inside)
        larger = _cycle(coarser, _gathered(left, coarser[0].inside))
        x = x + torch.where(grid.inside, _spread(larger, grid.size), 0.0)
    for _ in range(SWEEPS):
        x = x + grid.pull * (right - _laplacian(x, grid.inside))
    return x


def _kernel(like: Tensor) -> Tensor:
    """Weights of the plane, the same for every channel of `like`."""
    return (_WEIGHTS[:, None] * _WEIGHTS[None]).to(like).expand(like.shape[1], 1, 4, 4)


def _spread(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A coarse grid's values on the finer one of a size, interpolated."""
    return F.conv_transpose2d(x, _kernel(x), stride=2, padding=1, groups=x.shape[1])[..., : size[0], : size[1]]


def _gathered(x: Tensor, inside: Tensor) -> Tensor:
    """The transpose of `_spread`: a fine grid's residual on the coarse one. As its pixels are twice as wide, sums of four are
    the same equation there."""
    even = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
    return torch.where(inside, F.conv2d(even, _kernel(x), stride=2, padding=1, groups=x.shape[1]), 0.0)
