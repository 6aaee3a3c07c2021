"""Adaptive steps: k-diffusion's to rounding, on every path, between any two levels."""

import math
from itertools import pairwise

import pytest
import torch

from samplers import Context, RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, get_solver, sample, trajectory
from samplers.analytic import Gaussian, Mixture, reference_ode
from samplers.solvers.adaptive import Adaptive
from tests.samplers.references import Replay, k_diffusion, k_model

PATH = VarianceExploding(0.05, 20.0)
VP, RF = VariancePreserving.linear(), RectifiedFlow()
ZERO_SNR = VariancePreserving.scaled_linear(zero_terminal_snr=True)
MEAN, STD = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


START = 20 * normals(6, 2, seed=1)


def k_diffusion_run(denoiser, **options):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # k-diffusion reads its bounds and tolerances in the default dtype
    replay, steps = Replay(START), []
    draws = {}

    def noise(sigma, sigma_next):  # it draws for every accepted step, also without eta
        draws[sigma.item(), sigma_next.item()] = replay()
        return draws[sigma.item(), sigma_next.item()]

    try:
        x, info = k_diffusion().sample_dpm_adaptive(
            k_model(denoiser),
            START,
            0.05,
            20.0,
            disable=True,
            noise_sampler=noise,
            callback=lambda event: steps.append((event["n_accept"], event["n_reject"], float(event["h"]))),
            return_info=True,
            **options,
        )
        return x, info, steps
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "options",
    [{}, {"rtol": 0.005, "atol": 0.001}, {"pcoeff": 0.3, "icoeff": 0.8, "dcoeff": 0.1, "h_init": 2.0}, {"accept_safety": 0.95}],
    ids=["default", "tight", "PID", "strict"],
)
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("order", [2, 3])
def test_it_is_k_diffusion(order, eta, options):
    """Result, accepted and rejected trials and the size after each: a grid of two levels is k-diffusion's run."""
    theirs, info, steps = k_diffusion_run(Mixture.example(PATH), order=order, eta=eta, **options)
    context, paces = Context(), []

    class Watched(Adaptive):
        def _control(self, pace, error, level):
            after, accepted = super()._control(pace, error, level)
            paces.append((after.accepted, after.rejected, after.h))
            return after, accepted

    solver = Watched(order, eta=eta, **options)
    *_, state = trajectory(Mixture.example(PATH), solver, START, [PATH(20.0), PATH(0.05)], noise=Replay(START), context=context)
    assert (state.x - theirs).abs().max() < 1e-12
    assert (state.carry.accepted, state.carry.rejected) == (info["n_accept"], info["n_reject"])
    assert [p[:2] for p in paces] == [s[:2] for s in steps]
    assert [p[2] for p in paces] == pytest.approx([s[2] for s in steps], rel=1e-8)
    assert state.carry.rejected > 0  # both branches of the controller were taken
    assert state.evaluations == order * info["steps"] - info["n_reject"]  # k-diffusion evaluates again after a rejection
    assert context.evaluations == 6 * state.evaluations


@pytest.fixture(scope="module")
def expected():
    return reference_ode(Mixture.example(PATH), START, PATH(20.0), PATH(0.05), 400)


@pytest.mark.parametrize("order", [2, 3])
def test_tighter_tolerances_give_smaller_errors(order, expected):
    denoiser, (s, t) = Mixture.example(PATH), (PATH(20.0), PATH(0.05))
    errors, costs = [], []
    for rtol in (0.05, 0.005, 0.0005):
        context = Context()
        x = sample(denoiser, Adaptive(order, rtol=rtol, atol=rtol / 10), START, [s, t], context=context)
        errors.append((x - expected).abs().max().item())
        costs.append(context.evaluations)
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and costs[0] < costs[1] < costs[2]
    assert errors[2] < 2e-3


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("path", [VP, RF], ids=["VP", "RF"])
def test_every_path_takes_the_same_steps(path, eta):
    ve, z = VarianceExploding(), normals(5, 2)

    def run(path):
        levels = [path.at_logsnr(v) for v in (-3.5, -1.0, 3.3)]
        *_, state = trajectory(Mixture.example(path), Adaptive(eta=eta), levels[0].sigma * z, levels, noise=Replay(z))
        return state.x / levels[-1].alpha, state.carry

    (there, pace), (here, same) = run(ve), run(path)
    assert (there - here).abs().max() < 1e-10
    assert (pace.accepted, pace.rejected) == (same.accepted, same.rejected)


def test_a_stop_where_a_step_ends_changes_nothing():
    """Size, errors and low-order result all carry over: the run through one of its own levels is the same run."""
    denoiser, seen = Mixture.example(PATH), []

    class Watched(Adaptive):
        def _control(self, pace, error, level):
            seen.append(level)
            return super()._control(pace, error, level)

    options = {"pcoeff": 0.3, "icoeff": 0.8, "dcoeff": 0.1, "rtol": 0.01, "atol": 0.002}
    *_, whole = trajectory(denoiser, Watched(**options), START, [PATH(20.0), PATH(0.05)])
    starts = [c for a, b, c in zip(seen, seen[1:], seen[2:], strict=False) if a != b != c]  # not after a rejected longer step
    middle = starts[len(starts) // 2]
    *_, halves = trajectory(denoiser, Adaptive(**options), START, [PATH(20.0), middle, PATH(0.05)])
    assert (whole.x - halves.x).abs().max() < 1e-12
    assert whole.carry.h == pytest.approx(halves.carry.h, rel=1e-9)
    assert whole.evaluations == halves.evaluations


def test_the_pace_carries_over():
    """Levels in between cost less than runs of their own, which each find the size anew."""
    denoiser, grid = Mixture.example(PATH), get_grid("karras", PATH, 4, sigma_min=0.05)[:-1]
    through, apart, x = Context(), Context(), START
    sample(denoiser, Adaptive(), START, grid, context=through)
    for s, t in pairwise(grid):
        x = sample(denoiser, Adaptive(), x, [s, t], context=apart)
    assert through.evaluations < 0.8 * apart.evaluations


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(("path", "kind"), [(RF, "flow"), (RF, "x0"), (ZERO_SNR, "v")], ids=lambda v: str(v)[:9])
def test_both_ends(path, kind, eta):
    """Pure noise and clean data in one step, in two, and apart: finite, and the data."""
    z, mixture = normals(6, 2), Mixture.example(path, kind)
    noisiest, clean = path(path.t_noise), path(0.0)
    assert noisiest.alpha == 0 and clean.sigma == 0
    middle = [path.at_logsnr(v) for v in (-12.0, -2.0, 3.0, 12.0)]  # two of them beyond the path's usual bounds
    for levels in ([noisiest, clean], [noisiest, *middle, clean], [noisiest, middle[1], clean]):
        x = sample(mixture, Adaptive(eta=eta), z, levels, noise=Replay(z))
        assert torch.isfinite(x).all() and mixture.log_density(x, clean).min() > -12
        point = Gaussian(path, MEAN, torch.zeros_like(MEAN), kind)
        assert (sample(point, Adaptive(eta=eta), z, levels, noise=Replay(z)) - MEAN).abs().max() < 1e-12


def test_gaussian_flow_from_pure_noise():
    """The exact solution is known from t = 1 to t = 0: x0 = mean + std z."""
    z, context = normals(6, 2), Context()
    x = sample(Gaussian(RF, MEAN, STD), Adaptive(rtol=1e-3, atol=1e-3), z, [RF(1.0), RF(0.0)], context=context)
    assert (x - (MEAN + STD * z)).abs().max() < 0.01
    assert 6 * 30 < context.evaluations < 6 * 150


COUNT = 20000


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_gaussian_marginals(eta):
    gaussian = Gaussian(VP, MEAN, STD)
    levels = [VP.at_logsnr(-3.0), VP.at_logsnr(2.0)]
    start = gaussian.sample(COUNT, levels[0], torch.Generator().manual_seed(3))
    x = sample(gaussian, Adaptive(eta=eta, rtol=0.01, atol=1e-3), start, levels, noise=Replay(start, 4))
    mean, variance = gaussian.marginal(levels[-1])
    assert ((x.mean(0) - mean).abs() < 4 * (variance / COUNT).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 4 * (2 / COUNT) ** 0.5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 1}, "choose 2 or 3"),
        ({"rtol": -1.0}, "rtol"),
        ({"rtol": 0.0, "atol": 0.0}, "at least one"),
        ({"h_init": 0.0}, "h_init"),
        ({"icoeff": math.inf}, "icoeff"),
        ({"accept_safety": 0.1}, "accept_safety"),
        ({"eta": 2.0}, "0 <= eta <= 1"),
        ({"s_noise": -1.0}, "s_noise"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Adaptive(**options)


def test_mistakes_are_sentences():
    denoiser = Mixture.example(PATH)
    with pytest.raises(ValueError, match="fall in noise"):
        sample(denoiser, Adaptive(), START, [PATH(1.0), PATH(2.0)])
    with pytest.raises(ValueError, match="pass noise="):
        sample(denoiser, Adaptive(eta=1.0), START, [PATH(2.0), PATH(1.0)])
    with pytest.raises(ValueError, match="predictions are not finite"):
        sample(denoiser, Adaptive(), START * math.nan, [PATH(2.0), PATH(1.0)])


@pytest.mark.parametrize("grid", ["karras", "exponential", "vp", "uniform_logsnr", "normal"])
@pytest.mark.parametrize("path", [VarianceExploding(), VariancePreserving.scaled_linear(), RF], ids=["VE", "SD", "flow"])
def test_grids_that_end_on_the_paths_bounds(path, grid):
    """The last noisy level and the bound then differ by rounding, if at all: no step lies between them."""
    for steps in (2, 7):
        levels = get_grid(grid, path, steps)
        x = sample(Mixture.example(path), get_solver("dpm_adaptive", rtol=1.0), levels[0].sigma * START[:1], levels)
        assert torch.isfinite(x).all()


def test_steps_shorter_than_the_shortest():
    levels = [VP.at_logsnr(v) for v in (-1.0, -1.0 + 1e-6, 1.0, 1.0 + 1e-9, 2.0)]
    x = sample(Mixture.example(VP), Adaptive(), START, levels)
    straight = sample(Mixture.example(VP), Adaptive(), START, [levels[0], levels[2], levels[4]])
    assert (x - straight).abs().max() < 1e-3
    grid = get_grid("uniform", RF, 1000)[:12]
    assert torch.isfinite(sample(Mixture.example(RF), Adaptive(), START[:1], grid)).all()


def test_images_take_steps_of_their_own():
    """Each image of a batch does what it does alone; with together it shares them, and its result is another."""
    denoiser, levels = Mixture.example(PATH), [PATH(20.0), PATH(2.0), PATH(0.05)]
    start = START * torch.linspace(0.2, 1.5, 6, dtype=torch.float64)[:, None]
    *_, state = trajectory(denoiser, get_solver("dpm_adaptive"), start, levels)
    for row in range(6):
        *_, alone = trajectory(denoiser, get_solver("dpm_adaptive"), start[row : row + 1], levels)
        assert (state.x[row] - alone.x[0]).abs().max() < 1e-12
        assert state.carry.rows[row].accepted == alone.carry.accepted
    assert len({pace.accepted for pace in state.carry.rows}) > 1
    shared = sample(denoiser, get_solver("dpm_adaptive", together=True), start, levels)
    assert (shared - state.x).abs().max() > 1e-4
