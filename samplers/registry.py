"""Solvers and grids by the names users type.

A name is looked up in any spelling: case, spaces, "+" written as "p", dashes and underscores do not matter, and the labels
of AUTOMATIC1111 ("DPM++ 2M", "Euler a") are aliases. "DPM++ 2M Karras" names a solver and a grid: see `parse_sampler`.
The tables are in `samplers/solvers/registry.py` and `samplers/grids/registry.py`.
"""

from __future__ import annotations

from typing import Any

from samplers.grids import Grid
from samplers.grids.registry import GRIDS, GridInfo
from samplers.lookup import build, check_options, find, normalise_name, spellings
from samplers.path import Path
from samplers.sample import Solver
from samplers.solvers.info import SolverInfo
from samplers.solvers.registry import SOLVERS

__all__ = [
    "GRIDS",
    "SOLVERS",
    "GridInfo",
    "SolverInfo",
    "get_grid",
    "get_solver",
    "grid_info",
    "grid_names",
    "parse_sampler",
    "solver_info",
    "solver_names",
]


_FORMER_OPTIONS = {"of": "predict"}  # spellings that saved recipes have


def solver_names() -> tuple[str, ...]:
    return tuple(SOLVERS)


def grid_names() -> tuple[str, ...]:
    return tuple(GRIDS)


def solver_info(name: str) -> SolverInfo:
    """The record of a solver, by name or alias."""
    return find(SOLVERS, name, "sampler")


def grid_info(name: str) -> GridInfo:
    """The record of a grid, by name or alias."""
    return find(GRIDS, name, "schedule")


def get_solver(name: str, **options: Any) -> Solver:
    """A solver by name or alias. Raises ValueError for an unknown name or an option that the solver does not have."""
    info = solver_info(name)
    options = {_FORMER_OPTIONS.get(option, option): value for option, value in options.items()}
    check_options(info, options, "sampler")
    return build(info, "sampler", info.factory, options=options)


def get_grid(name: str, path: Path, steps: int, **options: Any) -> Grid:
    """`steps` + 1 levels of a path by the grid's name. Raises ValueError for an unknown name or option."""
    info = grid_info(name)
    check_options(info, options, "schedule")
    return build(info, "schedule", info.function, path, steps, options=options)


def parse_sampler(label: str) -> tuple[str, str | None]:
    """(solver name, grid name or None) of a label such as "DPM++ 2M Karras" or "euler"."""
    table, spoken = spellings(SOLVERS), normalise_name(label)
    if spoken in table:
        return table[spoken], None
    for spelling, grid in spellings(GRIDS).items():
        if spoken.endswith(spelling) and spoken[: -len(spelling)] in table:
            return table[spoken[: -len(spelling)]], grid
    return solver_info(label).name, None
