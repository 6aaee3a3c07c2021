"""ComfyUI's dpm_fast and dpm_adaptive, against their equations written out once more on the mixture.

Here x = x0 + sigma eps, lam = -log sigma and h = lam_t - lam_s. DPM-Solver of orders 1 to 3 (arXiv 2206.00927, equations 4.1,
Algorithms 1 and 2) with e = exp(h) - 1:

    1   x_t = x - sigma_t e eps
    2   x_t = x - sigma_t e eps - sigma_t / (2 r) e (eps_r - eps)
    3   x_t = x - sigma_t e eps - sigma_t / r2 (e / h - 1) (eps_r2 - eps)
"""

import math
from dataclasses import replace

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, get_solver, sample
from samplers.analytic import Mixture, reference_ode

VE, RF, VP = VarianceExploding(0.03, 15.0), RectifiedFlow(), VariancePreserving.scaled_linear()
CASES = {
    "VE": (VE, (15.0, 8.0, 5.0, 3.0, 1.6, 0.9, 0.4, 0.1, 0.0)),
    "RF": (RF, (1.0, 0.93, 0.84, 0.7, 0.55, 0.4, 0.25, 0.1, 0.0)),
    "RF part": (RF, (0.96, 0.93, 0.84, 0.7, 0.55, 0.4, 0.25, 0.1, 0.03)),
    "RF six": (RF, (1.0, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)),
    "RF seven": (RF, (1.0, 0.9, 0.8, 0.6, 0.5, 0.4, 0.2, 0.0)),
    "VE two": (VE, (15.0, 4.0, 0.0)),
}
Z = torch.tensor([[0.3, -1.1], [-0.7, 0.9]], dtype=torch.float64)


class Equations:
    """eps of the mixture at a lam, counted, and the three steps above."""

    def __init__(self, path):
        self.model, self.calls = Mixture.example(path, "flow" if path is RF else "x0"), 0

    def eps(self, x, lam):
        self.calls += 1
        sigma = math.exp(-lam)
        at = self.model.path(min(sigma, 1.0) if self.model.path is RF else sigma)
        return (x - self.model(x, at, Condition(), Context()).x0) / sigma

    def first(self, x, a, b, eps):
        return x - math.exp(-b) * math.expm1(b - a) * eps

    def second(self, x, a, b, eps, r):
        h = b - a
        ahead = self.eps(self.first(x, a, a + r * h, eps), a + r * h)
        return self.first(x, a, b, eps) - math.exp(-b) / (2 * r) * math.expm1(h) * (ahead - eps), ahead

    def third(self, x, a, b, eps, third=None):
        h = b - a
        near = self.eps(self.first(x, a, a + h / 3, eps), a + h / 3) if third is None else third
        c = a + 2 * h / 3
        far = self.first(x, a, c, eps) - math.exp(-c) * 2 * (math.expm1(c - a) / (c - a) - 1) * (near - eps)
        slope = self.eps(far, c) - eps
        return self.first(x, a, b, eps) - math.exp(-b) / (2 / 3) * (math.expm1(h) / h - 1) * slope


def ends(sigmas):
    last = sigmas[-1] or sigmas[-2]
    return -math.log(sigmas[0]), -math.log(last), len(sigmas) - 1


def fast(e, x, sigmas):
    start, end, n = ends(sigmas)
    m = n // 3 + 1
    orders = [3] * (m - 2) + [2, 1] if n % 3 == 0 else [3] * (m - 1) + [n % 3]
    for i, order in enumerate(orders):
        a, b = (start + (end - start) * j / m for j in (i, i + 1))
        eps = e.eps(x, a)
        x = e.first(x, a, b, eps) if order == 1 else e.second(x, a, b, eps, 0.5)[0] if order == 2 else e.third(x, a, b, eps)
    return x


def adaptive(e, x, sigmas, order=3, rtol=0.05, atol=0.0078, h=0.05, safety=0.81):
    a, end, _ = ends(sigmas)
    before = x
    eps = e.eps(x, a)
    while a < end - 1e-5:
        b = min(end, a + h)
        if order == 2:
            low, high = e.first(x, a, b, eps), e.second(x, a, b, eps, 0.5)[0]
        else:
            low, near = e.second(x, a, b, eps, 1 / 3)
            high = e.third(x, a, b, eps, near)
        allowed = torch.maximum(torch.tensor(atol), rtol * torch.maximum(low.abs(), before.abs()))
        error = ((low - high) / allowed).square().mean().sqrt().item()
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / order) - 1)
        h *= factor
        if factor >= safety:
            before, x, a = low, high, b
            if a < end - 1e-5:
                eps = e.eps(x, a)
    return x


def run(name, case, x, **options):
    path, sigmas = CASES[case]
    context, levels = Context(), [path(s) for s in sigmas]
    model = Mixture.example(path, "flow" if path is RF else "x0")
    return sample(model, get_solver(name, **options), sigmas[0] * x, levels, context=context), context.evaluations / len(x)


@pytest.mark.parametrize("case", CASES)
def test_fast(case):
    path, sigmas = CASES[case]
    e = Equations(path)
    expected = fast(e, sigmas[0] * Z, sigmas)
    x, evaluations = run("comfy:dpm_fast", case, Z)
    assert (x - expected).abs().max() < 1e-10 and evaluations == e.calls == len(sigmas) - 1


@pytest.mark.parametrize("options", [{}, {"order": 2}, {"rtol": 0.01, "atol": 0.001}, {"h_init": 2.0}])
@pytest.mark.parametrize("case", ["VE", "RF", "RF part", "VE two"])
def test_adaptive(case, options):
    """A batch that shares its steps, and two images that take their own."""
    path, sigmas = CASES[case]
    given = {"h" if name == "h_init" else name: value for name, value in options.items()}
    e = Equations(path)
    expected = adaptive(e, sigmas[0] * Z, sigmas, **given)
    x, evaluations = run("comfy:dpm_adaptive", case, Z, together=True, **options)
    assert (x - expected).abs().max() < 1e-10 and evaluations == e.calls
    alone = torch.cat([adaptive(Equations(path), sigmas[0] * z[None], sigmas, **given) for z in Z])
    assert (run("comfy:dpm_adaptive", case, Z, **options)[0] - alone).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["comfy:dpm_fast", "comfy:dpm_adaptive"])
def test_only_the_ends_of_a_schedule_matter(name):
    """On tables sigma is sigma / alpha; the least noise of the schedule stays in the image."""
    runs = []
    for grid, path in (("karras", VP), ("exponential", VP)):
        levels = get_grid(grid, path, 8)
        runs.append(sample(Mixture.example(path, "x0"), get_solver(name), levels[0].sigma * Z, levels))
    assert (runs[0] - runs[1]).abs().max() < 1e-9
    model = Mixture.example(VP, "x0")
    exact = reference_ode(model, levels[0].sigma * Z, levels[0], levels[-2], 400) / levels[-2].alpha
    assert (runs[0] - exact).abs().max() < 0.12


def test_one_step_and_pure_noise_are_euler_steps():
    model = Mixture.example(RF, "flow")
    for name in ("comfy:dpm_fast", "comfy:dpm_adaptive"):
        one = sample(model, get_solver(name), Z, [RF(1.0), RF(0.0)])
        assert torch.equal(one, model(Z, RF(1.0), Condition(), Context()).x0)
        zero = VariancePreserving.scaled_linear(zero_terminal_snr=True)
        levels = get_grid("trailing", zero, 5)
        assert levels[0].alpha == 0 and sample(Mixture.example(zero, "x0"), get_solver(name), Z, levels).isfinite().all()


def test_a_changed_image_begins_a_block_of_its_own():
    """Not the block's start: what was changed is gone on with."""
    model, levels = Mixture.example(RF, "flow"), tuple(RF(s) for s in CASES["RF"][1])
    solver, context = get_solver("comfy:dpm_fast"), Context(levels=tuple(levels), steps=8)
    state = solver.init(Z)
    state = solver.step(model, state, levels[0], levels[1], Condition(), context)
    ends = [
        solver.step(model, replace(state, x=x), levels[1], levels[2], Condition(), context.at(1)).x
        for x in (state.x, state.x.clone(), state.x + 0.5)
    ]
    assert (ends[1] - ends[0]).abs().max() > 1e-4 and (ends[2] - ends[1]).abs().max() > 0.1


def test_a_step_alone_is_a_run():
    model = Mixture.example(VE, "x0")
    for name in ("comfy:dpm_fast", "comfy:dpm_adaptive"):
        solver = get_solver(name)
        alone = solver.step(model, solver.init(15.0 * Z), VE(15.0), VE(8.0), Condition(), Context(step=4, steps=9))
        assert torch.equal(alone.x, sample(model, solver, 15.0 * Z, [VE(15.0), VE(8.0)]))
    with pytest.raises(ValueError, match="choose 2 or 3"):
        get_solver("comfy:dpm_adaptive", order=4)
