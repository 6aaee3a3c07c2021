"""ComfyUI's, Forge's and RES4LYF's schedules: numbers that their own code gives, computed in float64.

`comfy_grids.json` holds rows (schedule, options, path, steps, their sigmas): sigma / alpha of a table or of a
variance-exploding path, the clock of a flow.
"""

import json
import math
from itertools import pairwise
from pathlib import Path as File

import numpy as np
import pytest

from samplers import RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, grid_names, solver_info
from samplers.grids.automatic import automatic
from samplers.grids.clock import ddim_uniform
from samplers.grids.gits import COEFFICIENTS, levels_for

VP, RF = VariancePreserving.scaled_linear(), RectifiedFlow()
PATHS = {"VP": VP, "RF": RF, "VE": VarianceExploding(0.03, 15.0), "VE wide": VarianceExploding(0.001, 800.0)}
GITS_SUMS = {
    0.8: 1820.23447, 0.85: 1651.773349, 0.9: 1445.365035, 0.95: 1208.75629, 1.0: 982.382098,
    1.05: 823.446623, 1.1: 687.674339, 1.15: 604.278257, 1.2: 557.642688, 1.25: 495.899651,
    1.3: 472.091847, 1.35: 428.642089, 1.4: 398.338487, 1.45: 389.192215, 1.5: 379.055877,
}  # fmt: skip
ROWS = json.loads((File(__file__).parent / "comfy_grids.json").read_text())


def sigmas(levels, path):
    return [v.t if path is RF else v.sigma / v.alpha for v in levels]


@pytest.mark.parametrize("name", sorted({row[0] for row in ROWS}))
def test_the_numbers_of_their_code(name):
    rows = [row for row in ROWS if row[0] == name]
    for _, options, path, steps, expected in rows:
        ours = sigmas(get_grid(name, PATHS[path], steps, **options), PATHS[path])
        assert np.allclose(ours, expected, rtol=1e-10, atol=1e-13), (options, path, steps)


def test_names_mean_the_same_where_there_is_no_flow():
    """karras, exponential and kl_optimal differ on flows only."""
    for name in ("karras", "exponential", "kl_optimal", "normal", "simple"):
        for path in (VP, PATHS["VE"]):
            ours, theirs = (sigmas(get_grid(n, path, 9), path) for n in (name, f"comfy:{name}"))
            assert np.allclose(ours, theirs, rtol=1e-10)
    for name in ("karras", "exponential", "kl_optimal"):
        assert get_grid(name, RF, 9)[4].t > get_grid(f"comfy:{name}", RF, 9)[4].t + 0.03


def test_uniform_of_automatic1111_is_normal():
    """CompVisDenoiser.get_sigmas: timesteps from N - 1 to 0, log sigma linear between entries."""
    table = -np.array(VP.table)
    expected = np.exp(np.interp(np.linspace(999, 0, 13), np.arange(1000), table))
    assert np.allclose(sigmas(get_grid("normal", VP, 13), VP)[:-1], expected, rtol=1e-12)
    assert not np.allclose(sigmas(get_grid("uniform", VP, 13), VP)[1:-1], expected[1:], rtol=1e-3)


@pytest.mark.parametrize(
    ("sampler", "grid", "discards"),
    [
        ("euler", "normal", False),
        ("dpmpp_2m", "karras", False),
        ("dpm_2", "karras", True),
        ("dpmpp_3m_sde", "exponential", True),
        ("dpmpp_2m_sde", "exponential", False),
        ("unipc", "ddim_uniform", False),
    ],
)
def test_automatic(sampler, grid, discards):
    """The sampler's own schedule; of DPM2's and 3M SDE's one step more, the last noisy level is left out."""
    levels = get_grid("automatic", VP, 9, sampler=sampler)
    whole = get_grid(grid, VP, 9 + discards)
    assert levels == ((*whole[:-2], whole[-1]) if discards else whole)
    assert automatic(VP, 9, sampler, discard=False) == get_grid(grid, VP, 9)


# what AUTOMATIC1111 1.10 lists: its samplers by label, the schedule of each, and whether the penultimate level is discarded
AUTOMATIC = {
    "normal": ("Euler a", "Euler", "LMS", "Heun", "DPM fast", "DPM adaptive"),
    "karras": ("DPM++ 2M", "DPM++ SDE", "DPM++ 2S a", "Restart"),
    "karras, discarded": ("DPM2", "DPM2 a"),
    "exponential": ("DPM++ 2M SDE", "DPM++ 2M SDE Heun"),
    "exponential, discarded": ("DPM++ 3M SDE",),
    "ddim_uniform": ("DDIM", "DDIM CFG++", "PLMS", "UniPC"),
}


@pytest.mark.parametrize(("schedule", "label"), [(s, label) for s, labels in AUTOMATIC.items() for label in labels])
def test_the_whole_table_of_automatic(schedule, label):
    grid, _, discards = schedule.partition(", ")
    whole = get_grid(grid, VP, 9 if discards else 8)
    assert get_grid("automatic", VP, 8, sampler=solver_info(label).name) == ((*whole[:-2], whole[-1]) if discards else whole)


def test_automatic_of_lcm():
    """Evenly in log sigma's table of the 50 timesteps 19, 39, ..., 999, both ends included."""
    table = -np.array(VP.table)[19::20]
    for steps in (1, 4, 8):
        expected = np.exp(np.interp(np.linspace(49, 0, steps), np.arange(50), table))
        levels = get_grid("automatic", VP, steps, sampler="lcm")
        assert np.allclose(sigmas(levels, VP)[:-1], expected, rtol=1e-12) and levels[-1].sigma == 0
    assert get_grid("automatic", RF, 4, sampler="lcm") == get_grid("normal", RF, 4)


def test_rounded_quantiles_that_meet_are_an_error():
    with pytest.raises(ValueError, match=r"300 steps .* 2\d\d different entries"):
        get_grid("comfy:beta", VP, 300)


def test_ddim_uniform_to_the_end_of_the_table():
    """As the reference walks: 30 steps asked for are 31."""
    walk = list(range(1, 1000, 33))
    assert [round(1000 * v.t) - 1 for v in ddim_uniform(VP, 30, whole=True)[:-1]] == walk[::-1]


def test_every_list_of_gits():
    """Sums over all lists of a coefficient, as published; between two steps, and in one, the list of 20 is interpolated."""
    sums = {c: sum(math.fsum(levels_for(n, c)) for n in range(2, 21)) for c in COEFFICIENTS}
    assert sums == pytest.approx(GITS_SUMS, abs=1e-5)
    assert all(sorted(levels, reverse=True) == levels for n in range(1, 40) for levels in [levels_for(n, 1.1)])
    assert get_grid("GITSScheduler", VP, 1)[0] == get_grid("comfy:gits", VP, 30)[0]
    assert get_grid("comfy:gits", VP, 4, coeff=0.8 + 0.4) == get_grid("comfy:gits", VP, 4)


def test_a_zero_terminal_snr_table_ends_where_comfyui_ends_it():
    path = VariancePreserving.scaled_linear(zero_terminal_snr=True)
    first = get_grid("comfy:normal", path, 5)[0]
    assert math.isclose(first.alpha**2, 4.8973451890853435e-08, rel_tol=1e-9) and first.t <= 1


@pytest.mark.parametrize("name", [n for n in grid_names() if n.startswith("comfy:")])
def test_shift_and_entries_are_of_flows(name):
    if name in ("comfy:align_your_steps", "comfy:gits"):
        return
    with pytest.raises(ValueError, match="of a flow model's table"):
        get_grid(name, VP, 4, shift=3.0)
    with pytest.raises(ValueError, match="at least 2 entries"):
        get_grid(name, RF, 4, entries=1)
    with pytest.raises(ValueError, match="at most 100000"):
        get_grid(name, RF, 4, entries=10**9)  # not made first
    levels = get_grid(name, RF, 6, shift=3.0, entries=500)
    assert all(a.logsnr < b.logsnr for a, b in pairwise(levels))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_grid("optimal_steps", RF, 4, family="sd"), "Optimal steps has flux, wan, chroma"),
        (lambda: get_grid("align_your_steps_32", VP, 4, family="svd"), "Align Your Steps 32 has sd15, sdxl"),
        (lambda: get_grid("comfy:gits", VP, 4, coeff=1.22), "GITS has no levels for coeff=1.22: choose one of 0.8 to 1.5"),
        (lambda: get_grid("comfy:gits", VP, 4, coeff=math.nan), "GITS has no levels for coeff=nan"),
        (lambda: get_grid("bong_tangent", RF, 4, middle=1.0), "middle must lie between"),
        (lambda: get_grid("bong_tangent", RF, 4, slope_1=0.0), "slope_1 must be"),
        (lambda: get_grid("turbo", VP, 1001), "at most 1000 steps"),
    ],
)
def test_errors_are_sentences(call, message):
    with pytest.raises(ValueError, match=message):
        call()
