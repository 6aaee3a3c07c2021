"""Inpainting: the known part is exact, the rest is the solver's own order, and RePaint comes closer to the conditional law."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from samplers import (
    ClassifierFree,
    Condition,
    Context,
    Heun,
    Multistep,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
    seeded_noise,
    trajectory,
)
from samplers.analytic import Mixture
from samplers.editing import Inpaint, repaint, repaint_walk
from samplers.solvers.registry import SOLVERS

VE, VP, RF = VarianceExploding(0.02, 20.0), VariancePreserving.linear(), RectifiedFlow()


def draw(*shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


IMAGE, EPS = draw(3, 2, 4, 4, seed=0), draw(3, 2, 4, 4, seed=1)
HARD = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
HARD[..., 2:] = 1


def mixture(path, kind="x0"):
    return Mixture.example(path, kind, shape=(2, 4, 4))


@pytest.mark.parametrize("solver", ["euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"])
@pytest.mark.parametrize("path", [VE, VP, RF], ids=["VE", "VP", "RF"])
def test_the_known_part_is_bit_exact(path, solver):
    levels = get_grid("karras", path, 7)
    denoiser = Inpaint(mixture(path), IMAGE, HARD, EPS)
    context = Context()
    x = sample(
        denoiser, get_solver(solver), levels[0].sigma * EPS, levels, noise=seeded_noise([1, 2, 3], IMAGE), context=context
    )
    assert torch.equal(x[..., :2], IMAGE[..., :2])
    assert (x[..., 2:] - IMAGE[..., 2:]).abs().max() > 0.1 and torch.isfinite(x).all()
    assert context.evaluations == 3 * (13 if solver == "heun" else 7)  # no more than without a mask


@pytest.mark.parametrize("solver", [Multistep(1), Heun(), Multistep(3, corrector_order=4)], ids=str)
def test_the_known_part_keeps_its_own_noise_at_every_level(solver):
    levels = get_grid("karras", RF, 9)
    start = levels[0].mix(IMAGE, EPS)
    for state in trajectory(Inpaint(mixture(RF), IMAGE, HARD, EPS), solver, start, levels):
        assert (state.x - state.level.mix(IMAGE, EPS))[..., :2].abs().max() < 1e-12


def test_all_new_is_plain_sampling_and_all_known_is_the_image():
    levels = get_grid("uniform", RF, 6)
    ones, start = torch.ones_like(IMAGE), EPS
    plain = sample(mixture(RF), Multistep(2), start, levels)
    assert torch.equal(sample(Inpaint(mixture(RF), IMAGE, ones, EPS), Multistep(2), start, levels), plain)
    assert torch.equal(sample(Inpaint(mixture(RF), IMAGE, 0 * ones, EPS), Multistep(2), start, levels), IMAGE)


def test_a_soft_mask_blends_x0():
    """By hand: the last step lands on (1 - m) image + m x0(seen), with seen the same blend of the noised image and x."""
    m, level, x = torch.full_like(IMAGE, 0.3), RF(0.4), draw(3, 2, 4, 4, seed=5)
    seen = 0.7 * (0.6 * IMAGE + 0.4 * EPS) + 0.3 * x
    expected = 0.7 * IMAGE + 0.3 * mixture(RF)(seen, level, Condition(), Context()).x0
    made = sample(Inpaint(mixture(RF, "flow"), IMAGE, m, EPS), Multistep(1), x, [level, RF(0.0)])
    assert (made - expected).abs().max() < 1e-12


def test_the_order_of_a_multistep_solver_is_kept():
    """Against 640 steps; the known coordinate moves on its straight line, so nothing jumps."""
    image, eps, mask = draw(16, 2, seed=2), draw(16, 2, seed=3), torch.tensor([[0.0, 1.0]]).double()
    m = Mixture.example(VE)
    known = Inpaint(replace(m, stds=m.stds + 0.5), image, mask, eps)

    def run(steps):
        levels = [VE.at_logsnr(-2 + 4 * i / steps) for i in range(steps + 1)]
        return sample(known, Heun(), levels[0].mix(image, eps), levels)

    exact = run(640)
    coarse, fine = ((run(n) - exact).square().mean().sqrt() for n in (40, 80))
    assert abs(math.log2(coarse / fine) - 2) < 0.2


def test_batch_rows_are_independent():
    levels = get_grid("karras", RF, 5)
    both = sample(Inpaint(mixture(RF), IMAGE, HARD, EPS), Multistep(2), EPS, levels)
    one = sample(Inpaint(mixture(RF), IMAGE[1:2], HARD, EPS[1:2]), Multistep(2), EPS[1:2], levels)
    assert torch.allclose(both[1:2], one, atol=1e-14)


@pytest.mark.parametrize("steps", [1, 5, 20, 50, 99])
@pytest.mark.parametrize(("jump", "resamples"), [(1, 3), (5, 2), (10, 10), (10, 1), (60, 4)])
def test_the_walk_is_diffusers(steps, jump, resamples):
    """RePaintScheduler lists the timesteps visited; the last step, to clean data, has none."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.RePaintScheduler()
    scheduler.set_timesteps(steps, jump, resamples)
    walk = repaint_walk(steps, jump, resamples)
    expanded = [walk[0]]
    for k in walk[1:]:  # their jumps back are listed level by level
        here = expanded[-1]
        expanded += range(here - 1, k - 1, -1) if k < here else [k]
    assert [(steps - 1 - i) * (1000 // steps) for i in expanded[:-1]] == scheduler.timesteps.tolist()
    jumps = max(math.ceil((steps - jump) / jump), 0)
    assert sum(b > a for a, b in pairwise(walk)) == steps + jumps * (resamples - 1) * jump


def test_evaluations_of_repaint():
    context = Context()
    levels = get_grid("karras", RF, 20)
    x = repaint(mixture(RF), get_solver("euler_a"), IMAGE, HARD, levels, [1, 2, 3], jump_length=5, resamples=3, context=context)
    assert context.evaluations == 3 * (20 + 3 * 2 * 5)
    assert torch.equal(x[..., :2], IMAGE[..., :2])


@pytest.mark.parametrize("path", [VE, VP, RF], ids=["VE", "VP", "RF"])
@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "euler_a"])
def test_repaint_keeps_known_and_new_at_one_level(path, solver):
    """With a point as data everything is known: the walk must come back to it from every jump."""
    point = Mixture(path, torch.tensor([[1.0, -2.0]]).double(), torch.zeros(1, 2).double(), torch.ones(1).double())
    image, mask = torch.tensor([[1.0, 5.0]] * 4).double(), torch.tensor([[0.0, 1.0]]).double()
    levels = get_grid("karras", path, 10)
    x = repaint(point, get_solver(solver), image, mask, levels, [1, 2, 3, 4], jump_length=3, resamples=2)
    assert (x - torch.tensor([1.0, -2.0])).abs().max() < 1e-9


def test_the_known_noise_takes_part_in_the_jumps():
    """At the start of every step, after jumps too, x is alpha image + sigma eps in the known part, with the eps then in use."""
    seen = []

    class Watched(Multistep):
        def step(self, denoiser, state, s, t, condition, context, noise=None):
            seen.append((state.x - s.mix(denoiser.image, denoiser.eps))[..., :2].abs().max().item())
            return super().step(denoiser, state, s, t, condition, context, noise)

    repaint(mixture(RF), Watched(2), IMAGE, HARD, get_grid("uniform", RF, 12), [1, 2, 3], jump_length=4, resamples=3)
    assert len(seen) == 12 + 2 * 2 * 4 and max(seen) < 1e-12


def test_an_image_depends_on_its_own_seed_only():
    levels, options = get_grid("karras", RF, 8), {"jump_length": 3, "resamples": 2}
    both = repaint(mixture(RF), get_solver("euler_a"), IMAGE, HARD, levels, [7, 8, 9], **options)
    one = repaint(mixture(RF), get_solver("euler_a"), IMAGE[1:2], HARD, levels, [8], **options)
    assert torch.allclose(both[1:2], one, atol=1e-13)


def test_resampling_approaches_the_conditional_distribution():
    """x0 of strongly dependent data is given; the exact law of x1 is a mixture by Bayes. Plain replacement misses its mean."""
    count, given = 250, 1.2
    line = 0.7 * torch.arange(-2, 3).double()[:, None].expand(5, 2)
    m = Mixture(RF, line, torch.full((5, 2), 0.4).double(), torch.full((5,), 0.2).double())
    share = (-0.5 * ((given - m.means[:, 0]) / 0.4) ** 2).softmax(0)
    mean = (share * m.means[:, 1]).sum()
    image = torch.tensor([[given, 0.0]]).double().expand(count, 2)
    mask, levels = torch.tensor([[0.0, 1.0]]).double(), get_grid("uniform", RF, 20)

    def off(resamples):
        x = repaint(m, get_solver("euler_a"), image, mask, levels, range(count), jump_length=5, resamples=resamples)
        return abs(x[:, 1].mean() - mean)

    plain, resampled = off(1), off(6)
    assert plain > 0.2 and resampled < 0.5 * plain


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Inpaint(mixture(RF), IMAGE, 2 * HARD, EPS), "from 0"),
        (lambda: Inpaint(mixture(RF), IMAGE, HARD.bool(), EPS), "convert and scale"),
        (lambda: Inpaint(mixture(RF), IMAGE, torch.ones(1, 1, 5, 4), EPS), "does not fit an image of shape"),
        (lambda: Inpaint(mixture(RF), IMAGE[:1], torch.ones(2, 1, 4, 4), EPS[:1]), "does not fit"),
        (lambda: repaint_walk(10, 0, 2), "jump_length must be"),
        (lambda: repaint_walk(10, 2, 1.5), "resamples must be"),
        (lambda: repaint(mixture(RF), Multistep(1), IMAGE, HARD, get_grid("karras", RF, 4), [1, 2]), "one seed per image"),
    ],
)
def test_errors_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", SOLVERS)
def test_the_known_part_is_the_picture_to_the_bit_under_every_solver(name):
    """Also where a solver's own rounding, or its coupling of two sequences, moves it."""
    for path in (VarianceExploding(0.002, 80.0), RectifiedFlow()):
        levels = get_grid("karras", path, 6)
        image, eps = (draw(2, 2, 4, 4, seed=seed) for seed in (3, 4))
        mask = (draw(2, 1, 4, 4, seed=5) > 0).double()
        model = Mixture.example(path, shape=(2, 4, 4))
        if SOLVERS[name].both_branches:
            model = ClassifierFree(model, 1.5, keep_both=True)
        known = Inpaint(model, image, mask, eps)
        out = sample(known, get_solver(name), levels[0].sigma * eps, levels, noise=seeded_noise([1, 2], eps))
        where = (mask == 0).expand_as(image)
        assert torch.equal(out[where], image[where]) and not torch.equal(out, image)
        assert SOLVERS[name].both_branches or torch.isfinite(out).all()
