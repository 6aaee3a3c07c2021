"""Rows of the solver table: solvers that keep nothing from one step to the next."""

from __future__ import annotations

from functools import partial

from samplers.solvers.adaptive import Adaptive
from samplers.solvers.blockwise import Blockwise
from samplers.solvers.ddim import ddim, euler, euler_ancestral
from samplers.solvers.dpm_solver import dpm_2, dpm_2_ancestral, dpm_solver_2, dpm_solver_3
from samplers.solvers.dpm_solver_pp import dpmpp_2s, dpmpp_2s_ancestral, dpmpp_3s, dpmpp_sde
from samplers.solvers.heun import Heun
from samplers.solvers.info import SolverInfo
from samplers.solvers.runge_kutta import RungeKutta
from samplers.solvers.seeds import seeds_2, seeds_3

BOUNDED = "bounded"  # the ending that the solvers with memory have here: docs/samplers.md has the table that chose it
_SDE = ("eta", "s_noise")
_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")

ONE_STEP: tuple[SolverInfo, ...] = (
    SolverInfo(
        "euler",
        euler,
        "Euler: one straight step, with churn if asked for",
        1,
        grid="karras",
        aliases=("Euler", "flow_euler"),
        options=_CHURN,
    ),
    SolverInfo(
        "euler_a",
        euler_ancestral,
        "Euler ancestral: Euler with fresh noise at every step",
        1,
        stochastic=True,
        aliases=("Euler a", "euler_ancestral"),
        options=_SDE,
    ),
    SolverInfo("ddim", ddim, "DDIM; eta = 0 is deterministic, eta = 1 is DDPM sampling", 1, grid="trailing", options=_SDE),
    SolverInfo("heun", Heun, "Heun with churn (EDM, Algorithm 2)", 2, evaluations=2, aliases=("edm",), options=_CHURN),
    SolverInfo(
        "dpm_2", dpm_2, "DPM-Solver-2 with churn: midpoint in log sigma", 2, evaluations=2, aliases=("DPM2",), options=_CHURN
    ),
    SolverInfo(
        "dpm_2_a",
        dpm_2_ancestral,
        "DPM-Solver-2 ancestral",
        2,
        evaluations=2,
        stochastic=True,
        aliases=("DPM2 a", "dpm_2_ancestral"),
        options=_SDE,
    ),
    SolverInfo(
        "dpm_solver_2",
        dpm_solver_2,
        "DPM-Solver-2: the noise prediction at two points of each step",
        2,
        evaluations=2,
        grid="uniform_logsnr",
        options=("rule", "r1"),
    ),
    SolverInfo(
        "dpm_solver_3",
        dpm_solver_3,
        "DPM-Solver-3: the noise prediction at three points of each step",
        3,
        evaluations=3,
        grid="uniform_logsnr",
        options=("rule", "r1", "r2"),
    ),
    SolverInfo(
        "dpm_fast",
        partial(Blockwise, ending=BOUNDED),
        "DPM-Solver-fast: third order over blocks of three steps, one evaluation each",
        2,
        grid="uniform_logsnr",
        aliases=("DPM fast", "dpm_solver_fast"),
        options=("ending", "order", "predict", "rule"),
    ),
    SolverInfo(
        "dpm_adaptive",
        partial(Adaptive, together=False),
        "DPM-Solver-23 with steps of its own choice between those of the grid, of which 2 are enough",
        3,
        evaluations=3,
        adaptive=True,
        grid="uniform_logsnr",
        aliases=("DPM adaptive",),
        options=("order", "rtol", "atol", "h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety", "together", *_SDE),
    ),
    SolverInfo(
        "dpmpp_2s",
        dpmpp_2s,
        "DPM-Solver++(2S): x0 at two points of each step",
        2,
        evaluations=2,
        aliases=("DPM++ 2S",),
        options=("rule", "r1"),
    ),
    SolverInfo(
        "dpmpp_3s",
        dpmpp_3s,
        "DPM-Solver++(3S): x0 at three points of each step",
        3,
        evaluations=3,
        aliases=("DPM++ 3S",),
        options=("rule", "r1", "r2"),
    ),
    SolverInfo(
        "dpmpp_2s_a",
        dpmpp_2s_ancestral,
        "DPM-Solver++(2S) ancestral",
        2,
        evaluations=2,
        stochastic=True,
        aliases=("DPM++ 2S a", "dpmpp_2s_ancestral"),
        options=_SDE,
    ),
    SolverInfo(
        "dpmpp_sde",
        dpmpp_sde,
        "DPM-Solver++ with noise at both points of each step; wants Brownian noise",
        2,
        evaluations=2,
        stochastic=True,
        brownian=True,
        aliases=("DPM++ SDE", "dpmpp_sde_gpu"),
        options=("r1", *_SDE),
    ),
    SolverInfo(
        "seeds_2",
        seeds_2,
        "SEEDS-2: the reverse SDE through two points of each step",
        2,
        evaluations=2,
        stochastic=True,
        brownian=True,
        aliases=("SEEDS-2",),
        options=("r1", *_SDE),
    ),
    SolverInfo(
        "seeds_3",
        seeds_3,
        "SEEDS-3: the reverse SDE through three points of each step",
        3,
        evaluations=3,
        stochastic=True,
        brownian=True,
        aliases=("SEEDS-3",),
        options=("r1", "r2", *_SDE),
    ),
    SolverInfo(
        "flow_midpoint",
        partial(RungeKutta, "midpoint"),
        "Midpoint rule in the path's clock, for flow models",
        2,
        evaluations=2,
        grid="uniform",
    ),
    SolverInfo(
        "flow_heun", partial(RungeKutta, "heun"), "Heun in the path's clock, for flow models", 2, evaluations=2, grid="uniform"
    ),
    SolverInfo(
        "flow_ralston",
        partial(RungeKutta, "ralston"),
        "Ralston's second-order rule in the path's clock, for flow models",
        2,
        evaluations=2,
        grid="uniform",
    ),
    SolverInfo(
        "flow_rk4",
        partial(RungeKutta, "rk4"),
        "Classical Runge-Kutta in the path's clock, for flow models",
        4,
        evaluations=4,
        grid="uniform",
    ),
)
