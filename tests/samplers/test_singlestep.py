"""Exponential Runge-Kutta and its blockwise form: against k-diffusion, diffusers, exact answers and themselves."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from samplers import Condition, Context, RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, sample, trajectory
from samplers.analytic import Gaussian, Mixture, reference_ode
from samplers.brownian import brownian_noise
from samplers.grids import uniform_time
from samplers.solvers import Multistep
from samplers.solvers.blockwise import Blockwise, block_orders
from samplers.solvers.churn import ChurnedSolver
from samplers.solvers.singlestep import Singlestep
from tests.samplers.references import Replay, k_diffusion, k_model, k_sigmas

VE = VarianceExploding(0.05, 20.0)
VP, RF = VariancePreserving.linear(), RectifiedFlow()
ZERO_SNR = VariancePreserving.scaled_linear(zero_terminal_snr=True)
MEAN, STD = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
TWO_S_A = Singlestep(2, eta=1.0, noise="ancestral")
KINDS = [("x0", "sde"), ("x0", "ancestral"), ("x0", "overlapping"), ("eps", "ancestral")]


def normals(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


START = 20 * normals(6, 2, seed=1)


def assert_same(solver, reference, noise=None, levels=None):
    denoiser, levels = Mixture.example(VE), levels or get_grid("karras", VE, 9)
    ours = sample(denoiser, solver, START, levels, noise=noise)
    theirs = reference(k_model(denoiser), START, k_sigmas(levels))
    assert (ours - theirs).abs().max() < 1e-12
    assert ours.abs().max() < 10  # both reached the data


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("name", "of"), [("dpmpp_2s_ancestral", "x0"), ("dpm_2_ancestral", "eps")])
def test_ancestral_is_k_diffusion(name, of, eta):
    def reference(model, x, sigmas):
        function = getattr(k_diffusion(), f"sample_{name}")
        return function(model, x, sigmas, disable=True, eta=eta, s_noise=0.9, noise_sampler=Replay(START))

    assert_same(Singlestep(2, of, eta=eta, noise="ancestral", s_noise=0.9), reference, Replay(START))


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("r", [0.5, 0.3])
def test_dpmpp_sde_is_k_diffusion(eta, r):
    def reference(model, x, sigmas):
        return k_diffusion().sample_dpmpp_sde(
            model, x, sigmas, disable=True, eta=eta, s_noise=0.9, noise_sampler=Replay(START), r=r
        )

    assert_same(Singlestep(2, eta=eta, noise="overlapping", r1=r, s_noise=0.9), reference, Replay(START))


@pytest.mark.parametrize("churn", [{}, {"s_churn": 3.0, "s_noise": 1.003}])
def test_dpm_2_is_k_diffusion(churn):
    torch.manual_seed(5)
    zs = iter([torch.randn_like(START) for _ in range(9)])

    def reference(model, x, sigmas):
        torch.manual_seed(5)
        return k_diffusion().sample_dpm_2(model, x, sigmas, disable=True, **churn)

    assert_same(ChurnedSolver(Singlestep(2, "eps"), **churn), reference, lambda s, t: next(zs))


def fast_blocks(evaluations):
    """(log-SNR at the ends of DPM-Solver-fast's blocks, their orders), from sigma 20 to 0.05."""
    count = evaluations // 3 + 1
    ends = [-math.log(20) + i * (math.log(20) - math.log(0.05)) / count for i in range(count + 1)]
    orders = [3] * (count - 2) + [2, 1] if evaluations % 3 == 0 else [3] * (count - 1) + [evaluations % 3]
    return ends, orders


@pytest.mark.parametrize("evaluations", [3, 10, 11, 12])
def test_blockwise_is_dpm_fast(evaluations):
    """k-diffusion's blocks are equally long: the grid that its evaluations lie on, in N steps with N evaluations."""
    ends, orders = fast_blocks(evaluations)
    values = [a + i / p * (b - a) for (a, b), p in zip(pairwise(ends), orders, strict=True) for i in range(p)]
    levels = [VE.at_logsnr(v) for v in (*values, ends[-1])]
    context = Context()
    ours = sample(Mixture.example(VE), Blockwise(), START, levels, context=context)
    assert context.evaluations == evaluations * len(START) and len(levels) == evaluations + 1
    assert (ours - dpm_fast(evaluations)).abs().max() < 1e-12


def dpm_fast(evaluations, eta=0.0):
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # k-diffusion reads its bounds in the default dtype
    try:
        return k_diffusion().sample_dpm_fast(
            k_model(Mixture.example(VE)), START, 0.05, 20.0, evaluations, disable=True, eta=eta, noise_sampler=Replay(START)
        )
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_singlestep_of_eps_is_dpm_fast(eta):
    """The same run as steps with their own nodes, which may also add noise."""
    ends, orders = fast_blocks(12)
    x, noise = START, Replay(START)
    for (a, b), order in zip(pairwise(ends), orders, strict=True):
        last = b == ends[-1]  # where k-diffusion adds no noise, to stay at levels above its last
        solver = Singlestep(order, "eps", eta=0.0 if last else eta, noise="ancestral")
        x = sample(Mixture.example(VE), solver, x, [VE.at_logsnr(a), VE.at_logsnr(b)], noise=noise)
    assert (x - dpm_fast(12, eta)).abs().max() < 1e-12


@pytest.mark.parametrize("steps", [9, 10, 11])
@pytest.mark.parametrize(
    ("order", "kind", "rule"),
    [(1, "midpoint", "published"), (2, "midpoint", "published"), (2, "heun", "exact"), (3, "heun", "exact")],
)
@pytest.mark.parametrize("of", ["x0", "eps"])
def test_blockwise_is_diffusers(of, order, kind, rule, steps):
    diffusers = pytest.importorskip("diffusers")
    path = VariancePreserving.scaled_linear()
    levels = get_grid("karras", path, steps)
    denoiser, start = Mixture.example(path, "eps"), normals(6, 2, seed=1)
    if of == "eps":
        levels = levels[:-1]  # diffusers' DPM-Solver cannot step to clean data
    scheduler = diffusers.DPMSolverSinglestepScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        solver_order=order,
        solver_type=kind,
        algorithm_type="dpmsolver++" if of == "x0" else "dpmsolver",
        lower_order_final=True,
        final_sigmas_type="zero" if of == "x0" else "sigma_min",
    )
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = torch.tensor([v.sigma / v.alpha for v in levels], dtype=torch.float64)
    scheduler.timesteps = torch.arange(len(levels) - 1).flip(0)
    scheduler.set_begin_index(0)
    theirs = start
    for t, level in zip(scheduler.timesteps, levels, strict=False):
        theirs = scheduler.step(denoiser(theirs, level, Condition(), Context()).eps, t, theirs, return_dict=False)[0]
    ours = sample(denoiser, Blockwise(order, of, rule), start, levels)
    assert (ours - theirs).abs().max() / theirs.abs().max() < 5e-6


def test_block_orders():
    assert [b for _, b in block_orders(9, 3)] == [3, 3, 3, 3, 3, 3, 2, 2, 1]
    assert [b for _, b in block_orders(10, 3)][-4:] == [3, 3, 3, 1]
    assert [b for _, b in block_orders(11, 3)][-5:] == [3, 3, 3, 2, 2]
    assert [b for _, b in block_orders(3, 3)] == [2, 2, 1]
    for order in (1, 2, 3):
        for steps in range(1, 20):
            assert len(block_orders(steps, order)) == steps


def test_a_changed_state_begins_its_own_block():
    """An inpainting wrapper replaces x: what was read before belongs to another trajectory."""
    levels, denoiser = get_grid("karras", VE, 8), Mixture.example(VE)
    states = list(trajectory(denoiser, Blockwise(), START, levels))
    changed = replace(states[4], x=states[4].x + 1e-3)
    stepped = Blockwise().step(denoiser, changed, levels[5], levels[6], Condition(), Context(step=5, steps=8))
    euler = Multistep(1).step(denoiser, replace(changed, history=()), levels[5], levels[6], Condition(), Context())
    assert torch.allclose(stepped.x, euler.x, atol=1e-12)
    assert not torch.allclose(stepped.x, states[5].x, atol=0.01)


SMOOTH = replace(Mixture.example(VarianceExploding(0.01, 100.0)), stds=Mixture.example(VE).stds + 0.5)
FIRST, LAST = -math.log(10), -math.log(0.15)


@pytest.fixture(scope="module")
def reference():
    return reference_ode(SMOOTH, START / 2, SMOOTH.path.at_logsnr(FIRST), SMOOTH.path.at_logsnr(LAST), 500)


@pytest.mark.parametrize("rule", ["published", "exact"])
@pytest.mark.parametrize("of", ["x0", "eps"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("solver", [Singlestep, Blockwise])
def test_order(solver, order, of, rule, reference):
    def error(steps):
        evaluated = steps if solver is Singlestep else order * steps + order - 1  # whole blocks, and a small tail
        levels = [SMOOTH.path.at_logsnr(FIRST + (LAST - FIRST) * i / evaluated) for i in range(evaluated + 1)]
        return (sample(SMOOTH, solver(order, of, rule=rule), START / 2, levels) - reference).square().mean().sqrt()

    assert abs(math.log2(error(64) / error(128)) - order) < 0.15


COUNT = 20000


def within_four_standard_errors(x, mean, variance):
    assert ((x.mean(0) - mean).abs() < 4 * (variance / COUNT).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 4 * (2 / COUNT) ** 0.5).all()


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize(("of", "noise"), KINDS)
def test_a_point_mass_is_exact_with_few_steps(of, noise, eta):
    """x0 is constant, so two large steps give mean and variance to the last level."""
    point = Gaussian(VP, MEAN, torch.zeros_like(MEAN))
    levels = [VP.at_logsnr(v) for v in (-2.0, -0.9, 0.8)]
    start = point.sample(COUNT, levels[0], torch.Generator().manual_seed(1))
    for order in (2, 3):
        x = sample(point, Singlestep(order, of, eta, noise), start, levels, noise=Replay(start, 7))
        within_four_standard_errors(x, *point.marginal(levels[-1]))


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize(("of", "noise"), KINDS)
def test_gaussian_marginals(of, noise, eta):
    """Forty steps; the stages of "overlapping" need one Brownian path, whose images are the columns here."""
    gaussian = Gaussian(VP, MEAN, STD)
    levels = [VP.at_logsnr(-3 + 5 * i / 40) for i in range(41)]
    start = gaussian.sample(COUNT, levels[0], torch.Generator().manual_seed(3))
    source = brownian_noise([5], start[None]) if noise == "overlapping" else Replay(start[None], 4)
    x = sample(gaussian, Singlestep(2, of, eta, noise), start[None], levels, noise=source)[0]
    within_four_standard_errors(x, *gaussian.marginal(levels[-1]))


def test_seeds_correlates_its_stages_as_the_process_does():
    """x at the stage and x at the end, for a point mass: the covariance of the reverse SDE, by a spy on the denoiser."""
    s, t = VP.at_logsnr(-1.0), VP.at_logsnr(0.5)
    seen = []

    class Spy(Gaussian):
        def __call__(self, x, level, condition, context):
            seen.append((x, level))
            return super().__call__(x, level, condition, context)

    point = Spy(VP, torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    start = torch.zeros(COUNT, 2, dtype=torch.float64)
    end = sample(point, Singlestep(3, eta=1.0), start, [s, t], noise=Replay(start, 2))
    assert len(seen) == 3
    for (a, m), (b, n) in pairwise([*seen[1:], (end, t)]):
        fade = math.exp(-2 * (n.logsnr - m.logsnr)) * (n.alpha / m.alpha)  # e^{-(1 + tau^2) h} in y = x / alpha
        variance = m.sigma**2 * -math.expm1(-2 * (m.logsnr - s.logsnr))
        assert ((a.var(0) / variance - 1).abs() < 4 * (2 / COUNT) ** 0.5).all()
        residue = b - fade * a
        assert ((a * residue).mean(0).abs() < 4 * (a.var(0) * residue.var(0) / COUNT).sqrt()).all()
        assert residue.var(0).min() > 0.01 and fade > 0.1


def test_dpmpp_sde_on_the_exact_clock_is_seeds():
    """Overlapping draws of one Brownian path in alpha^2 / sigma^2 are the composed draws of SEEDS."""
    levels = get_grid("karras", VE, 9)
    for order in (2, 3):
        solvers = (Singlestep(order, eta=1.0, noise=kind) for kind in ("sde", "overlapping"))
        a, b = (sample(Mixture.example(VE), solver, START, levels, noise=brownian_noise(range(6), START)) for solver in solvers)
        assert (a - b).abs().max() < 1e-11


@pytest.mark.parametrize(
    "solver", [Singlestep(3), Singlestep(3, "eps"), Blockwise(), ChurnedSolver(Singlestep(2, "eps"))], ids=str
)
def test_every_prediction_kind_gives_the_same_run(solver):
    levels, z = get_grid("karras", VP, 9), normals(4, 2)
    expected = sample(Mixture.example(VP), solver, z, levels)
    for kind in ("eps", "v", "flow", "edm"):
        assert (sample(Mixture.example(VP, kind), solver, z, levels) - expected).abs().max() < 1e-10


SOLVERS = [
    *(Singlestep(order, of, eta, noise) for order in (1, 2, 3) for of, noise in KINDS for eta in (0.0, 0.7, 1.0)),
    *(Singlestep(3, of, rule="exact") for of in ("x0", "eps")),
    *(Blockwise(order, of) for order in (1, 2, 3) for of in ("x0", "eps")),
    ChurnedSolver(Singlestep(2, "eps"), s_churn=3.0),
]


@pytest.mark.parametrize("solver", SOLVERS, ids=str)
@pytest.mark.parametrize("path", [VP, RF], ids=["VP", "RF"])
def test_same_logsnr_grid_same_result(path, solver):
    ve, z = VarianceExploding(), normals(5, 2)

    def run(path, end):
        levels = [path.at_logsnr(v) for v in (-3.5, -2.4, -1.9, -0.6, 0.1, 1.2, 2.0, end)]
        x = sample(Mixture.example(path), solver, levels[0].sigma * z, levels, noise=Replay(z))
        return x / levels[-1].alpha

    for end in (3.3, math.inf):
        assert (run(ve, end) - run(path, end)).abs().max() < 1e-10


@pytest.mark.parametrize(("path", "kind"), [(RF, "flow"), (RF, "x0"), (ZERO_SNR, "v")], ids=lambda v: str(v)[:9])
def test_both_ends(path, kind):
    """From exact pure noise to exact clean data: finite, the data, and the evaluations it says."""
    z, levels = normals(3, 2), uniform_time(path, 20)
    mixture = Mixture.example(path, kind)
    point = Gaussian(path, MEAN, torch.zeros_like(MEAN), kind)
    assert levels[0].alpha == 0 and levels[-1].sigma == 0
    for solver in [*SOLVERS[2:36:3], *SOLVERS[36:]]:
        context = Context()
        x = sample(mixture, solver, z, levels, noise=Replay(z), context=context)
        assert torch.isfinite(x).all() and mixture.log_density(x, path(0.0)).min() > -12
        assert (sample(point, solver, z, levels, noise=Replay(z)) - MEAN).abs().max() < 1e-12
        expected = 1 + 18 * solver.order + 1 if isinstance(solver, Singlestep) else 20 if isinstance(solver, Blockwise) else 38
        assert context.evaluations == 3 * expected


def test_gaussian_flow_from_pure_noise():
    """The exact solution is known from t = 1 to t = 0: x0 = mean + std z."""
    gaussian, z = Gaussian(RF, MEAN, STD), normals(6, 2)
    for solver in (Singlestep(2), Singlestep(3), Singlestep(2, "eps"), Singlestep(3, "eps"), Blockwise()):
        x = sample(gaussian, solver, z, uniform_time(RF, 100))
        assert (x - (MEAN + STD * z)).abs().max() < 5e-3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Singlestep(4), "choose 1, 2 or 3"),
        (lambda: Singlestep(True), "choose 1, 2 or 3"),
        (lambda: Singlestep(2, "v"), "choose x0"),
        (lambda: Singlestep(2, rule="heun"), "choose published or exact"),
        (lambda: Singlestep(2, noise="brown"), "choose one of sde, ancestral, overlapping"),
        (lambda: Singlestep(2, "eps", eta=1.0), "choose noise='ancestral'"),
        (lambda: Singlestep(2, r1=1.0), "order 2 takes 0 < r1 < 1"),
        (lambda: Singlestep(3, r1=0.7), "0 < r1 < r2 < 1"),
        (lambda: Singlestep(3, r1=0.7, r2=0.5), "0 < r1 < r2 < 1"),
        (lambda: Singlestep(2, r2=0.5), "order 2 takes"),
        (lambda: Singlestep(2, eta=-1.0), "give 0 <= eta"),
        (lambda: Singlestep(2, eta=1.5, noise="ancestral"), "0 <= eta <= 1"),
        (lambda: Singlestep(2, s_noise=-1.0), "s_noise"),
        (lambda: Blockwise(0), "choose 1, 2 or 3"),
        (lambda: Blockwise(2, "flow"), "choose x0"),
        (lambda: Blockwise(2, rule="bh2"), "choose published or exact"),
        (lambda: ChurnedSolver(Singlestep(), s_churn=-1.0), "s_churn"),
        (lambda: ChurnedSolver(Singlestep(), s_tmin=2.0, s_tmax=1.0), "s_tmin <= s_tmax"),
    ],
)
def test_settings_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("solver", [Singlestep(2, eta=1.0), TWO_S_A, ChurnedSolver(Singlestep(2), s_churn=5.0)], ids=str)
def test_missing_noise_is_a_sentence(solver):
    with pytest.raises(ValueError, match="pass noise="):
        sample(Gaussian(VE, MEAN, STD), solver, torch.zeros(1, 2).double(), [VE(4.0), VE(2.0), VE(1.0)])
