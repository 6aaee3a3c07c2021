"""ComfyUI's samplers: numbers that its own code gives on a toy, and what its names mean on every path.

`comfy.json` holds rows (sampler, options, case, the four numbers of x at the end, evaluations). The toy: `Mixture.example` as
the conditional model, the same with its means halved and moved by 0.3 as the unconditional one (guidance 1.7, for the samplers
of CFG++), x from Z, and noise that is a function of the two sigmas of a step, or the same at all for churn.
"""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path as File

import pytest
import torch

from samplers import (
    SOLVERS,
    Condition,
    Context,
    RectifiedFlow,
    VarianceExploding,
    VariancePreserving,
    get_solver,
    sample,
    solver_info,
)
from samplers.analytic import Mixture, reference_ode
from samplers.guidance.two_branch import as_guided
from samplers.solvers.comfy.start import at_percent

VE, VP, RF = VarianceExploding(0.03, 15.0), VariancePreserving.scaled_linear(), RectifiedFlow()
CASES = {
    "VE": (15.0, 8.0, 5.0, 3.0, 1.6, 0.9, 0.4, 0.1, 0.0),
    "RF": (1.0, 0.93, 0.84, 0.7, 0.55, 0.4, 0.25, 0.1, 0.0),
    "RF part": (0.96, 0.93, 0.84, 0.7, 0.55, 0.4, 0.25, 0.1, 0.03),
}
Z = torch.tensor([[0.3, -1.1], [-0.7, 0.9]], dtype=torch.float64)
ROWS = json.loads((File(__file__).parent / "comfy.json").read_text())
# every sampler of ComfyUI's list, but those of test_comfy_own_steps.py
NAMES = sorted({row[0] for row in ROWS})


@dataclass(frozen=True)
class Both:
    """Classifier-free guidance of two models."""

    cond: Mixture
    null: Mixture
    scale: float = 1.7

    @property
    def path(self):
        return self.cond.path

    def __call__(self, x, level, condition, context):
        cond, null = (model(x, level, condition, context) for model in (self.cond, self.null))
        return as_guided(cond, null.raw + self.scale * (cond.raw - null.raw), cond, null)


def toy(path, name):
    model = Mixture.example(path, "flow" if path is RF else "x0")
    return Both(model, replace(model, means=0.5 * model.means + 0.3)) if "cfg_pp" in name else model


def toy_noise(a, b):
    return 1.3 * torch.cos(torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64) * (3 * a + 5 * b + 1))


def sigma(level):
    return level.sigma if level.t == level.sigma else level.sigma / level.alpha


@pytest.mark.parametrize(("name", "options", "case", "expected", "evaluations"), ROWS)
def test_the_numbers_of_its_code(name, options, case, expected, evaluations):
    path = VE if case == "VE" else RF
    levels, context, denoiser = [path(s) for s in CASES[case]], Context(), toy(path, name)

    def noise(s, t):
        return toy_noise(0, 0) if "s_churn" in options else toy_noise(sigma(s), sigma(t))

    x = sample(denoiser, get_solver(f"comfy:{name}", **options), levels[0].sigma * Z, levels, noise=noise, context=context)
    assert (x.flatten() - torch.tensor(expected, dtype=torch.float64)).abs().max() < 1e-10 * max(1.0, *map(abs, expected))
    assert context.evaluations / len(Z) / (2 if "cfg_pp" in name else 1) == evaluations


@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_its_own_needs_no_prefix(name):
    """What only ComfyUI has is found without `comfy:` too; what others have is not ComfyUI's form there."""
    info = solver_info(f"comfy:{name}")
    plain = solver_info(name)
    assert info is plain if info.name == name else info.name.startswith("comfy:") or plain is info


@pytest.mark.parametrize("name", [name for name, info in SOLVERS.items() if info.own_clock])
def test_a_table_is_a_sigma(name):
    """On variance-preserving tables sigma is sigma / alpha, so that all but the interval of SA-Solver is that of VE."""
    options = {"tau_start": 0.0, "tau_end": 1.0} if "sa_solver" in name else {}
    runs = []
    for path in (VE, VP):
        levels = [path.at_logsnr(v) for v in (-2.5, -1.9, -0.6, 0.1, 1.2, 2.0, math.inf)]
        x = levels[0].sigma / levels[0].alpha * Z
        noise = iter([toy_noise(i, i + 1) for i in range(20)])
        solver = get_solver(name, **options)
        runs.append(sample(toy(path, name), solver, x * levels[0].alpha, levels, noise=lambda *_, left=noise: next(left)))
    assert (runs[0] - runs[1]).abs().max() < 1e-9


@pytest.mark.parametrize("name", [name for name, info in SOLVERS.items() if info.both_branches])
def test_without_guidance_cfg_pp_is_the_sampler(name):
    """One branch: the plain sampler of that name, whose steps it then takes."""
    levels = [VE(s) for s in CASES["VE"]]
    base = name.removesuffix("_cfg_pp")
    one = replace(toy(VE, name), scale=1.0, null=toy(VE, name).cond)
    runs = [
        sample(denoiser, get_solver(solver), 15 * Z, levels, noise=lambda a, b: toy_noise(sigma(a), sigma(b)))
        for denoiser, solver in ((one, name), (one.cond, name), (one.cond, f"comfy:{base}"))
    ]
    assert all((x - runs[0]).abs().max() < 1e-9 for x in runs)


SMOOTH = replace(Mixture.example(VE), stds=Mixture.example(VE).stds + 0.5)
DETERMINISTIC = sorted(info.name for n in NAMES if not (info := solver_info(f"comfy:{n}")).stochastic)


@pytest.fixture(scope="module")
def solution():
    """(start at sigma 10, the ODE's end at sigma 0.15)."""
    start = 10 * torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return start, reference_ode(SMOOTH, start, VE(10.0), VE(0.15), 800)


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_declared_order_is_observed(name, uneven, solution):
    """From an ordinary first step, with every second level moved by a third of a step too."""
    start, end = solution

    def error(steps):
        shift = [0.35 * (uneven and i % 2 == 1 and i < steps) for i in range(steps + 1)]
        parts = [(i + s) / steps for i, s in enumerate(shift)]
        x = sample(SMOOTH, get_solver(name), start, [VE(10.0 ** (1 - u) * 0.15**u) for u in parts])
        return (x - end).square().mean().sqrt().item()

    observed, declared = math.log2(error(64) / error(128)), solver_info(name).order
    if declared:
        assert observed > declared - 0.15
    else:  # the weights of ipndm_v do not sum to the step, unless steps are even
        assert observed < 0.5 if uneven else observed > 1.85


def test_percents_of_training_time():
    """Timestep (1 - percent) 999 of a table, log sigma on a variance-exploding path, the shifted clock of a flow."""
    assert at_percent(VP, 0.2).t == pytest.approx((0.8 * 999 + 1) / 1000)
    assert at_percent(VE, 0.25).sigma == pytest.approx(15.0**0.75 * 0.03**0.25)
    assert at_percent(RF, 0.2, shift=3.0).t == pytest.approx(3 * 0.8 / (1 + 2 * 0.8))
    assert at_percent(RF, 0.0).alpha == 0 and at_percent(RF, 1.0).sigma == 0


def test_heun_plus_plus_needs_to_know_the_levels():
    levels = [VE(s) for s in CASES["VE"]]
    solver = get_solver("heunpp2")
    with pytest.raises(ValueError, match="two levels ahead"):
        solver.step(toy(VE, ""), solver.init(Z), levels[0], levels[1], Condition(), Context())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("heunpp2", {"s_churn": -1.0}, "s_churn=-1.0"),
        ("gradient_estimation", {"gamma": math.nan}, "gamma=nan"),
        ("res_multistep_ancestral", {"eta": 1.5}, "0 <= eta <= 1"),
        ("sa_solver_pece", {"tau_start": 0.9}, "tau_start <= tau_end"),
        ("sa_solver_pece", {"shift": 0.0}, "shift"),
        ("comfy:dpmpp_2m_sde", {"shift": -1.0}, "shift"),
        ("comfy:dpmpp_2m_sde", {"eta": -1.0}, "eta=-1.0"),
        ("comfy:uni_pc", {"order": 4}, "choose 1, 2 or 3"),
        ("comfy:deis", {"order": 5}, "choose 1, 2, 3 or 4"),
        ("comfy:euler_ancestral", {"s_noise": math.inf}, "s_noise=inf"),
        ("comfy:heun", {"s_tmin": 2.0, "s_tmax": 1.0}, "s_tmin <= s_tmax"),
    ],
)
def test_settings_are_checked(name, options, message):
    with pytest.raises(ValueError, match=message):
        get_solver(name, **options)
