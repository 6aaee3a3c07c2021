"""CFG++ against its published updates, written out on x and the two branches alone."""

import math
from itertools import pairwise

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, get_solver, sample
from samplers.analytic import Mixture
from samplers.guidance import AdaptiveProjected, CFGPlusPlus, ClassifierFree
from tests.samplers.references import Replay

VE, VP, FLOW = VarianceExploding(0.05, 20.0), VariancePreserving.linear(), RectifiedFlow()
Z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = Condition(label=torch.tensor([0, 1, 2, 1]))


def run(path, name, scale, steps=10, kind="v", grid="karras", noise=None, context=None, interval=(-math.inf, math.inf)):
    denoiser = ClassifierFree(Mixture.example(path, kind, labelled=True), scale, interval=interval, keep_both=True)
    levels = get_grid(grid, path, steps)
    x = levels[0].sigma * Z
    return sample(denoiser, CFGPlusPlus(get_solver(name)), x, levels, LABELS, noise=noise, context=context), levels, x


def images(path, x, level, scale):
    """(x0_guided, x0_null, eps_null)."""
    mixture = Mixture.example(path, "x0", labelled=True)
    cond, null = (mixture(x, level, c, Context()) for c in (LABELS, LABELS.null()))
    return null.x0 + scale * (cond.x0 - null.x0), null.x0, null.eps


@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0, 1.8])
@pytest.mark.parametrize("path", [VE, VP, FLOW], ids=["VE", "VP", "flow"])
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_one_step_solvers(path, scale, name):
    """x_t = alpha_t x0_guided + sigma_t eps_null: Algorithm 2."""
    ours, levels, x = run(path, name, scale)
    for s, t in pairwise(levels):
        guided, _, eps = images(path, x, s, scale)
        x = t.alpha * guided + t.sigma * eps
    assert (ours - x).abs().max() < 1e-11


@pytest.mark.parametrize("path", [FLOW, VariancePreserving.scaled_linear(zero_terminal_snr=True)], ids=["flow", "zero SNR"])
def test_both_ends_without_an_epsilon(path):
    """From exact pure noise to exact clean data."""
    ours, levels, x = run(path, "euler", 0.8, grid="uniform")
    assert levels[0].alpha == 0 and levels[-1].sigma == 0
    for s, t in pairwise(levels):
        guided, _, eps = images(path, x, s, 0.8)
        x = t.alpha * guided + t.sigma * eps
    assert (ours - x).abs().max() < 1e-11


def test_euler_ancestral():
    """x = x0_guided + sigma_down eps_null + sigma_up z, as k-diffusion users know it."""
    ours, levels, x = run(VE, "euler_a", 0.7, noise=Replay(Z))
    noise = Replay(Z)
    for s, t in pairwise(levels):
        guided, _, eps = images(VE, x, s, 0.7)
        up = min(t.sigma, math.sqrt(t.sigma**2 * (s.sigma**2 - t.sigma**2) / s.sigma**2))
        x = guided + math.sqrt(t.sigma**2 - up**2) * eps + (up * noise() if t.sigma else 0)
    assert (ours - x).abs().max() < 1e-11


def test_dpmpp_2m():
    """x = x0_guided + e^-h (x - x0_null) + (1 - e^-h)(x0_null - x0_null before) / 2r, the authors' 2M."""
    ours, levels, x = run(VE, "dpmpp_2m", 0.7)
    before = None
    for i, (s, t) in enumerate(pairwise(levels)):
        guided, null, eps = images(VE, x, s, 0.7)
        if before is None or t.sigma == 0:
            x = guided + t.sigma * eps
        else:
            h, last = t.logsnr - s.logsnr, s.logsnr - levels[i - 1].logsnr
            x = guided + math.exp(-h) * (x - null) - math.expm1(-h) * (null - before) / (2 * last / h)
        before = null
    assert (ours - x).abs().max() < 1e-11


def test_heun_moves_the_image_by_its_last_evaluation():
    """The unconditional Heun step, then alpha_t (x0_guided - x0_null) of the second evaluation."""
    ours, levels, x = run(VE, "heun", 0.7, steps=6)
    for s, t in pairwise(levels):
        guided, null, eps = images(VE, x, s, 0.7)
        ahead = x + (t.sigma - s.sigma) * eps
        if t.sigma:
            guided, null, second = images(VE, ahead, t, 0.7)
            ahead = x + (t.sigma - s.sigma) * (eps + second) / 2
        x = ahead + guided - null
    assert (ours - x).abs().max() < 1e-11


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "unipc", "res_multistep"])
def test_scale_zero_is_the_unconditional_run(name):
    ours, levels, x = run(FLOW, name, 0.0)
    plain = sample(Mixture.example(FLOW, "v", labelled=True), get_solver(name), x, levels, LABELS.null())
    assert (ours - plain).abs().max() < 1e-12


def test_outside_its_interval_the_step_is_the_conditional_one_and_costs_half():
    context = Context()
    ours, levels, x = run(VE, "euler", 0.7, interval=(50.0, 51.0), context=context)
    plain = sample(Mixture.example(VE, "v", labelled=True), get_solver("euler"), x, levels, LABELS)
    assert torch.equal(ours, plain) and context.evaluations == 10 * len(Z)
    context = Context()
    run(VE, "euler", 1.0, context=context)
    assert context.evaluations == 2 * 10 * len(Z)


def test_around_another_rule():
    """The image may be guided by any rule that keeps its branches."""
    mixture, levels = Mixture.example(VE, "x0", labelled=True), get_grid("karras", VE, 6)
    apg, x = AdaptiveProjected(mixture, 1.8, eta=0.2), levels[0].sigma * Z
    ours = sample(apg, CFGPlusPlus(get_solver("euler")), x, levels, LABELS)
    for s, t in pairwise(levels):
        _, _, eps = images(VE, x, s, 1.8)
        x = apg(x, s, LABELS, Context()).x0 + t.sigma * eps
    assert (ours - x).abs().max() < 1e-11


def test_a_denoiser_that_does_not_guide_is_refused():
    with pytest.raises(ValueError, match="keep_both=True"):
        sample(Mixture.example(VE), CFGPlusPlus(get_solver("euler")), Z, get_grid("karras", VE, 2))
