"""The closed tables of solvers and grids, by the names users type.

A name is looked up in any spelling: case, spaces, "+" written as "p", dashes and underscores do not matter, and the labels
of AUTOMATIC1111 ("DPM++ 2M", "Euler a") are aliases. "DPM++ 2M Karras" names a solver and a grid: see `parse_sampler`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from samplers import grids
from samplers.grids import Grid
from samplers.path import Path
from samplers.sample import Solver
from samplers.solvers import Heun, Multistep
from samplers.solvers.adaptive import Adaptive
from samplers.solvers.blockwise import Blockwise
from samplers.solvers.churn import Churned
from samplers.solvers.consistency import TCD, Consistency
from samplers.solvers.ddpm import DDPM
from samplers.solvers.er_sde import ERSDE
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


@dataclass(frozen=True)
class GridInfo:
    """A grid: `function(path, steps, **options)`."""

    name: str
    function: Callable[..., Grid]
    description: str
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

_SIGMAS = ("sigma_min", "sigma_max")

GRIDS: dict[str, GridInfo] = {
    info.name: info
    for info in (
        GridInfo("karras", grids.karras, "even in (sigma / alpha)^(1/7): many steps at low noise", (), (*_SIGMAS, "rho")),
        GridInfo("exponential", grids.exponential, "even in log(sigma / alpha)", ("edm_ve",), _SIGMAS),
        GridInfo(
            "polyexponential", grids.polyexponential, "a power of an even ramp in log(sigma / alpha)", (), (*_SIGMAS, "rho")
        ),
        GridInfo("uniform_logsnr", grids.uniform_logsnr, "even in log-SNR", ("logsnr",), ("logsnr_min", "logsnr_max")),
        GridInfo(
            "uniform", grids.uniform_time, "even in the path's clock, from the noisiest level", ("uniform_time",), ("shift",)
        ),
        GridInfo(
            "trailing",
            partial(grids.uniform_time, rounded=True),
            "a table's whole timesteps from the last one down; as uniform on other paths",
            (),
            ("shift",),
        ),
        GridInfo(
            "leading",
            partial(grids.uniform_time, spacing="leading"),
            "multiples of N // steps of a table, from `offset` up",
            (),
            ("offset",),
        ),
        GridInfo(
            "linspace",
            partial(grids.uniform_time, spacing="linspace", rounded=True),
            "a table's whole timesteps, first and last included",
        ),
        GridInfo("normal", grids.normal, "timesteps evenly, first and last included", ("Normal",), ("shift",)),
        GridInfo("simple", grids.simple, "every (N / steps)-th timestep from the noisiest down", ("Simple",), ("shift",)),
        GridInfo(
            "ddim_uniform", grids.ddim_uniform, "timesteps 1, 1 + N // steps, ...: the DDIM code's", ("ddim_steps",), ("shift",)
        ),
        GridInfo(
            "sgm_uniform", grids.sgm_uniform, "a table's timesteps, evenly, the first left out", ("SGM Uniform",), ("shift",)
        ),
        GridInfo(
            "quadratic",
            grids.quadratic,
            "even in the clock's square root, down to t_min",
            ("time_quadratic",),
            ("t_min", "power"),
        ),
        GridInfo("beta", grids.beta, "the clock at quantiles of Beta(0.6, 0.6)", (), ("alpha", "beta", "shift")),
        GridInfo(
            "kl_optimal",
            grids.kl_optimal,
            "even in arctan(sigma / alpha), the angle of the cosine schedule",
            ("KL Optimal", "cosine"),
            _SIGMAS,
        ),
        GridInfo(
            "laplace", grids.laplace, "log(sigma / alpha) at quantiles of a Laplace distribution", (), (*_SIGMAS, "mu", "beta")
        ),
        GridInfo(
            "vp", grids.vp, "even on the continuous VP clock; rho=2 for DEIS's quadratic time", (), (*_SIGMAS, "eps_s", "rho")
        ),
        GridInfo(
            "linear_quadratic",
            grids.linear_quadratic,
            "small even steps at high noise, then quadratic: Movie Gen",
            ("Linear Quadratic",),
            ("threshold_noise", "linear_steps"),
        ),
        GridInfo(
            "dynamic_shift",
            grids.dynamic_shift,
            "rectified flow shifted for the number of image tokens: Flux, SD3",
            ("flux",),
            ("tokens", "base_tokens", "max_tokens", "base_shift", "max_shift", "terminal"),
        ),
        GridInfo(
            "align_your_steps",
            grids.align_your_steps,
            "optimised for sd15, sdxl or svd by Align Your Steps",
            ("ays", "Align Your Steps"),
            ("family",),
        ),
    )
}


def solver_names() -> tuple[str, ...]:
    return tuple(SOLVERS)


def grid_names() -> tuple[str, ...]:
    return tuple(GRIDS)


def solver_info(name: str) -> SolverInfo:
    """The record of a solver, by name or alias."""
    return _find(SOLVERS, name, "sampler")


def grid_info(name: str) -> GridInfo:
    """The record of a grid, by name or alias."""
    return _find(GRIDS, name, "grid")


def get_solver(name: str, **options: Any) -> Solver:
    """A solver by name or alias. Raises ValueError for an unknown name or an option that the solver does not have."""
    info = solver_info(name)
    _check_options(info, options, "sampler")
    return info.factory(**options)


def get_grid(name: str, path: Path, steps: int, **options: Any) -> Grid:
    """`steps` + 1 levels of a path by the grid's name. Raises ValueError for an unknown name or option."""
    info = grid_info(name)
    _check_options(info, options, "grid")
    return info.function(path, steps, **options)


def parse_sampler(label: str) -> tuple[str, str | None]:
    """(solver name, grid name or None) of a label such as "DPM++ 2M Karras" or "euler"."""
    if _plain(label) in (table := _spellings(SOLVERS)):
        return table[_plain(label)], None
    for spelling, grid in _spellings(GRIDS).items():
        plain = _plain(label)
        if plain.endswith(spelling) and plain[: -len(spelling)] in table:
            return table[plain[: -len(spelling)]], grid
    return solver_info(label).name, None


def _plain(name: str) -> str:
    """One spelling for all: "DPM++ 2M SDE" and "dpmpp_2m_sde" are both "dpmpp2msde"."""
    return "".join(c for c in name.lower().replace("+", "p") if c.isalnum())


def _spellings(table: dict[str, Any]) -> dict[str, str]:
    return {_plain(spelling): name for name, info in table.items() for spelling in (name, *info.aliases)}


def _find(table: dict[str, Any], name: str, kind: str) -> Any:
    if not isinstance(name, str):
        raise ValueError(f"A {kind} is chosen by its name, got {name!r}. Known: {', '.join(table)}.")
    spellings = _spellings(table)
    if found := spellings.get(_plain(name)):
        return table[found]
    near = difflib.get_close_matches(_plain(name), spellings, n=1, cutoff=0.5)
    hint = f": did you mean {spellings[near[0]]!r}?" if near else "."
    raise ValueError(f"Unknown {kind} {name!r}{hint} Known: {', '.join(table)}.")


def _check_options(info: Any, options: dict[str, Any], kind: str) -> None:
    for name in options:
        if name not in info.options:
            takes = f"it takes {', '.join(info.options)}" if info.options else "it takes none"
            raise ValueError(f"The {kind} {info.name!r} has no option {name!r}: {takes}.")
