"""Names users type: looked up kindly, closed, and honest about what they are."""

import pytest

from samplers import (
    GRIDS,
    SOLVERS,
    Heun,
    Multistep,
    RectifiedFlow,
    get_grid,
    get_solver,
    grid_info,
    grid_names,
    parse_sampler,
    solver_info,
    solver_names,
)
from samplers.solvers.runge_kutta import RungeKutta
from samplers.solvers.singlestep import Singlestep
from samplers.tableaus import TABLEAUS

PATH = RectifiedFlow()


@pytest.mark.parametrize(
    ("label", "solver", "grid"),
    [
        ("Euler", "euler", None),
        ("Euler a", "euler_a", None),
        ("DDIM", "ddim", None),
        ("Heun", "heun", None),
        ("UniPC", "unipc", None),
        ("DPM++ 2M", "dpmpp_2m", None),
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde", None),
        ("DPM++ 2M SDE Karras", "dpmpp_2m_sde", "karras"),
        ("DPM++ 2M SDE Exponential", "dpmpp_2m_sde", "exponential"),
        ("DPM++ 2M SDE Heun Karras", "dpmpp_2m_sde_heun", "karras"),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde", "exponential"),
        ("DPM2", "dpm_2", None),
        ("DPM2 a Karras", "dpm_2_a", "karras"),
        ("DPM++ 2S a", "dpmpp_2s_a", None),
        ("DPM++ SDE Karras", "dpmpp_sde", "karras"),
        ("DPM fast", "dpm_fast", None),
        ("DPM adaptive", "dpm_adaptive", None),
        ("LMS", "lms", None),
        ("LMS Karras", "lms", "karras"),
        ("PLMS", "pndm", None),
        ("LCM", "lcm", None),
        ("TCD", "tcd", None),
        ("DDPM", "ddpm", None),
        ("Restart", "restart", None),
        ("DEIS", "deis", None),
        ("SA-Solver", "sa_solver", None),
        ("dpmpp_2m_sde", "dpmpp_2m_sde", None),
        ("euler sgm_uniform", "euler", "sgm_uniform"),
        ("EULER_ANCESTRAL", "euler_a", None),
        ("comfy:deis", "comfy:deis", None),
        ("comfy:heunpp2", "heunpp2", None),
        ("Comfy: DPM++ 2M Karras", "comfy:dpmpp_2m", "karras"),
        ("comfy:lcm", "lcm", None),
        ("HeunPP2", "heunpp2", None),
        ("IPNDM_V", "ipndm_v", None),
        ("Euler CFG++", "euler_cfg_pp", None),
        ("Euler a CFG++", "euler_ancestral_cfg_pp", None),
        ("DPM++ 2S a CFG++", "dpmpp_2s_ancestral_cfg_pp", None),
        ("DPM++ 2M CFG++ Karras", "dpmpp_2m_cfg_pp", "karras"),
        ("Res Multistep", "res_multistep", None),
        ("Gradient Estimation", "gradient_estimation", None),
        ("DPM++ 2M SDE GPU", "dpmpp_2m_sde", None),
        ("DPM++ 2M Turbo", "dpmpp_2m", "turbo"),
        ("Euler a Automatic", "euler_a", "automatic"),
        ("Euler Align Your Steps 32", "euler", "align_your_steps_32"),
        ("Euler Align Your Steps GITS", "euler", "align_your_steps_gits"),
        ("Euler DDIM", "euler", "ddim_uniform"),
        ("comfy:dpmpp_2m comfy:karras", "comfy:dpmpp_2m", "comfy:karras"),
        ("dpmpp_2m beta57", "dpmpp_2m", "beta57"),
    ],
)
def test_labels(label, solver, grid):
    assert parse_sampler(label) == (solver, grid)


@pytest.mark.parametrize("name", SOLVERS)
def test_records_tell_the_truth(name):
    info, solver = solver_info(name), get_solver(name)
    assert info.grid in GRIDS and info.description
    if isinstance(solver, Multistep):
        assert info.evaluations == 1
        assert info.stochastic == (solver.eta > 0)
    elif isinstance(solver, Singlestep):
        assert info.order == info.evaluations == solver.order
        assert info.stochastic == (solver.eta > 0)
    elif isinstance(solver, RungeKutta):
        tableau = TABLEAUS[solver.method]
        assert (info.order, info.evaluations) == (tableau.order, len(tableau.nodes))
    elif isinstance(solver, Heun):
        assert info.evaluations == 2
    for option in info.options:
        assert option in type(solver).__dataclass_fields__
    for alias in info.aliases:
        assert get_solver(alias) == solver


def test_options_reach_the_solver():
    assert get_solver("ddim", eta=0.3) == Multistep(1, eta=0.3, noise="ancestral")
    assert get_solver("dpmpp_2m", rule="exact") == Multistep(2, ending="bounded")
    assert get_solver("heun", s_churn=2.0) == Heun(s_churn=2.0)
    assert get_solver("unipc", order=2) == Multistep(2, rule="bh2", corrector_order=4, ending="bounded")
    assert get_grid("uniform", PATH, 4, shift=3.0)[1].t == pytest.approx(0.9)
    assert get_grid("Karras", PATH, 4, rho=3.0) == get_grid("karras", PATH, 4, rho=3.0)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_option_can_be_given(name):
    solver = get_solver(name)
    for option in solver_info(name).options:
        assert get_solver(name, **{option: getattr(solver, option)}) == solver


def test_no_spelling_names_two_things():
    for table in (SOLVERS, GRIDS):
        spellings = [s for info in table.values() for s in {_plain(s) for s in (info.name, *info.aliases)}]
        assert len(set(spellings)) == len(spellings)


def _plain(name):
    return "".join(c for c in name.lower().replace("+", "p") if c.isalnum())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_solver("eular"), r"Unknown sampler 'eular': did you mean 'euler'\? Known: euler, euler_a"),
        (lambda: get_solver("DPM++ 2MM"), r"did you mean 'dpmpp_2m'"),
        (lambda: get_solver("qqqqqq"), r"Unknown sampler 'qqqqqq'\. Known"),
        (lambda: get_solver(None), "chosen by its name"),
        (lambda: get_solver("euler", eta=1.0), r"sampler 'euler' has no option 'eta': it takes s_churn"),
        (lambda: get_solver("dpmpp_2m_cfg_pp", eta=1.0), r"sampler 'dpmpp_2m_cfg_pp' has no option 'eta': it takes none"),
        (lambda: get_solver("ddim", etaa=1.0), "it takes eta, s_noise"),
        (lambda: get_solver("ddim", eta=2.0), "0 <= eta <= 1"),
        (lambda: get_grid("karas", PATH, 4), r"Unknown schedule 'karas': did you mean 'karras'\?"),
        (lambda: get_grid("karras", PATH, 4, shift=3.0), "schedule 'karras' has no option 'shift': it takes sigma_min"),
        (lambda: parse_sampler("DPM++ 9M Karras"), "Unknown sampler"),
    ],
)
def test_errors_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_names():
    assert {"euler", "euler_a", "ddim", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "dpmpp_3m_sde", "unipc"} <= {
        *solver_names()
    }
    assert {"karras", "exponential", "polyexponential", "uniform", "beta", "sgm_uniform"} <= {*grid_names()}
    assert grid_info("SGM Uniform").name == "sgm_uniform"


@pytest.mark.parametrize("value", ["abc", True, (1, 2), -1.5, 10**400])
def test_options_of_a_wrong_type_are_a_sentence(value):
    """Every option of every solver, schedule and cache: built, or refused with a ValueError that names it."""
    from samplers.cache.registry import CACHES, get_cache

    wrong = []
    for table, make in (
        (SOLVERS, lambda name, **own: get_solver(name, **own)),
        (GRIDS, lambda name, **own: get_grid(name, RectifiedFlow(), 8, **own)),
        (CACHES, lambda name, **own: get_cache(name, lambda *_: None, **own)),
    ):
        for name, info in table.items():
            for option in info.options:
                try:
                    make(name, **{option: value})
                except ValueError as error:
                    assert "unpack" not in str(error).split(":")[0]
                except Exception as error:
                    wrong.append((name, option, type(error).__name__))
    assert not wrong


def test_a_type_is_named_in_words():
    with pytest.raises(ValueError, match="sampler 'euler_a' takes a number as eta, got 'abc'"):
        get_solver("euler_a", eta="abc")
    with pytest.raises(ValueError, match="schedule 'karras' takes a number as rho, got True"):
        get_grid("karras", RectifiedFlow(), 8, rho=True)
    with pytest.raises(ValueError, match="Unknown schedule 'nope'"):
        get_grid("nope", RectifiedFlow(), 8)


def test_a_former_name_of_an_option_is_understood():
    assert get_solver("multistep", of="eps") == get_solver("multistep", predict="eps") != get_solver("multistep")
