"""What the tables say about a solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from samplers.sample import Solver


@dataclass(frozen=True)
class SolverInfo:
    """What the tables say about a solver. `factory(**options)` builds it; `options` are the names it may be given.

    order: how the error of the ODE falls with the number of steps, as observed from the solver's own start, on even steps and
    on uneven ones: a method of order 4 that begins with an Euler step is of order 2.
    """

    name: str
    factory: Callable[..., Solver]
    description: str
    order: int
    evaluations: int = 1  # network evaluations per step
    extra: int = 0  # and how many more a run of some steps takes
    stochastic: bool = False
    brownian: bool = False  # solves the reverse SDE: its noise is best taken from one Brownian path (`brownian_noise`)
    adaptive: bool = False  # chooses steps of its own: `evaluations` are those of one of them, and a grid of 2 steps is enough
    own_steps: bool = False  # asks of a grid its ends and its number of steps alone, and stops at its last noisy level
    grid: str = "karras"  # the grid it is usually run on
    own_clock: bool = False  # other numbers on other paths: its equations are written on the clock of flow models
    both_branches: bool = False  # reads guidance's unconditional branch, which is then kept at every scale
    aliases: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
