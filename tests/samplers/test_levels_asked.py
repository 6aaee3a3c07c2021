"""No solver, wrapper or rule asks a network at a level outside of what it knows: every level that one sees is recorded."""

import math
from dataclasses import dataclass, field

import pytest
import torch

from samplers import (
    ClassifierFree,
    Condition,
    Path,
    RectifiedFlow,
    Trigonometric,
    VarianceExploding,
    VariancePreserving,
    get_cache,
    get_grid,
    get_guidance,
    get_solver,
    sample,
    seeded_noise,
)
from samplers.analytic import Mixture
from samplers.anytime import anytime
from samplers.editing import Inpaint, image_to_image, invert, repaint
from samplers.guidance.recurrent import Recurrent
from samplers.noise import normal
from samplers.path import NoiseLevel, VariancePreservingSDE
from samplers.solvers.registry import SOLVERS
from samplers.solvers.restart import Restart

PATHS = {
    "VE": VarianceExploding(),
    "SD": VariancePreserving.scaled_linear(),
    "zero SNR": VariancePreserving.scaled_linear(zero_terminal_snr=True),
    "flow": RectifiedFlow(),
    "trigonometric": Trigonometric(),
    "SDE": VariancePreservingSDE(),
}


@dataclass(frozen=True)
class Recording:
    """The exact denoiser of a mixture, that keeps the levels it was asked at."""

    path: Path
    levels: list[NoiseLevel] = field(default_factory=list)

    def __call__(self, x, level, condition, context):
        self.levels.append(level)
        return Mixture.example(self.path)(x, level, condition, context)


def bounds(path, levels):
    """Lowest and highest clock that may be asked: the table's, or the path's down to the grid's or its usual bound."""
    lowest = min(v.t for v in levels if v.sigma)
    if isinstance(path, VariancePreserving):
        return 1 / len(path.table), 1.0
    return min(lowest, path.sigma_min if isinstance(path, VarianceExploding) else 0.001 * path.t_noise), path.t_noise


def assert_inside(path, seen, levels):
    low, high = bounds(path, levels)
    assert seen and all(low * (1 - 1e-9) <= level.t <= high * (1 + 1e-12) and level.sigma > 0 for level in seen)


def run(path, solver, levels, wrap=lambda d: d):
    recording = Recording(path)
    x = levels[0].sigma * torch.randn(2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    out = sample(wrap(recording), solver, x, levels, Condition(), noise=seeded_noise([1, 2], x))
    assert torch.isfinite(out).all()
    assert_inside(path, recording.levels, levels)


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name):
    for path in PATHS.values():
        for grid, steps in (("karras", 3), ("uniform", 4), ("normal", 7), ("beta", 7)):
            wrap = (lambda d: ClassifierFree(d, 1.5, keep_both=True)) if SOLVERS[name].both_branches else lambda d: d
            run(path, get_solver(name), get_grid(grid, path, steps), wrap)


@pytest.mark.parametrize("name", [name for name, info in SOLVERS.items() if "s_churn" in info.options])
@pytest.mark.parametrize("path", [p for name, p in PATHS.items() if name != "VE"], ids=[n for n in PATHS if n != "VE"])
def test_churn_does_not_leave_a_clock_that_ends(name, path):
    """On sigma itself it does, from sigma_max up, as EDM's algorithm has it."""
    for grid in ("karras", "uniform"):
        run(path, get_solver(name, s_churn=20.0), get_grid(grid, path, 5))


@pytest.mark.parametrize("name", ["reuse", "easy"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_caches_and_rules(name, path):
    levels = get_grid("uniform", path, 8)
    run(path, get_solver("dpmpp_2m"), levels, lambda d: get_cache(name, d))
    for rule, options in (("apg", {"momentum": -0.5}), ("cfg_zero", {}), ("cfg++", {}), ("cfg", {})):
        recording = Recording(path)
        denoiser, solver = get_guidance(rule, recording, get_solver("unipc"), scale=0.8 if rule == "cfg++" else 3.0, **options)
        sample(denoiser, solver, levels[0].sigma * torch.ones(2, 2, dtype=torch.float64), levels)
        assert_inside(path, recording.levels, levels)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_around_and_beside_solvers(path):
    levels = get_grid("uniform", path, 8)
    run(path, Recurrent(get_solver("euler"), 2), levels)
    for inner in (get_solver("dpmpp_2m"), Restart(sigma_min=0.5, sigma_max=3.0)):
        run(path, Restart(inner, sigma_min=0.2, sigma_max=1.0, steps=3, times=2), levels)
    image, seeds, shape = torch.ones(2, 1, 2, 2, dtype=torch.float64), [1, 2], (1, 2, 2)
    eps, mask = normal(seeds, shape, "eps", dtype=torch.float64), torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]] * 2)
    mask = mask.double()
    euler_a = get_solver("euler_a")
    for go in (
        lambda d: sample(Inpaint(d, image, mask, eps), get_solver("restart"), eps, levels, noise=seeded_noise(seeds, eps)),
        lambda d: image_to_image(d, get_solver("heun"), image, eps, levels, 0.5),
        lambda d: repaint(d, euler_a, image, mask, levels, seeds, jump_length=2, resamples=2),
        lambda d: list(anytime(d, euler_a, eps, levels, noise=seeded_noise(seeds, eps))),
    ):
        recording = OfImages(path)
        go(recording)
        assert_inside(path, recording.levels, levels)
    recording = OfImages(path)
    inside = [v for v in levels if v.alpha and v.sigma]
    invert(recording, get_solver("dpmpp_2m"), image, inside)
    assert_inside(path, recording.levels, levels)


class OfImages(Recording):
    def __call__(self, x, level, condition, context):
        self.levels.append(level)
        return Mixture.example(self.path, shape=(1, 2, 2))(x, level, condition, context)


def test_restart_comes_back_to_sigma_min_where_its_step_leads_to_clean_data():
    path = VariancePreserving.scaled_linear()
    levels = get_grid("trailing", path, 10)
    down = Restart(sigma_min=0.1, sigma_max=2.0, steps=9).levels(path, levels[-1])
    assert [len(down), down[-1]] == [10, levels[-1]]
    assert [v.sigma / v.alpha for v in (down[0], down[-2])] == pytest.approx([2.0, 0.1])
    lowest = Restart(sigma_min=0.0, sigma_max=2.0).levels(path, levels[-1])[-2]
    assert lowest.logsnr == pytest.approx(path.table[0]) and math.isinf(levels[-1].logsnr)
