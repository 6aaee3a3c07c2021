"""A cube's surface: neighbours in a view are neighbours in space, and nothing is lost on the way to the views and back."""

from __future__ import annotations

import pytest
import torch

from samplers import Condition
from samplers.canvas.cube import EDGES, FACES, cube_views, flat_index, net, surface_points
from samplers.canvas.sync_tweedies import CanonicalDenoiser, SyncTweedies, project, unproject
from tests.samplers.canvases import LookAround, draw
from tests.samplers.toy_models import FLOW, run

SIDE = 6


def test_the_surface_is_a_cubes():
    points = surface_points(SIDE)
    assert points.shape == (SIDE, 6 * SIDE, 3) and len(set(map(tuple, points.reshape(-1, 3).tolist()))) == 6 * SIDE**2
    assert (points.abs().amax(-1) == SIDE).all() and ((points.abs() == SIDE).sum(-1) == 1).all()
    front, top, bottom = points[:, :SIDE], points[:, 4 * SIDE : 5 * SIDE], points[:, 5 * SIDE :]
    assert (front[..., 2] == SIDE).all() and (front[:, 0, 0] == 1 - SIDE).all() and (front[0, :, 1] == 1 - SIDE).all()
    # seen from outside: to the right, times down, points outwards for none of them (x right, y down, z towards the viewer)
    for face in range(6):
        one = points[:, face * SIDE : (face + 1) * SIDE].double()
        across, down = one[0, 1] - one[0, 0], one[1, 0] - one[0, 0]
        assert (torch.linalg.cross(across, down) @ one[0, 0]).item() > 0
    assert (top[-1] - front[0]).abs().amax() == 1 and (bottom[0] - front[-1]).abs().amax() == 1


@pytest.mark.parametrize("where", [(face, 0, 0) for face in range(6)] + EDGES, ids=str)
def test_a_view_is_flat(where):
    """Neighbours in a view are one pixel apart on the surface, across an edge too; no two pixels are the same."""
    index = flat_index(SIDE, *where)
    seen = surface_points(SIDE).reshape(-1, 3)[index]
    assert len(index.unique()) == SIDE**2
    for axis in (0, 1):
        apart = seen.diff(dim=axis).abs()
        folded = apart.amax(-1) == 1  # half a pixel on either side of an edge
        assert ((apart.sum(-1) == 2).all() and ((apart.amax(-1) == 2) | folded).all()) and folded.sum() in (0, SIDE)
    faces = {int(i) % (6 * SIDE) // SIDE for i in index.reshape(-1)}
    assert len(faces) == (1 if where[1:] == (0, 0) else 2) and where[0] in faces


def test_every_edge_is_seen_once():
    pairs = [frozenset(int(i) % (6 * SIDE) // SIDE for i in flat_index(SIDE, *edge).reshape(-1)) for edge in EDGES]
    opposite = [frozenset(pair) for pair in ((0, 2), (1, 3), (4, 5))]
    assert len(set(pairs)) == len(pairs) == 12 and not set(pairs) & set(opposite)


def test_there_and_back_is_exact():
    views, texture = cube_views(SIDE, [None] * 6), draw(2, 3, SIDE, 6 * SIDE)
    assert len(views) == 18
    torch.testing.assert_close(unproject(views, project(views, texture)), texture, rtol=0, atol=1e-14)
    for view in views:
        assert torch.equal(view.project(view.unproject(view.project(texture))), view.project(texture))


def test_a_run_on_the_cube_keeps_its_views_together():
    """One x on the surface is one x per view from the same noise; a face is told its own condition."""
    faces = [Condition(label=torch.tensor([k])) for k in range(6)]
    views, x = cube_views(SIDE, faces, Condition(label=torch.tensor([-1]))), draw(1, 3, SIDE, 6 * SIDE)
    texture = run(CanonicalDenoiser(LookAround(FLOW), views), x, "dpmpp_2m")
    rows = run(SyncTweedies(LookAround(FLOW), views), project(views, x), "dpmpp_2m")
    torch.testing.assert_close(rows, project(views, texture), rtol=0, atol=1e-12)
    other = cube_views(SIDE, [*faces[:5], Condition(label=torch.tensor([-5]))], Condition(label=torch.tensor([-1])))
    changed = (
        (
            run(CanonicalDenoiser(LookAround(FLOW), other), x, "dpmpp_2m", steps=2)
            - run(CanonicalDenoiser(LookAround(FLOW), views), x, "dpmpp_2m", steps=2)
        )
        .abs()
        .amax((0, 1, 2))
        .reshape(6, SIDE)
    )
    assert changed[5].max() > 0.1 and FACES[5] == "bottom"


def test_the_net_has_every_face_in_place():
    strip = torch.arange(6.0).repeat_interleave(2).reshape(1, 1, 1, 12).expand(1, 1, 2, 12)
    assert net(strip)[0, 0, ::2, ::2].tolist() == [[4, 1, 1, 1], [0, 1, 2, 3], [5, 1, 1, 1]]


def test_errors_are_sentences():
    for side, faces in ((5, 6), (4, 5), (0, 6)):
        with pytest.raises(ValueError, match="six faces of an even number of pixels"):
            cube_views(side, [None] * faces)
