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


@dataclass(frozen=True)
class SolverInfo:
    """What the tables say about a solver. `factory(**options)` builds it; `options` are the names it may be given."""

    name: str
    factory: Callable[..., Solver]
    description: str
    order: int
    evaluations: int = 1  # network evaluations per step
    stochastic: bool = False
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
            aliases=("Euler a", "euler_ancestral", "ddpm"),
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
        SolverInfo(
            "heun",
            Heun,
            "Heun with churn (EDM, Algorithm 2)",
            2,
            evaluations=2,
            aliases=("edm",),
            options=("s_churn", "s_tmin", "s_tmax", "s_noise"),
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
            aliases=("DPM++ 2M SDE",),
            options=("rule", *_SDE),
        ),
        SolverInfo(
            "dpmpp_2m_sde_heun",
            partial(Multistep, 2, eta=1.0, rule="exact"),
            "DPM-Solver++(2M) with noise, exact coefficients",
            2,
            stochastic=True,
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
            grid="exponential",
            aliases=("DPM++ 3M SDE",),
            options=("rule", *_SDE),
        ),
        SolverInfo(
            "unipc",
            partial(Multistep, 3, rule="bh2", corrector_order=4),
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
            partial(Multistep, 3, eta=1.0, corrector_order=4),
            "SA-Solver: stochastic Adams predictor and corrector, tau^2 = eta throughout",
            3,
            stochastic=True,
            grid="uniform_logsnr",
            aliases=("SA-Solver",),
            options=("order", "corrector_order", *_SDE),
        ),
    )
}

_SIGMAS = ("sigma_min", "sigma_max")

GRIDS: dict[str, GridInfo] = {
    info.name: info
    for info in (
        GridInfo("karras", grids.karras, "even in (sigma / alpha)^(1/7): many steps at low noise", (), (*_SIGMAS, "rho")),
        GridInfo("exponential", grids.exponential, "even in log(sigma / alpha)", (), _SIGMAS),
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
        GridInfo("leading", partial(grids.uniform_time, spacing="leading"), "multiples of N // steps of a table"),
        GridInfo(
            "linspace",
            partial(grids.uniform_time, spacing="linspace", rounded=True),
            "a table's whole timesteps, first and last included",
        ),
        GridInfo(
            "normal",
            partial(grids.uniform_time, spacing="linspace"),
            "a table's clock evenly, first and last timestep included",
        ),
        GridInfo("sgm_uniform", grids.sgm_uniform, "a table's timesteps, evenly, the first left out", ("SGM Uniform",)),
        GridInfo("beta", grids.beta, "the clock at quantiles of Beta(0.6, 0.6)", (), ("alpha", "beta")),
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


def _check_options(info: SolverInfo | GridInfo, options: dict[str, Any], kind: str) -> None:
    for name in options:
        if name not in info.options:
            takes = f"it takes {', '.join(info.options)}" if info.options else "it takes none"
            raise ValueError(f"The {kind} {info.name!r} has no option {name!r}: {takes}.")
