"""The multistep families on eps: polynomials exactly, every coordinate; and both kinds against k-diffusion and diffusers."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from samplers import (
    Condition,
    Context,
    Multistep,
    Prediction,
    RectifiedFlow,
    State,
    VarianceExploding,
    VariancePreserving,
    get_grid,
    get_solver,
    sample,
)
from samplers.analytic import Gaussian, Mixture, reference_ode
from samplers.noise_ratio import noise_ratio
from samplers.sample import Evaluation
from tests.samplers.references import Replay, k_diffusion, k_model, k_sigmas

PATH = VariancePreserving.scaled_linear()
GAUSS, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(60)


def scalar(value):
    return torch.full((1, 1), float(value), dtype=torch.float64)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("coordinate", "tau2"), [("logsnr", 0.0), ("logsnr", 0.7), ("ratio", 0.0), ("ratio", 1.0), ("step", 0.0), ("step", 0.4)]
)
def test_a_step_integrates_polynomials_of_eps(coordinate, tau2, order):
    """eps = c^k in the coordinate c, k < order, on an uneven history: one step is the closed integral of equation (2)."""
    for scale in (0.05, 0.5, 1.5):
        *past, s, t = (PATH.at_logsnr(-0.5 + scale * v) for v in (-2.1, -1.4, -0.6, 0.0, 0.9))
        value = {
            "logsnr": lambda i, level: level.logsnr,
            "ratio": lambda i, level: noise_ratio(level),
            "step": lambda i, level: i,
        }[coordinate]
        for power in range(order):
            history = tuple(Evaluation(i, v, scalar(math.nan), scalar(value(i, v) ** power)) for i, v in enumerate(past))
            now = scalar(0.7)
            prediction = Prediction(now, s, scalar(value(3, s) ** power), (0.0, 1.0))
            state = State(now, s, step=3, prediction=prediction, history=history)
            solver = Multistep(order, eta=tau2, predict="eps", coordinate=coordinate)
            after = solver.step(None, state, s, t, Condition(), Context(), lambda s, t: scalar(0))
            r_s, r_t = noise_ratio(s), noise_ratio(t)
            if coordinate == "logsnr":
                l = 0.5 * (s.logsnr + t.logsnr) + 0.5 * (t.logsnr - s.logsnr) * GAUSS
                integral = -0.5 * (t.logsnr - s.logsnr) * float(GAUSS_WEIGHTS @ (np.exp(-l) * l**power))
            elif coordinate == "ratio":
                integral = (r_t ** (power + 1) - r_s ** (power + 1)) / (power + 1)
            else:
                integral = (r_t - r_s) * (4 ** (power + 1) - 3 ** (power + 1)) / (power + 1)
            expected = t.alpha * (now.item() / s.alpha + (1 + tau2) * integral)
            assert abs(after.x.item() - expected) < 1e-12 * max(1, abs(expected))


@pytest.mark.parametrize("points", [2, 3, 4, 5])
@pytest.mark.parametrize("coordinate", ["logsnr", "ratio", "step"])
def test_the_corrector_of_eps_integrates_one_degree_more(points, coordinate):
    solver = Multistep(min(points - 1, 4), corrector_order=points, predict="eps", coordinate=coordinate)
    levels = [PATH.at_logsnr(v) for v in (-2.1, -1.4, -1.0, -0.5, 0.4)]
    s, t = levels[-2], levels[-1]
    for power in range(points):
        value = {"logsnr": lambda i: levels[i].logsnr, "ratio": lambda i: noise_ratio(levels[i]), "step": float}[coordinate]
        eps = [value(i) ** power for i in range(5)]
        history = [Evaluation(i, v, scalar(math.nan), scalar(eps[i])) for i, v in enumerate(levels)]
        predicted = sum(w * eps[step] for step, w in solver.weights(history[:-1], s, t).items())
        corrected = predicted + sum(w * eps[step] for step, w in solver.correction(history).items())
        fine = [PATH.at_logsnr(v) for v in s.logsnr + (t.logsnr - s.logsnr) * (0.5 + 0.5 * GAUSS)]
        place = {"logsnr": lambda level: level.logsnr, "ratio": noise_ratio, "step": None}[coordinate]
        if place is None:  # the index runs evenly in r
            integral = (noise_ratio(t) - noise_ratio(s)) * (4 ** (power + 1) - 3 ** (power + 1)) / (power + 1)
        else:
            integral = (
                -0.5
                * (t.logsnr - s.logsnr)
                * sum(
                    float(w) * noise_ratio(level) * place(level) ** power for w, level in zip(GAUSS_WEIGHTS, fine, strict=True)
                )
            )
        assert abs(corrected - t.alpha * integral) < 1e-12 * max(1, abs(integral))
        if power == points - 1:
            assert abs(predicted - corrected) > 1e-4


def test_textbook_weights():
    """On equal steps of r all nodes in r or in the step are Adams-Bashforth's."""
    ve = VarianceExploding()
    levels = [ve(5.0 - i) for i in range(5)]
    for coordinate in ("ratio", "step"):
        history = [Evaluation(i, v, scalar(0), scalar(0)) for i, v in enumerate(levels[:4])]
        weights = Multistep(4, predict="eps", coordinate=coordinate).weights(history, levels[3], levels[4])
        expected = {3: -55 / 24, 2: 59 / 24, 1: -37 / 24, 0: 9 / 24}
        assert all(math.isclose(weights[i], expected[i], rel_tol=1e-13) for i in range(4))


@pytest.mark.parametrize("grid", ["karras", "exponential"])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_is_k_diffusions(order, grid):
    kd, path = k_diffusion(), VarianceExploding(0.05, 20.0)
    start = 20 * torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    denoiser, levels = Mixture.example(path), get_grid(grid, path, 20)
    ours = sample(denoiser, get_solver("lms", order=order), start, levels)
    theirs = kd.sample_lms(k_model(denoiser), start, k_sigmas(levels), disable=True, order=order)
    assert (ours - theirs).abs().max() < 1e-12
    assert ours.abs().max() < 10


# orders of convergence

VE = VarianceExploding(0.01, 100.0)
MIXTURE = replace(Mixture.example(VE), stds=Mixture.example(VE).stds + 0.5)
FIRST, LAST = -math.log(10), -math.log(0.15)


@pytest.fixture(scope="module")
def start():
    return 10 * torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def reference(start):
    return reference_ode(MIXTURE, start, VE.at_logsnr(FIRST), VE.at_logsnr(LAST), 800)


def graded(steps):
    """Uniform in logsnr with the first step cut into doubling parts, so that the low order of the start leaves no mark."""
    h = (LAST - FIRST) / steps
    cuts, part = [], h
    while part > h * h / 8:
        part /= 2
        cuts.insert(0, FIRST + part)
    return [VE.at_logsnr(v) for v in (FIRST, *cuts, *(FIRST + h * i for i in range(1, steps + 1)))]


@pytest.mark.parametrize(
    ("solver", "order", "steps"),
    [
        (Multistep(1, predict="eps"), 1, 64),
        (Multistep(2, predict="eps"), 2, 64),
        (Multistep(2, predict="eps", rule="midpoint"), 2, 64),
        (Multistep(3, predict="eps"), 3, 64),
        (Multistep(3, predict="eps", rule="published"), 2, 128),
        (Multistep(4, predict="eps"), 4, 64),
        (Multistep(2, predict="eps", coordinate="ratio"), 2, 64),
        (Multistep(3, predict="eps", coordinate="ratio"), 3, 64),
        (Multistep(4, predict="eps", coordinate="ratio"), 4, 128),
        (Multistep(2, predict="eps", corrector_order=3, rule="bh1"), 3, 64),
        (Multistep(3, predict="eps", coordinate="ratio", corrector_order=4), 4, 64),
    ],
    ids=str,
)
def test_slope(solver, order, steps, start, reference):
    coarse, fine = ((sample(MIXTURE, solver, start, graded(n)) - reference).square().mean().sqrt() for n in (steps, 2 * steps))
    assert abs(math.log2(coarse / fine) - order) < 0.15


# both ends

NAMES = ["lms", "ipndm", "ipndm_v", "deis", "dpm_solver_2m", "dpm_solver_3m"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["x0", "v", "flow"])
def test_from_pure_noise_to_clean_data(name, kind):
    path = RectifiedFlow()
    z = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    levels, mixture = get_grid("uniform", path, 60), Mixture.example(path, kind)
    assert levels[0].alpha == 0 and levels[-1].sigma == 0
    x = sample(mixture, get_solver(name), z, levels)
    assert torch.isfinite(x).all() and mixture.log_density(x, path(0.0)).min() > -12


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("coordinate", ["logsnr", "ratio", "step"])
def test_noise_on_eps_keeps_the_marginals(coordinate, eta):
    """Equation (2) with noise, from pure noise to clean data on a flow: mean and variance within four standard errors."""
    path, count = RectifiedFlow(), 20000
    mean, std = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)
    gaussian = Gaussian(path, mean, std, "flow")
    levels = [path(1.0), *(path.at_logsnr(-4 + 9 * i / 120) for i in range(121)), path(0.0)]
    z = torch.randn(count, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = sample(gaussian, Multistep(2, eta=eta, predict="eps", coordinate=coordinate), z, levels, noise=Replay(z, 3))
    assert ((x.mean(0) - mean).abs() < 4 * std / count**0.5).all()
    assert ((x.var(0) / std**2 - 1).abs() < 4 * (2 / count) ** 0.5).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predict": "score"}, "choose x0 or eps"),
        ({"coordinate": "time"}, "choose one of logsnr, ratio, step"),
        ({"coordinate": "ratio"}, "predict='eps' and rule='exact'"),
        ({"coordinate": "ratio", "predict": "eps", "rule": "midpoint"}, "predict='eps' and rule='exact'"),
        ({"predict": "eps", "eta": 0.5, "noise": "ancestral"}, "choose noise='sde'"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Multistep(**options)


def test_histories_of_x0_are_not_read_as_eps():
    levels = [PATH.at_logsnr(v) for v in (-1.0, 0.0, 0.5)]
    mixture, x = Mixture.example(PATH), torch.ones(2, 2, dtype=torch.float64)
    state = Multistep(2).step(mixture, State(x), levels[0], levels[1], Condition(), Context())
    with pytest.raises(ValueError, match="x0 predictions only"):
        Multistep(2, predict="eps").step(mixture, replace(state, step=1), levels[1], levels[2], Condition(), Context())


# diffusers, whose internals are float32

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def relative(ours, theirs):
    return (ours - theirs).abs().max() / theirs.abs().max()


def on_our_levels(scheduler, levels):
    """The scheduler run on exactly our sigma / alpha, in float64, whatever its own grid would have been."""
    scheduler.set_timesteps(len(levels) - 1)
    scheduler.sigmas = k_sigmas(levels)
    scheduler.timesteps = torch.arange(len(levels) - 1).flip(0)
    scheduler.set_begin_index(0)
    return scheduler


def run(scheduler, denoiser, x, levels, read=lambda p: p.eps, **options):
    for t, level in zip(scheduler.timesteps, levels, strict=False):
        prediction = denoiser(x, level, Condition(), Context())
        extra = {name: value() if callable(value) else value for name, value in options.items()}
        x = scheduler.step(read(prediction), t, x, return_dict=False, **extra)[0]
    return x


@pytest.fixture
def begin():
    return torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


MIX, LEVELS = Mixture.example(PATH, "eps"), get_grid("karras", PATH, 20)[:-1]  # theirs are not defined at clean data


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_is_log_rho(begin, order):
    """diffusers' DEIS, "log-rho", is the polynomial of eps in logsnr: the exact multistep DPM-Solver."""
    scheduler = diffusers.DEISMultistepScheduler(**BETAS, solver_order=order, lower_order_final=False)
    theirs = run(on_our_levels(scheduler, LEVELS), MIX, begin, LEVELS)
    assert relative(sample(MIX, get_solver("deis", order=order), begin, LEVELS), theirs) < 5e-6


FORMS = [(1, "midpoint", "exact"), (2, "midpoint", "midpoint"), (2, "heun", "exact"), (3, "heun", "published")]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("algorithm", "order", "kind", "rule"),
    [(a, *form) for a in ("dpmsolver", "dpmsolver++") for form in FORMS]
    + [(a, *form) for a in ("sde-dpmsolver", "sde-dpmsolver++") for form in FORMS[:3]],
)
def test_dpm_solver_multistep(begin, algorithm, order, kind, rule):
    """All four algorithms. The third order of the two with noise is no reference: `test_third_order_with_noise` shows the
    wrong sign of one, the other has none."""
    noisy = algorithm.startswith("sde")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        solver_order=order,
        solver_type=kind,
        algorithm_type=algorithm,
        lower_order_final=False,
        euler_at_final=False,
        final_sigmas_type="sigma_min",
    )
    extra = {"variance_noise": Replay(begin)} if noisy else {}
    theirs = run(on_our_levels(scheduler, LEVELS), MIX, begin, LEVELS, **extra)
    solver = Multistep(order, rule=rule, eta=float(noisy), predict="x0" if algorithm.endswith("++") else "eps")
    assert relative(sample(MIX, solver, begin, LEVELS, noise=Replay(begin)), theirs) < 5e-6


def test_third_order_with_noise():
    """Their sde-dpmsolver++ of order 3 adds the second-difference term with the wrong sign; ours integrates x0 = logsnr^2."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS,
        solver_order=3,
        solver_type="heun",
        algorithm_type="sde-dpmsolver++",
        lower_order_final=False,
        euler_at_final=False,
        final_sigmas_type="sigma_min",
    )
    levels = [PATH.at_logsnr(v) for v in (-1.2, -0.8, -0.4, 0.0, 0.4)]
    on_our_levels(scheduler, levels)
    outputs = [scalar(level.logsnr**2) for level in levels[1:4]]
    scheduler._step_index = 3
    theirs = scheduler.multistep_dpm_solver_third_order_update(outputs, sample=scalar(0), noise=scalar(0)).item()
    s, t = levels[3:]
    l = 0.2 + 0.2 * GAUSS
    exact = t.alpha * 0.2 * float(GAUSS_WEIGHTS @ (2 * np.exp(-2 * (t.logsnr - l)) * l**2))
    history = tuple(Evaluation(i, v, o) for i, (v, o) in enumerate(zip(levels[1:4], outputs, strict=True)))
    ours = {
        rule: sum(w * history[i].x0.item() for i, w in Multistep(3, 1.0, rule=rule).weights(history, s, t).items())
        for rule in ("exact", "published")
    }
    assert abs(ours["exact"] - exact) < 1e-13
    assert abs(theirs - exact) > 2 * abs(ours["published"] - exact) > 1e-3


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("rule", ["bh1", "bh2"])
@pytest.mark.parametrize("of", ["x0", "eps"])
def test_unipc(begin, order, rule, of):
    """On x0 and on eps, up to the last step."""
    scheduler = diffusers.UniPCMultistepScheduler(
        **BETAS,
        solver_order=order,
        solver_type=rule,
        predict_x0=of == "x0",
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    theirs = run(on_our_levels(scheduler, LEVELS), MIX, begin, LEVELS)
    ours = sample(MIX, Multistep(order, rule=rule, corrector_order=order + 1, predict=of), begin, LEVELS)
    assert relative(ours, theirs) < 5e-6


@pytest.mark.parametrize("tau", [0.0, 1.0])
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 2), (2, 2), (2, 3), (3, 4), (3, 3)])
@pytest.mark.parametrize("of", ["x0", "eps"])
def test_sa_solver(begin, predictor, corrector, tau, of):
    """Two points of x0 have UniPC's bh1 coefficient in theirs, a change of third order."""
    scheduler = diffusers.SASolverScheduler(
        **BETAS,
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda t: torch.tensor(tau, dtype=torch.float64),
        algorithm_type="data_prediction" if of == "x0" else "noise_prediction",
        lower_order_final=False,
    )
    on_our_levels(scheduler, LEVELS)
    theirs = run(scheduler, MIX, begin, LEVELS, generator=torch.Generator().manual_seed(4))
    solver = Multistep(predictor, eta=tau, corrector_order=corrector, predict=of, rule="bh1" if of == "x0" else "exact")
    ours = sample(MIX, solver, begin, LEVELS, noise=Replay(begin, 4))
    assert relative(ours, theirs) < 5e-6


@pytest.mark.filterwarnings("ignore:The `scale_model_input`")
@pytest.mark.parametrize("name", ["EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete"])
def test_sigma_schedulers(begin, name):
    """They hold x / alpha; on their own levels, from the start to clean data."""
    scheduler = getattr(diffusers, name + "Scheduler")(**BETAS, timestep_spacing="trailing")
    scheduler.set_timesteps(15)
    path = VariancePreserving.from_alphas_cumprod(scheduler.alphas_cumprod)
    levels = get_grid("trailing", path, 15)
    scheduler.sigmas = k_sigmas(levels)
    y, mixture = begin * noise_ratio(levels[0]), Mixture.example(path, "eps")
    generator = torch.Generator().manual_seed(4)
    for t, level in zip(scheduler.timesteps, levels, strict=False):
        eps = mixture(level.alpha * y, level, Condition(), Context()).eps
        extra = {"order": 4} if name.startswith("LMS") else {"generator": generator}
        y = scheduler.step(eps, t, y, return_dict=False, **extra)[0]
    solver = get_solver({"EulerDiscrete": "euler", "EulerAncestralDiscrete": "euler_a", "LMSDiscrete": "lms"}[name])
    ours = sample(mixture, solver, begin * noise_ratio(levels[0]) * levels[0].alpha, levels, noise=Replay(begin, 4))
    assert relative(ours, y) < 5e-6


@pytest.mark.parametrize(
    ("name", "options", "solver"),
    [
        ("EDMEulerScheduler", {}, Multistep(1)),
        ("EDMDPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "midpoint"}, Multistep(2, rule="midpoint")),
        ("EDMDPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun"}, Multistep(2)),
        ("EDMDPMSolverMultistepScheduler", {"solver_order": 3, "lower_order_final": False}, Multistep(3, rule="published")),
    ],
    ids=str,
)
def test_edm_schedulers(begin, name, options, solver):
    path = VarianceExploding(0.002, 80.0)
    levels = get_grid("karras", path, 18)
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(18)
    scheduler.sigmas = k_sigmas(levels)
    scheduler.set_begin_index(0)
    mixture = Mixture.example(path, "edm")
    theirs = run(scheduler, mixture, 80 * begin, levels, lambda p: p.raw)
    assert relative(sample(mixture, solver, 80 * begin, levels), theirs) < 5e-6
