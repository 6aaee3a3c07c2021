"""The rows of ComfyUI's samplers in the table of solvers.

A name that only ComfyUI has is ComfyUI's sampler, on every path. Where another solver has the name, ComfyUI's own form is
`comfy:` and the name. `comfy:NAME` is a spelling of every one of its samplers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from samplers.sample import Solver
from samplers.solvers.comfy.adams import PublishedAdams
from samplers.solvers.comfy.ancestral import Ancestral
from samplers.solvers.comfy.cfg_pp import EulerCFGPlusPlus, TwoStepCFGPlusPlus
from samplers.solvers.comfy.er_sde import SummedERSDE
from samplers.solvers.comfy.gradient_estimation import GradientEstimation
from samplers.solvers.comfy.heunpp import HeunPlusPlus
from samplers.solvers.comfy.in_sigma import InSigma
from samplers.solvers.comfy.own_steps import OwnAdaptive, OwnFast
from samplers.solvers.comfy.predictor_corrector import StochasticAdams, UniPC
from samplers.solvers.comfy.res import RESMultistep
from samplers.solvers.comfy.start import StartBelow
from samplers.solvers.ddpm import DDPM
from samplers.solvers.exponential_heun import ExponentialHeun
from samplers.solvers.heun import Heun
from samplers.solvers.info import SolverInfo
from samplers.solvers.multistep import Multistep
from samplers.solvers.singlestep import Singlestep

_SDE = ("eta", "s_noise")
_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")
_START = (*_SDE, "shift")
_PID = ("order", "rtol", "atol", "h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety")
_SA = ("tau", "tau_start", "tau_end", "order", "corrector_order", "shift", "s_noise")


def _row(
    name: str, solver: Callable[..., Solver], says: str, order: int, options: tuple[str, ...] = (), **more: Any
) -> SolverInfo:
    """A sampler that only ComfyUI has."""
    aliases = (f"comfy:{name}", *more.pop("aliases", ()))
    return SolverInfo(name, solver, says, order, options=options, aliases=aliases, **{"own_clock": True} | more)


def _form(
    name: str, solver: Callable[..., Solver], says: str, order: int, options: tuple[str, ...] = (), **more: Any
) -> SolverInfo:
    """ComfyUI's form of a sampler that others have too."""
    own = {"own_clock": True} | more
    return SolverInfo(f"comfy:{name}", solver, f"ComfyUI's {name}: {says}", order, options=options, **own)


def _below(inner: Solver) -> Callable[..., Solver]:
    return partial(StartBelow, inner)


_noisy: dict[str, Any] = {"stochastic": True}
_sde: dict[str, Any] = {"stochastic": True, "brownian": True, "own_clock": False}
_pp: dict[str, Any] = {"both_branches": True}

ROWS: tuple[SolverInfo, ...] = (
    _row("heunpp2", HeunPlusPlus, "Heun++: slopes of the next two levels", 1, _CHURN, evaluations=3, extra=-1),
    _row(
        "exp_heun_2_x0",
        _below(ExponentialHeun()),
        "exponential Heun: x0 at both ends of each step",
        2,
        ("shift",),
        evaluations=2,
        own_clock=False,
    ),
    _row(
        "exp_heun_2_x0_sde",
        _below(ExponentialHeun(eta=1.0)),
        "exponential Heun on the reverse SDE",
        2,
        _START,
        evaluations=2,
        **_sde,
    ),
    _row("gradient_estimation", GradientEstimation, "Euler on a slope that runs ahead", 1, ("gamma",)),
    _row(
        "res_multistep_ancestral",
        RESMultistep,
        "RES multistep with ancestral noise",
        2,
        _SDE,
        aliases=("res_multistep_a",),
        **_noisy,
    ),
    _row(
        "sa_solver_pece",
        partial(StochasticAdams, pece=True),
        "SA-Solver that evaluates each corrected point again",
        2,
        _SA,
        evaluations=2,
        **_sde | {"own_clock": True},
    ),
    _row("euler_cfg_pp", EulerCFGPlusPlus, "Euler under CFG++", 1, own_clock=False, aliases=("DDIM CFG++",), **_pp),
    _row(
        "euler_ancestral_cfg_pp",
        partial(EulerCFGPlusPlus, eta=1.0),
        "Euler ancestral under CFG++",
        1,
        _SDE,
        own_clock=False,
        aliases=("euler_a_cfg_pp",),
        **_noisy,
        **_pp,
    ),
    _row(
        "dpmpp_2s_ancestral_cfg_pp",
        partial(Ancestral, "dpmpp_2s", cfg_pp=True),
        "DPM-Solver++(2S) ancestral under CFG++",
        2,
        _SDE,
        evaluations=2,
        aliases=("dpmpp_2s_a_cfg_pp",),
        **_noisy,
        **_pp,
    ),
    _row("dpmpp_2m_cfg_pp", TwoStepCFGPlusPlus, "DPM-Solver++(2M) under CFG++", 2, **_pp),
    _row("res_multistep_cfg_pp", partial(RESMultistep, eta=0.0, cfg_pp=True), "RES multistep under CFG++", 2, **_pp),
    _row(
        "res_multistep_ancestral_cfg_pp",
        partial(RESMultistep, cfg_pp=True),
        "RES multistep with ancestral noise under CFG++",
        2,
        _SDE,
        aliases=("res_multistep_a_cfg_pp",),
        **_noisy,
        **_pp,
    ),
    _row(
        "gradient_estimation_cfg_pp",
        partial(GradientEstimation, cfg_pp=True),
        "gradient estimation under CFG++",
        1,
        ("gamma",),
        **_pp,
    ),
    _form("euler", partial(InSigma, Multistep(1)), "churn in sigma", 1, _CHURN, aliases=("comfy:ddim",)),
    _form("euler_ancestral", Ancestral, "on flows with their own noise", 1, _SDE, aliases=("comfy:euler_a",), **_noisy),
    _form("heun", partial(InSigma, Heun()), "in sigma", 2, _CHURN, evaluations=2),
    _form("dpm_2", partial(InSigma, Singlestep(2, "eps")), "midpoint in log sigma", 2, _CHURN, evaluations=2),
    _form(
        "dpm_2_ancestral",
        partial(Ancestral, "dpm_2"),
        "on flows with their own noise",
        2,
        _SDE,
        evaluations=2,
        aliases=("comfy:dpm_2_a",),
        **_noisy,
    ),
    _form(
        "lms",
        partial(InSigma, Multistep(4, predict="eps", coordinate="ratio"), True),
        "in sigma, the last step to the predicted image",
        2,
    ),
    _form(
        "dpmpp_2s_ancestral",
        partial(Ancestral, "dpmpp_2s"),
        "on flows with their own noise",
        2,
        _SDE,
        evaluations=2,
        aliases=("comfy:dpmpp_2s_a",),
        **_noisy,
    ),
    _form(
        "dpmpp_sde",
        _below(Singlestep(order=2, eta=1.0, noise="overlapping")),
        "flows start below pure noise",
        2,
        _START,
        evaluations=2,
        aliases=("comfy:dpmpp_sde_gpu",),
        **_sde,
    ),
    _form("dpmpp_2m", partial(InSigma, Multistep(2, rule="midpoint")), "in log sigma", 2),
    _form(
        "dpmpp_2m_sde",
        _below(Multistep(2, eta=1.0, rule="midpoint")),
        "flows start below pure noise",
        2,
        _START,
        aliases=("comfy:dpmpp_2m_sde_gpu",),
        **_sde,
    ),
    _form(
        "dpmpp_2m_sde_heun",
        _below(Multistep(2, eta=1.0)),
        "flows start below pure noise",
        2,
        _START,
        aliases=("comfy:dpmpp_2m_sde_heun_gpu",),
        **_sde,
    ),
    _form(
        "dpmpp_3m_sde",
        _below(Multistep(3, eta=1.0, rule="published")),
        "flows start below pure noise",
        2,
        _START,
        grid="exponential",
        aliases=("comfy:dpmpp_3m_sde_gpu",),
        **_sde,
    ),
    _form("dpm_fast", OwnFast, "blocks of its own down to the last noisy level, where it stops", 2, own_steps=True),
    _form(
        "dpm_adaptive",
        OwnAdaptive,
        "steps of its own down to the last noisy level, where it stops",
        3,
        (*_PID, "together", *_SDE),
        evaluations=3,
        adaptive=True,
        own_steps=True,
    ),
    _form("ddpm", partial(InSigma, DDPM()), "in sigma", 1, **_noisy),
    _form(
        "ipndm",
        partial(InSigma, Multistep(4, predict="eps", coordinate="step"), True),
        "in sigma, the last step to the predicted image; as if steps were equal",
        1,
    ),
    _form("ipndm_v", PublishedAdams, "published weights, whose slips keep it from converging on uneven steps", 0, ("order",)),
    _form("deis", partial(PublishedAdams, "deis", order=3), "polynomials in VP time", 2, ("order",)),
    _form("res_multistep", partial(InSigma, Multistep(2)), "in log sigma", 2),
    _form(
        "er_sde",
        _below(SummedERSDE()),
        "Taylor form, integrals of 200 points",
        2,
        ("s_noise", "shift"),
        own_clock=False,
        **_noisy,
    ),
    _form("seeds_2", _below(Singlestep(order=2, eta=1.0)), "flows start below pure noise", 2, _START, evaluations=2, **_sde),
    _form("seeds_3", _below(Singlestep(order=3, eta=1.0)), "flows start below pure noise", 3, _START, evaluations=3, **_sde),
    _form(
        "sa_solver", StochasticAdams, "noise from a fifth to four fifths of training time", 3, _SA, **_sde | {"own_clock": True}
    ),
    _form("uni_pc", UniPC, "B(h) = h, lower orders at the end", 2, ("order", "sigma_end")),
    _form("uni_pc_bh2", partial(UniPC, "bh2"), "B(h) = 1 - exp(-h), lower orders at the end", 2, ("order", "sigma_end")),
)
