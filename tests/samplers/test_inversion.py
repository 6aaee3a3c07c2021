"""Inversion: there and back, at the order of every solver, and to rounding by fixed points."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from samplers import Condition, Context, Heun, Multistep, RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, sample
from samplers.analytic import Gaussian, Mixture, reference_ode
from samplers.editing import Mirror, MirrorPath, invert, invert_exact
from samplers.path import Trigonometric

VE, VP, RF, TRIG = VarianceExploding(0.02, 20.0), VariancePreserving.linear(), RectifiedFlow(), Trigonometric()
PATHS = {"VE": VE, "VP": VP, "RF": RF, "trigonometric": TRIG}
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def smooth(path, **options):
    """The mixture with wider components, on which these step counts are asymptotic."""
    mixture = Mixture.example(path, **options)
    return replace(mixture, stds=mixture.stds + 0.5)


def even(path, steps, low=-2.0, high=2.0):
    return [path.at_logsnr(low + (high - low) * i / steps) for i in range(steps + 1)]


@pytest.mark.parametrize("name", PATHS)
def test_the_mirror_swaps_signal_and_noise(name):
    path, level = PATHS[name], PATHS[name].at_logsnr(0.7)
    mirror = MirrorPath(path)
    swapped = mirror.at_logsnr(-0.7)
    assert (swapped.alpha, swapped.sigma, swapped.t) == (level.sigma, level.alpha, level.t)
    assert mirror(level.t).logsnr == pytest.approx(-0.7)
    assert mirror.rate(swapped) == path.rate(level)[::-1]
    for kind in ("x0", "eps", "v"):
        p = Mixture.example(path, kind)(X, level, Condition(), Context())
        m = Mirror(Mixture.example(path, kind))(X, swapped, Condition(), Context())
        assert torch.allclose(m.x0, p.eps, atol=1e-12) and torch.allclose(m.eps, p.x0, atol=1e-12)
        assert torch.allclose(m.flow(mirror), p.flow(path), atol=1e-12)


@pytest.mark.parametrize(("solver", "order"), [(Multistep(1), 1), (Heun(), 2), (Multistep(2), 2)], ids=str)
@pytest.mark.parametrize("name", ["VP", "RF"])
def test_round_trip_falls_with_the_order(name, solver, order):
    mixture = smooth(PATHS[name])

    def error(steps):
        levels = even(PATHS[name], steps)
        return (sample(mixture, solver, invert(mixture, solver, X, levels), levels) - X).square().mean().sqrt().item()

    coarse, fine = error(64), error(128)
    assert abs(math.log2(coarse / fine) - order) < 0.2


@pytest.mark.parametrize("solver", [Multistep(2), Multistep(3), Heun()], ids=str)
@pytest.mark.parametrize("name", ["VE", "trigonometric"])
def test_it_is_the_probability_flow_ode(name, solver):
    mixture, levels = smooth(PATHS[name]), even(PATHS[name], 100)
    exact = reference_ode(mixture, X, levels[-1], levels[0], 100)
    assert (invert(mixture, solver, X, levels) - exact).abs().max() / exact.abs().max() < 2e-3


def test_euler_is_ddim_inversion():
    """x_s = (alpha_s / alpha_t) x_t + (sigma_s - alpha_s sigma_t / alpha_t) eps(x_t), level by level towards noise."""
    mixture, levels = Mixture.example(VP, "eps"), even(VP, 9)
    x = X
    for t, s in pairwise(reversed(levels)):
        keep = s.alpha / t.alpha
        x = keep * x + (s.sigma - keep * t.sigma) * mixture(x, t, Condition(), Context()).eps
    assert (invert(mixture, Multistep(1), X, levels) - x).abs().max() < 1e-12


@pytest.mark.parametrize("name", PATHS)
def test_from_clean_data_to_noise_in_closed_form(name):
    """The exact flow of a Gaussian from t = 0, on a grid that ends in clean data; a flow's reaches pure noise."""
    path = PATHS[name]
    gaussian = Gaussian(path, torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 1.5]).double(), "v")
    levels = list(get_grid("uniform_logsnr", path, 150, logsnr_min=-5.0 if name != "VE" else -2.9, logsnr_max=6.0))
    if path(path.t_noise).alpha == 0:
        levels.insert(0, path(path.t_noise))
    context = Context()
    noise = invert(gaussian, Multistep(2), X, levels, context=context)
    exact = gaussian.ode(X, path(0.0), levels[0])
    assert (noise - exact).abs().max() / exact.abs().max() < 4e-3
    assert context.evaluations == len(X) * (len(levels) - 1)
    assert (sample(gaussian, Multistep(2), noise, levels) - X).abs().max() < 0.02


def test_more_iterations_undo_the_last_euler_step():
    mixture, levels = Mixture.example(RF), [RF(0.05), RF(0.0)]
    made = sample(mixture, Multistep(1), X, levels)
    errors = [(invert(mixture, Multistep(1), made, levels, iterations=n) - X).abs().max() for n in (1, 4, 60)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-10


@pytest.mark.parametrize("kind", ["x0", "eps", "flow"])
@pytest.mark.parametrize("name", PATHS)
def test_exact_inversion(name, kind):
    """Euler from finite noise to clean data and back: to rounding, where an explicit inversion is off by a tenth."""
    path = PATHS[name]
    mixture = Mixture.example(path, kind)
    levels = [*even(path, 24, -2.0, 3.0), path(0.0)]
    start = levels[0].sigma * X
    made = sample(mixture, Multistep(1), start, levels)
    back = invert_exact(mixture, made, levels, tolerance=1e-12, iterations=2000)
    scale = start.abs().max()
    assert (back - start).abs().max() / scale < 1e-8
    assert (invert(mixture, Multistep(1), made, levels) - start).abs().max() / scale > 1e-2


def test_guided_and_conditioned_models_invert_alike():
    from samplers import ClassifierFree

    mixture, levels = smooth(VP, labelled=True), even(VP, 100)
    condition = Condition(label=torch.tensor([0, 1, 2, 0, 1, 2]))
    guided = ClassifierFree(mixture, 2.0)
    noise = invert(guided, Multistep(2), X, levels, condition)
    assert (sample(guided, Multistep(2), noise, levels, condition) - X).abs().max() < 0.05
    assert (noise - invert(mixture, Multistep(2), X, levels, condition)).abs().max() > 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: invert(m, Multistep(1), X, [RF(1.0), RF(0.0)]), "between clean data and pure noise"),
        (lambda m: invert(m, Multistep(1), X, even(RF, 3), iterations=0), "at least one evaluation"),
        (lambda m: invert(m, Multistep(1, eta=1.0), X, even(RF, 3)), "pass noise="),
        (lambda m: invert_exact(m, X, [RF(1.0), RF(0.5), RF(0.0)]), "alpha > 0"),
        (lambda m: invert_exact(m, X, even(RF, 3), tolerance=0.0), "tolerance > 0"),
        (lambda m: invert_exact(m, X, even(RF, 1), iterations=2, tolerance=1e-12), "did not settle at log-SNR"),
    ],
)
def test_errors_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call(Mixture.example(RF))
