"""Solvers by name: the closed table that command lines, recipes and documentation read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from samplers.sample import Solver
from samplers.solvers.adaptive import Adaptive
from samplers.solvers.blockwise import Blockwise
from samplers.solvers.churn import Churned
from samplers.solvers.consistency import TCD, Consistency
from samplers.solvers.ddpm import DDPM
from samplers.solvers.edict import EDICT
from samplers.solvers.er_sde import ERSDE
from samplers.solvers.flow_map import FlowMap
from samplers.solvers.heun import Heun
from samplers.solvers.multistep import Multistep
from samplers.solvers.pndm import PNDM
from samplers.solvers.restart import Restart
from samplers.solvers.runge_kutta import RungeKutta
from samplers.solvers.singlestep import Singlestep


@dataclass(frozen=True)
class SolverInfo:
    """What the tables say about a solver. `factory(**options)` builds it; `options` are the names it may be given."""

    name: str
    factory: Callable[..., Solver]
    description: str
    order: int
    evaluations: int = 1  # network evaluations per step
    extra: int = 0  # and how many more a run of some steps takes
    stochastic: bool = False
    brownian: bool = False  # solves the reverse SDE: its noise is best taken from one Brownian path (`brownian_noise`)
    adaptive: bool = False  # chooses steps of its own: `evaluations` are those of one of them, and a grid of 2 steps is enough
    grid: str = "karras"  # the grid it is usually run on
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


_SDE = ("eta", "s_noise")
_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")

SOLVERS: dict[str, SolverInfo] = {
    info.name: info
    for info in (
        SolverInfo(
            "euler", partial(Multistep, 1), "Euler: one straight step", 1, grid="karras", aliases=("Euler", "flow_euler")
        ),
        SolverInfo(
            "euler_a",
            partial(Multistep, 1, eta=1.0, noise="ancestral"),
            "Euler ancestral: Euler with fresh noise at every step",
            1,
            stochastic=True,
            aliases=("Euler a", "euler_ancestral"),
            options=_SDE,
        ),
        SolverInfo(
            "ddim",
            partial(Multistep, 1, noise="ancestral"),
            "DDIM; eta = 0 is deterministic, eta = 1 is DDPM sampling",
            1,
            grid="trailing",
            options=_SDE,
        ),
        SolverInfo("heun", Heun, "Heun with churn (EDM, Algorithm 2)", 2, evaluations=2, aliases=("edm",), options=_CHURN),
        SolverInfo(
            "dpm_2",
            partial(Churned, Singlestep(2, "eps")),
            "DPM-Solver-2 with churn: midpoint in log sigma",
            2,
            evaluations=2,
            aliases=("DPM2",),
            options=_CHURN,
        ),
        SolverInfo(
            "dpm_2_a",
            partial(Singlestep, order=2, of="eps", eta=1.0, noise="ancestral"),
            "DPM-Solver-2 ancestral",
            2,
            evaluations=2,
            stochastic=True,
            aliases=("DPM2 a", "dpm_2_ancestral"),
            options=_SDE,
        ),
        SolverInfo(
            "dpm_solver_2",
            partial(Singlestep, order=2, of="eps"),
            "DPM-Solver-2: the noise prediction at two points of each step",
            2,
            evaluations=2,
            grid="uniform_logsnr",
            options=("rule", "r1"),
        ),
        SolverInfo(
            "dpm_solver_3",
            partial(Singlestep, order=3, of="eps"),
            "DPM-Solver-3: the noise prediction at three points of each step",
            3,
            evaluations=3,
            grid="uniform_logsnr",
            options=("rule", "r1", "r2"),
        ),
        SolverInfo(
            "dpm_fast",
            Blockwise,
            "DPM-Solver-fast: third order over blocks of three steps, one evaluation each",
            3,
            grid="uniform_logsnr",
            aliases=("DPM fast", "dpm_solver_fast"),
            options=("order", "of", "rule"),
        ),
        SolverInfo(
            "dpm_adaptive",
            Adaptive,
            "DPM-Solver-23 with steps of its own choice between those of the grid, of which 2 are enough",
            3,
            evaluations=3,
            adaptive=True,
            grid="uniform_logsnr",
            aliases=("DPM adaptive",),
            options=("order", "rtol", "atol", "h_init", "pcoeff", "icoeff", "dcoeff", "accept_safety", *_SDE),
        ),
        SolverInfo(
            "dpmpp_2s",
            partial(Singlestep, order=2),
            "DPM-Solver++(2S): x0 at two points of each step",
            2,
            evaluations=2,
            aliases=("DPM++ 2S",),
            options=("rule", "r1"),
        ),
        SolverInfo(
            "dpmpp_3s",
            partial(Singlestep, order=3),
            "DPM-Solver++(3S): x0 at three points of each step",
            3,
            evaluations=3,
            aliases=("DPM++ 3S",),
            options=("rule", "r1", "r2"),
        ),
        SolverInfo(
            "dpmpp_2s_a",
            partial(Singlestep, order=2, eta=1.0, noise="ancestral"),
            "DPM-Solver++(2S) ancestral",
            2,
            evaluations=2,
            stochastic=True,
            aliases=("DPM++ 2S a", "dpmpp_2s_ancestral"),
            options=_SDE,
        ),
        SolverInfo(
            "dpmpp_sde",
            partial(Singlestep, order=2, eta=1.0, noise="overlapping"),
            "DPM-Solver++ with noise at both points of each step; wants Brownian noise",
            2,
            evaluations=2,
            stochastic=True,
            brownian=True,
            aliases=("DPM++ SDE",),
            options=("r1", *_SDE),
        ),
        SolverInfo(
            "seeds_2",
            partial(Singlestep, order=2, eta=1.0),
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
            partial(Singlestep, order=3, eta=1.0),
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
            "flow_heun",
            partial(RungeKutta, "heun"),
            "Heun in the path's clock, for flow models",
            2,
            evaluations=2,
            grid="uniform",
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
        SolverInfo(
            "dpmpp_2m",
            partial(Multistep, 2, rule="midpoint"),
            "DPM-Solver++(2M): the usual choice for 10 to 30 steps",
            2,
            aliases=("DPM++ 2M",),
            options=("rule",),
        ),
        SolverInfo(
            "dpmpp_2m_sde",
            partial(Multistep, 2, eta=1.0, rule="midpoint"),
            "DPM-Solver++(2M) with noise",
            2,
            stochastic=True,
            brownian=True,
            aliases=("DPM++ 2M SDE",),
            options=("rule", *_SDE),
        ),
        SolverInfo(
            "dpmpp_2m_sde_heun",
            partial(Multistep, 2, eta=1.0, rule="exact"),
            "DPM-Solver++(2M) with noise, exact coefficients",
            2,
            stochastic=True,
            brownian=True,
            aliases=("DPM++ 2M SDE Heun",),
            options=_SDE,
        ),
        SolverInfo(
            "dpmpp_3m",
            partial(Multistep, 3, rule="published"),
            "DPM-Solver++(3M), coefficients as published; rule='exact' for third order",
            3,
            aliases=("DPM++ 3M",),
            options=("rule",),
        ),
        SolverInfo(
            "dpmpp_3m_sde",
            partial(Multistep, 3, eta=1.0, rule="published"),
            "DPM-Solver++(3M) with noise; for 30 steps and more",
            3,
            stochastic=True,
            brownian=True,
            grid="exponential",
            aliases=("DPM++ 3M SDE",),
            options=("rule", *_SDE),
        ),
        SolverInfo(
            "unipc",
            partial(Multistep, order=3, rule="bh2", corrector_order=4),
            "UniPC-3: third-order predictor and free corrector",
            3,
            grid="uniform_logsnr",
            aliases=("UniPC", "uni_pc", "uni_pc_bh2"),
            options=("rule", "order", "corrector_order"),
        ),
        SolverInfo(
            "res_multistep", partial(Multistep, 2), "RES: second-order multistep, exact coefficients", 2, aliases=("res_2m",)
        ),
        SolverInfo(
            "sa_solver",
            partial(Multistep, order=3, eta=1.0, corrector_order=4),
            "SA-Solver: stochastic Adams predictor and corrector, tau^2 = eta throughout",
            3,
            stochastic=True,
            brownian=True,
            grid="uniform_logsnr",
            aliases=("SA-Solver",),
            options=("order", "corrector_order", *_SDE),
        ),
        SolverInfo(
            "dpm_solver_2m",
            partial(Multistep, order=2, of="eps", rule="midpoint"),
            "DPM-Solver(2M): second-order multistep on the noise prediction",
            2,
            options=("rule", "eta", "s_noise"),
        ),
        SolverInfo(
            "dpm_solver_3m",
            partial(Multistep, order=3, of="eps", rule="published"),
            "DPM-Solver(3M) on the noise prediction, coefficients as published; rule='exact' is DEIS",
            3,
            options=("rule", "eta", "s_noise"),
        ),
        SolverInfo(
            "deis",
            partial(Multistep, order=3, of="eps"),
            "DEIS in log-rho: exact integrals of the noise prediction",
            3,
            options=("order",),
        ),
        SolverInfo(
            "lms",
            partial(Multistep, order=4, of="eps", coordinate="ratio"),
            "Linear multistep: Adams-Bashforth in sigma",
            4,
            aliases=("LMS", "rho_deis"),
            options=("order",),
        ),
        SolverInfo(
            "ipndm",
            partial(Multistep, order=4, of="eps", coordinate="step"),
            "iPNDM: Adams-Bashforth as if all steps were equally long",
            4,
            options=("order",),
        ),
        SolverInfo(
            "ipndm_v",
            partial(Multistep, order=4, of="eps", coordinate="ratio"),
            "iPNDM with variable steps, the same as LMS",
            4,
            options=("order",),
        ),
        SolverInfo(
            "pndm",
            PNDM,
            "PLMS: iPNDM after one Heun step, or after three Runge-Kutta steps",
            4,
            extra=1,
            grid="trailing",
            aliases=("PLMS",),
            options=("warmup",),
        ),
        SolverInfo(
            "ddpm",
            DDPM,
            "DDPM ancestral sampling; variance may be fixed_small (Euler ancestral), fixed_large or learned_range",
            1,
            stochastic=True,
            grid="trailing",
            options=("variance", "s_noise"),
        ),
        SolverInfo(
            "er_sde",
            ERSDE,
            "ER-SDE-Solver-3: little noise at low noise levels",
            3,
            stochastic=True,
            aliases=("ER SDE",),
            options=("order", "scale", "rule", "s_noise"),
        ),
        SolverInfo(
            "edict",
            EDICT,
            "EDICT: DDIM on two coupled sequences, whose steps `invert_edict` undoes exactly",
            1,
            evaluations=2,
            extra=1,
            grid="trailing",
            aliases=("EDICT",),
            options=("mix", "alternate"),
        ),
        SolverInfo(
            "consistency",
            Consistency,
            "Consistency models: to the data and back to the next level's noise",
            1,
            stochastic=True,
            options=("sigma_min", "s_noise"),
        ),
        SolverInfo(
            "lcm",
            Consistency,
            "Latent consistency models: 2 to 8 steps",
            1,
            stochastic=True,
            grid="trailing",
            aliases=("LCM",),
            options=("s_noise",),
        ),
        SolverInfo(
            "tcd",
            TCD,
            "Trajectory consistency: eta = 0 is deterministic, 1 all new noise",
            1,
            stochastic=True,
            grid="trailing",
            aliases=("TCD",),
            options=("eta",),
        ),
        SolverInfo(
            "flow_map",
            FlowMap,
            "Flow maps (MeanFlow, IMM): straight steps of a network that is told where each one ends",
            1,
            grid="uniform",
        ),
        SolverInfo(
            "restart",
            Restart,
            "Heun that goes back from sigma_min to sigma_max with new noise",
            2,
            evaluations=2,
            extra=18,
            stochastic=True,
            aliases=("Restart",),
            options=("sigma_min", "sigma_max", "steps", "times"),
        ),
    )
}
