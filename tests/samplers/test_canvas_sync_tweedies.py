"""Views denoised together: against the mean over windows and over turned pictures, written out."""

import math
import re

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow
from samplers.canvas.sync_tweedies import (
    CanonicalDenoiser,
    SyncTweedies,
    View,
    cylinder_view,
    grid_index,
    index_view,
    project,
    unproject,
)
from samplers.prediction import Prediction
from tests.samplers.toy_models import SOLVERS, Toy, far, prompt, rand, run

SIDE = 6
X = rand(2, 3, SIDE, SIDE)
LEVEL = RectifiedFlow()(0.6)
GRID = grid_index(SIDE, SIDE)
SHUFFLED = torch.randperm(SIDE * SIDE, generator=torch.Generator().manual_seed(2)).reshape(SIDE, SIDE)
PLAIN = index_view(GRID, SIDE, SIDE)
INDICES = {"turned": GRID.rot90(2), "quarter": GRID.rot90(1), "mirrored": GRID.flip(1), "permuted": SHUFFLED}


class Windows:
    """MultiDiffusion, written out: the weighted mean over crops of what the network says about each."""

    def __init__(self, toy, lefts, width, weight):
        self.toy, self.lefts, self.width, self.weight, self.path = toy, lefts, width, weight, toy.path

    def __call__(self, x, level, condition, context):
        total, count = torch.zeros_like(x), torch.zeros_like(x)
        for i, left in enumerate(self.lefts):
            crop = (..., slice(left, left + self.width))
            own = prompt(i, len(x))
            total[crop] += self.weight * self.toy(x[crop], level, own, context).x0
            count[crop] += self.weight
        return Prediction(x, level, total / count, (1.0, 0.0))


def crops(lefts, width, columns, weight):
    index, own = grid_index(SIDE, columns), torch.zeros(1, 1, SIDE, columns, dtype=torch.float64)

    def placed(left):
        full = own.clone()
        full[..., left : left + width] = weight
        return full

    views = [index_view(index[:, a : a + width], SIDE, columns, prompt(i), placed(a)) for i, a in enumerate(lefts)]
    return tuple(views)


@pytest.mark.parametrize("solver", SOLVERS)
def test_crops_are_multidiffusion(solver):
    lefts, width, columns = (0, 3, 7, 9), 6, 15
    weight = torch.linspace(0.2, 1.7, width, dtype=torch.float64)  # not symmetric
    views, noise = crops(lefts, width, columns, weight), rand(2, 3, SIDE, columns, seed=4)
    expected = run(Windows(Toy(), lefts, width, weight), noise, solver)
    assert far(run(CanonicalDenoiser(Toy(), views), noise, solver), expected) < 1e-12
    instances = run(SyncTweedies(Toy(), views), project(views, noise), solver)
    assert far(unproject(views, instances), expected) < 1e-12
    assert far(project(views, expected), instances) < 1e-12  # views agree where they overlap
    backwards = run(CanonicalDenoiser(Toy(), views[::-1]), noise, solver)
    assert far(backwards, expected) < 1e-12


@pytest.mark.parametrize("name", INDICES)
def test_views_that_move_pixels(name):
    index = INDICES[name]
    views = (index_view(GRID, SIDE, SIDE, prompt(0)), index_view(index, SIDE, SIDE, prompt(1)))
    toy = Toy()
    x0 = CanonicalDenoiser(toy, views)(X, LEVEL, Condition(), Context()).x0
    assert [rows for rows, *_ in toy.calls] == [4]

    def seen(v):
        return torch.stack([v.flatten(2)[..., i] for i in index.flatten()], -1).reshape(v.shape)

    def back(v):
        out = torch.zeros_like(v).flatten(2)
        for place, i in enumerate(index.flatten()):
            out[..., i] = v.flatten(2)[..., place]
        return out.reshape(v.shape)

    own = [prompt(i, 2) for i in range(2)]
    expected = (Toy()(X, LEVEL, own[0], Context()).x0 + back(Toy()(seen(X), LEVEL, own[1], Context()).x0)) / 2
    assert far(x0, expected) < 1e-14
    assert (
        far(run(CanonicalDenoiser(Toy(), views), X), unproject(views, run(SyncTweedies(Toy(), views), project(views, X))))
        < 1e-12
    )


def test_a_single_view_is_the_network_and_the_runs_condition_is_shared():
    view = (index_view(GRID, SIDE, SIDE),)
    plain = run(Toy(), X, condition=prompt(0, 2))
    for composed in (CanonicalDenoiser(Toy(), view), SyncTweedies(Toy(), view)):
        assert far(run(composed, X, condition=prompt(0, 2)), plain) < 1e-12
    turned = (*view, index_view(INDICES["turned"], SIDE, SIDE))
    one = run(CanonicalDenoiser(Toy(), turned), X[1:], condition=prompt(0))
    both = run(CanonicalDenoiser(Toy(), turned), X, condition=prompt(0, 2))
    assert far(one, both[1:]) < 1e-12 and far(one, plain[1:]) > 0.01
    # four rows of a stack: each view has its own two
    rows = Condition(tokens=rand(4, 1, 3, seed=8))
    said = SyncTweedies(Toy(), turned)(project(turned, X), LEVEL, rows, Context())
    a, b = (Toy()(v, LEVEL, rows[i], Context()).x0 for v, i in zip(project(turned, X).chunk(2), ([0, 1], [2, 3]), strict=True))
    assert far(said.x0[:2], (a + b.flip(2, 3)) / 2) < 1e-14


def test_a_prompt_reaches_only_what_its_view_shows():
    tokens = [rand(1, 1, 3, seed=i).requires_grad_() for i in range(2)]
    index = grid_index(SIDE, 10)
    views = tuple(index_view(index[:, a : a + 6], SIDE, 10, Condition(tokens=t)) for a, t in zip((0, 4), tokens, strict=True))
    x0 = CanonicalDenoiser(Toy(), views)(rand(1, 3, SIDE, 10), LEVEL, Condition(), Context()).x0
    for column, reached in ((0, (True, False)), (5, (True, True)), (9, (False, True))):
        for token, expected in zip(tokens, reached, strict=True):
            [gradient] = torch.autograd.grad(x0[..., column].sum(), token, retain_graph=True)
            assert bool(gradient.abs().sum() > 0) is expected


def test_functions_of_the_callers_own():
    """An invertible linear map between spaces of other shapes: the mean is taken on the canonical side."""
    mix = rand(4, 3, seed=6)
    back = torch.linalg.pinv(mix)

    def channels(matrix):
        return lambda v: torch.einsum("oc,bchw->bohw", matrix, v)

    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    views = (
        View(channels(back), channels(mix), one),
        View(lambda c: channels(back)(c.flip(3)), lambda v: channels(mix)(v).flip(3), one),
    )
    noise = torch.cat([X, rand(2, 3, SIDE, SIDE, seed=7)])
    said = SyncTweedies(Toy(), views)(noise, LEVEL, prompt(0), Context()).x0
    own = Toy()(noise, LEVEL, prompt(0, 4), Context()).x0
    agreed = (channels(mix)(own[:2]) + channels(mix)(own[2:]).flip(3)) / 2
    assert far(said[:2], channels(back)(agreed)) < 1e-12 and far(said[2:], channels(back)(agreed.flip(3))) < 1e-12


def test_an_index_takes_the_mean_where_it_shows_a_pixel_twice():
    index = torch.tensor([[0, 1, 1], [3, 2, 1]])
    view = index_view(index, 2, 3)
    c = rand(2, 3, 2, 3)
    assert torch.equal(view.project(c)[0, 0], c[0, 0].flatten()[index])
    values = rand(2, 3, 2, 3, seed=1)
    back = view.unproject(values).flatten(2)
    assert far(back[..., 1], values.flatten(2)[..., [1, 2, 5]].mean(-1)) < 1e-15
    assert torch.equal(back[..., 3], values.flatten(2)[..., 3]) and not back[..., 4:].any()
    assert view.weight.flatten().tolist() == [1, 1, 1, 1, 0, 0]
    assert far(view.unproject(view.project(c)), c * view.weight) < 1e-15


def test_a_cylinder_is_seen_from_all_around():
    height, width, side = 4, 64, 20
    views = tuple(cylinder_view(height, width, 2 * math.pi * i / 8, side) for i in range(8))
    texture = rand(2, 3, height, width)
    assert far(unproject(views, project(views, texture)), texture) < 1e-12
    middle = views[2].project(texture)[..., side // 2]
    assert torch.equal(middle, texture[..., 16])  # a quarter around
    assert views[0].weight[0, 0, 0].argmax() in (0, 63) and views[0].weight[0, 0, 0, 32] == 0
    turned = run(CanonicalDenoiser(Toy(), views), texture.roll(8, -1), condition=prompt(0))
    assert far(turned, run(CanonicalDenoiser(Toy(), views), texture, condition=prompt(0)).roll(8, -1)) < 1e-12
    with pytest.raises(ValueError, match="give at most 20"):
        cylinder_view(height, width, 0.0, 21)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CanonicalDenoiser(Toy(), ()), "There are no views"),
        (lambda: CanonicalDenoiser(Toy(), (index_view(GRID[:, :4], SIDE, SIDE),)), "12 of 36 canonical pixels are shown by no"),
        (lambda: SyncTweedies(Toy(), (index_view(GRID, SIDE, SIDE), index_view(GRID, SIDE + 1, SIDE))), "weight of view 1 is"),
        (lambda: index_view(GRID, SIDE, SIDE - 1), "An index has 0 to 35; pixels are 0 to 29"),
        (lambda: index_view(GRID.double(), SIDE, SIDE), "give whole numbers"),
        (lambda: project((index_view(GRID[:4], SIDE, SIDE), PLAIN), X), "different sizes (3x4x6, 3x6x6)"),
        (lambda: SyncTweedies(Toy(), (PLAIN, PLAIN))(X[:1], LEVEL, prompt(0), Context()), "are not 2 views each"),
        (lambda: CanonicalDenoiser(Toy(), (View(abs, abs, -torch.ones(1, 1, 1, 1)),)), "finite numbers of at least 0"),
    ],
)  # fmt: skip
def test_refusals(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
