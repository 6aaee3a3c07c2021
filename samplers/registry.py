"""Solvers and grids by the names users type.

A name is looked up in any spelling: case, spaces, "+" written as "p", dashes and underscores do not matter, and the labels
of AUTOMATIC1111 ("DPM++ 2M", "Euler a") are aliases. "DPM++ 2M Karras" names a solver and a grid: see `parse_sampler`.
The tables are in `samplers/solvers/registry.py` and `samplers/grids/registry.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from samplers.grids import Grid
from samplers.grids.registry import GRIDS, GridInfo
from samplers.lookup import build, check_options, find, normalise_name, register, spellings
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
    "register_grid",
    "register_solver",
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


def register_solver(
    name: str,
    factory: Callable[..., Solver],
    description: str = "",
    options: tuple[str, ...] = (),
    *,
    order: int = 1,
    **properties: Any,
) -> None:
    """Make a solver of your own known by name, in this process.

    name: what users type; any spelling of it is found. Files can use it, but never register one.
    factory: makes the solver, `factory(**options)`; see `samplers.sample.Solver` for what it must handle.
    options: the names of the options that it may be given.
    order: the order of its error in the number of steps.
    properties: the other fields of `SolverInfo` (evaluations, stochastic, aliases, ...).
    Raises ValueError where the name is taken.
    """
    register(SOLVERS, SolverInfo(name, factory, description, order, options=tuple(options), **properties), "sampler")


def register_grid(
    name: str,
    factory: Callable[..., Grid],
    description: str = "",
    options: tuple[str, ...] = (),
    *,
    aliases: tuple[str, ...] = (),
) -> None:
    """Make a grid of your own known by name, in this process: factory(path, steps, **options) -> `steps` + 1 levels.

    Levels fall in noise and end in clean data; `samplers.grids.common.finish` appends that and checks the rest. Raises
    ValueError where the name is taken.
    """
    register(GRIDS, GridInfo(name, factory, description, tuple(aliases), tuple(options)), "schedule")


def get_solver(name: str | Solver, **options: Any) -> Solver:
    """A solver by name or alias, or the solver itself where one is given.

    Raises ValueError for an unknown name or an option that the solver does not have.
    """
    if not isinstance(name, str) and hasattr(name, "step"):
        if options:
            raise ValueError(f"{type(name).__name__} is a solver already; give it {', '.join(options)} where it is made.")
        return name
    info = solver_info(name)  # type: ignore[arg-type]  # what is neither is refused there
    options = {_FORMER_OPTIONS.get(option, option): value for option, value in options.items()}
    check_options(info, options, "sampler")
    return build(info, "sampler", info.factory, options=options)


def get_grid(name: str | Callable[..., Grid], path: Path, steps: int, **options: Any) -> Grid:
    """`steps` + 1 levels of a path by the grid's name, or by a function (path, steps, **options).

    Raises ValueError for an unknown name or option.
    """
    if callable(name):
        return name(path, steps, **options)
    info = grid_info(name)
    check_options(info, options, "schedule")
    return build(info, "schedule", info.factory, path, steps, options=options)


def parse_sampler(label: str) -> tuple[str, str | None]:
    """(solver name, grid name or None) of a label such as "DPM++ 2M Karras" or "euler"."""
    table, spoken = spellings(SOLVERS), normalise_name(label)
    if spoken in table:
        return table[spoken], None
    for spelling, grid in spellings(GRIDS).items():
        if spoken.endswith(spelling) and spoken[: -len(spelling)] in table:
            return table[spoken[: -len(spelling)]], grid
    return solver_info(label).name, None
