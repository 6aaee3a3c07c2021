"""The surface of a cube as one thing that is seen through flat views: its faces, and its edges laid flat.

The canonical thing is the six faces side by side, (B, C, s, 6 s): front, right, back, left, top, bottom, each as seen from
outside, the top with the front below it and the bottom with the front above it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from samplers.canvas.sync_tweedies import View, index_view
from samplers.canvas.windows import profile_weights
from samplers.denoiser import Condition

FACES = ("front", "right", "back", "left", "top", "bottom")
# per face, (outwards, to the right, down) with x to the right of the front, y down and z towards the viewer
FRAMES = torch.tensor(
    [
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
        [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
        [[0, 0, -1], [-1, 0, 0], [0, 1, 0]],
        [[-1, 0, 0], [0, 0, 1], [0, 1, 0]],
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        [[0, 1, 0], [1, 0, 0], [0, 0, -1]],
    ]
)
# (face, half sides down, half sides to the right): the four sides, then what lies half on one of them and half on its neighbour
EDGES = [(face, *move) for move in ((0, 1), (-1, 0), (1, 0)) for face in range(4)]


def surface_points(side: int) -> Tensor:
    """Where the pixels of the canonical thing lie, (side, 6 side, 3), in half pixels from the cube's middle."""
    along = 2 * torch.arange(side) + 1 - side
    points = [n * side + along[None, :, None] * r + along[:, None, None] * d for n, r, d in FRAMES]
    return torch.cat(points, dim=1)


def flat_index(side: int, face: int, down: int = 0, right: int = 0) -> Tensor:
    """The index (side, side) of a view of a face, or of what lies so many half sides further, the surface laid flat there."""
    n, r, d = FRAMES[face]
    along = 2 * torch.arange(side) + 1 - side
    i, j = (along + down * side).reshape(-1, 1, 1), (along + right * side).reshape(1, -1, 1)
    points = n * side + i * d + j * r
    for step, axis in ((i, d), (j, r)):  # what is beyond an edge goes on along the neighbouring face
        beyond = step.abs() > side
        folded = points - step * axis + step.sign() * side * axis - (step.abs() - side) * n
        points = torch.where(beyond, folded, points)
    number = {tuple(point): k for k, point in enumerate(surface_points(side).reshape(-1, 3).tolist())}
    return torch.tensor([number[tuple(point)] for point in points.reshape(-1, 3).tolist()]).reshape(side, side)


def cube_views(side: int, faces: Sequence[Condition | None], edge: Condition | None = None) -> tuple[View, ...]:
    """The six faces, each with its condition, and the twelve edges between them, as views (side, side) for `CanonicalDenoiser`.

    Weights fall from a view's middle to its border, so that faces fade into the views of their edges. Each pixel of a view is
    one of the surface: noise stays white, and nothing is lost on the way there and back. side: even; None: the run's condition.
    """
    if side < 2 or side % 2 or len(faces) != len(FACES):
        raise ValueError(
            f"A cube has six faces of an even number of pixels; {len(faces)} conditions and a side of {side} were given."
        )
    fade = profile_weights("linear", (side, side)).reshape(-1)
    views = []
    for where, condition in [*(((face,), c) for face, c in enumerate(faces)), *((place, edge) for place in EDGES)]:
        index = flat_index(side, *where)
        weight = torch.zeros(side * 6 * side, dtype=torch.float64).index_copy(0, index.reshape(-1), fade)
        views.append(index_view(index, side, 6 * side, condition, weight.reshape(1, 1, side, 6 * side)))
    return tuple(views)


def net(strip: Tensor) -> Tensor:
    """The faces (B, C, s, 6 s) as the cube unfolded, (B, C, 3 s, 4 s): 1 where there is no face."""
    side = strip.shape[2]
    canvas = strip.new_ones(*strip.shape[:2], 3 * side, 4 * side)
    canvas[:, :, side : 2 * side] = strip[..., : 4 * side]
    canvas[:, :, :side, :side], canvas[:, :, 2 * side :, :side] = strip[..., 4 * side : 5 * side], strip[..., 5 * side :]
    return canvas
