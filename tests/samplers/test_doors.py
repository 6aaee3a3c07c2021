"""Solvers, grids, guidance rules and caches of the user's own: by name in this process, or as they are."""

from dataclasses import dataclass, replace

import pytest
import torch

from samplers import (
    CACHES,
    GRIDS,
    GUIDANCE,
    SOLVERS,
    ClassifierFree,
    Condition,
    Context,
    Multistep,
    RectifiedFlow,
    State,
    get_cache,
    get_grid,
    get_guidance,
    get_solver,
    parse_sampler,
    register_cache,
    register_grid,
    register_guidance,
    register_solver,
    sample,
)
from samplers.analytic import Mixture
from samplers.grids.common import from_clock

FLOW = RectifiedFlow()
LABEL = Condition(label=torch.tensor([0, 1]))
X = torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def tables_as_before():
    kept = [(table, dict(table)) for table in (SOLVERS, GRIDS, GUIDANCE, CACHES)]
    yield
    for table, rows in kept:
        table.clear()
        table.update(rows)


@dataclass(frozen=True)
class Damped:
    """An Euler step of the given length: 1 is Euler's own."""

    length: float = 1.0

    def init(self, x):
        return State(x)

    def step(self, denoiser, state, s, t, condition, context, noise=None):
        prediction = denoiser(state.x, s, condition, context)
        euler = t.mix(prediction.x0, prediction.eps)
        return replace(state, x=torch.lerp(state.x, euler, self.length), prediction=prediction)


def cubic(path, steps, power=3.0):
    return from_clock(path, [path.t_noise * (1 - i / steps) ** power for i in range(steps)])


def halved(denoiser, scale=1.0, negative=None, interval=(-float("inf"), float("inf"))):
    return ClassifierFree(denoiser, scale / 2, negative, interval)


def counted(denoiser, most=1):
    return denoiser


def test_a_registered_solver_runs_by_its_name_and_spellings():
    register_solver("my damped", Damped, "damped Euler", ("length",), aliases=("DMP",))
    levels, mixture = get_grid("uniform", FLOW, 4), Mixture.example(FLOW, "flow", labelled=True)
    ours = sample(mixture, get_solver("My_Damped"), X, levels, LABEL)
    assert torch.equal(ours, sample(mixture, Damped(), X, levels, LABEL))
    assert (ours - sample(mixture, get_solver("euler"), X, levels, LABEL)).abs().max() < 1e-12
    assert get_solver("dmp", length=0.5) == Damped(0.5)
    assert parse_sampler("my damped karras") == ("my damped", "karras")
    with pytest.raises(ValueError, match="no option 'gain': it takes length"):
        get_solver("my damped", gain=1)


def test_a_registered_grid_guidance_rule_and_cache_are_found():
    register_grid("cubic", cubic, "even in the cube root of the clock", ("power",))
    register_guidance("half", halved, "classifier-free guidance of half the scale")
    register_cache("counted", counted, "none at all", ("most",))
    assert get_grid("Cubic", FLOW, 3, power=2.0) == cubic(FLOW, 3, 2.0)
    mixture = Mixture.example(FLOW, labelled=True)
    denoiser, _ = get_guidance("half", mixture, Multistep(1), scale=4.0)
    assert denoiser == ClassifierFree(mixture, 2.0)
    assert get_cache("counted", mixture, most=3) is mixture


@pytest.mark.parametrize(
    ("register", "arguments", "message"),
    [
        (register_solver, ("DPM++ 2M", Damped), "exists already, as 'dpmpp_2m'; choose another name"),
        (register_grid, ("karras", cubic), "The schedule 'karras' exists already"),
        (register_guidance, ("CFG", halved), "The guidance 'CFG' exists already, as 'cfg'"),
        (register_cache, ("fbcache", counted), "The cache 'fbcache' exists already, as 'first_block'"),
        (register_cache, ("", counted), "registered under a name with letters or digits"),
        (register_grid, ("mine", 3), "is made by a function or class; 3 is none"),
    ],
)
def test_a_name_that_is_taken_is_refused(register, arguments, message):
    before = [dict(table) for table in (SOLVERS, GRIDS, GUIDANCE, CACHES)]
    with pytest.raises(ValueError, match=message):
        register(*arguments)
    assert before == [SOLVERS, GRIDS, GUIDANCE, CACHES]


def test_an_alias_that_is_taken_is_refused_and_the_same_row_is_not():
    with pytest.raises(ValueError, match="'Euler a' exists already, as 'euler_a'"):
        register_solver("mine", Damped, aliases=("Euler a",))
    register_solver("mine", Damped)
    register_solver("mine", Damped)
    with pytest.raises(ValueError, match="'mine' exists already"):
        register_solver("mine", Multistep)


def test_objects_and_functions_go_where_names_go():
    solver = Damped(0.5)
    assert get_solver(solver) is solver
    with pytest.raises(ValueError, match="Damped is a solver already; give it length where it is made"):
        get_solver(solver, length=1.0)
    assert get_grid(cubic, FLOW, 3) == cubic(FLOW, 3)
    mixture = Mixture.example(FLOW, labelled=True)
    assert get_guidance(halved, mixture, solver, scale=2.0) == (ClassifierFree(mixture, 1.0), solver)
    assert get_cache(counted, mixture) is mixture
    level = FLOW(0.5)
    assert torch.equal(
        get_guidance(halved, mixture, solver, scale=6.0)[0](X, level, LABEL, Context()).raw,
        ClassifierFree(mixture, 3.0)(X, level, LABEL, Context()).raw,
    )
    with pytest.raises(ValueError, match="A sampler is chosen by its name, got 3"):
        get_solver(3)
