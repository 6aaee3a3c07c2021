"""A picture depends on its seed and recipe, not on those beside it: alone, and in batches of 3 and 8, the same numbers."""

from dataclasses import dataclass

import pytest
import torch

from samplers import (
    ClassifierFree,
    Condition,
    NetworkDenoiser,
    RectifiedFlow,
    VariancePreserving,
    brownian_noise,
    get_cache,
    get_grid,
    get_guidance,
    get_solver,
    sample,
    seeded_noise,
    solver_info,
)
from samplers.cache import CACHES
from samplers.canvas.multidiffusion import MultiDiffusion
from samplers.canvas.shifted import ShiftedWindows
from samplers.canvas.sync_diffusion import SyncDiffusion
from samplers.editing import Inpaint, image_to_image, invert, repaint
from samplers.guidance.registry import GUIDANCE
from samplers.noise import normal
from samplers.solvers.registry import SOLVERS
from tests.gen.test_hooks import tiny

PATH, FLOW = VariancePreserving.scaled_linear(), RectifiedFlow()
SEEDS, SHAPE = tuple(range(8)), (3, 4, 4)


@dataclass(frozen=True)
class PerPixel:
    """A network that looks at single pixels of one row, so that no sum can come out in another order in another batch."""

    bend: float = 1.0

    def __call__(self, x, time, condition, context):
        label = condition.label.to(x).reshape(-1, 1, 1, 1)
        return (self.bend * x + 0.3 * label + 0.1 * time.to(x).log1p().reshape(-1, 1, 1, 1)).tanh()


NETWORK = NetworkDenoiser(PerPixel(), PATH, "v", "index")
BLOCKS = NetworkDenoiser(tiny("dit", num_classes=4), FLOW, "flow")
READER = NetworkDenoiser(tiny("dit", text_tokens=4, text_dim=6), FLOW, "flow")
LABELS = torch.tensor([1, 2, 0, 3, 1, 0, 2, 3])


def batch_of(rows, make):
    """What `make(seeds, condition)` draws for these rows of the eight."""
    rows = list(rows)
    seeds = [SEEDS[i] for i in rows]
    return make(seeds, Condition(label=LABELS[rows]))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def assert_alone(make, tolerance=0.0):
    everyone = batch_of(range(8), make)
    assert torch.isfinite(everyone).all()
    for rows in ((0,), (5,), (7, 0, 5)):
        few = batch_of(rows, make)
        assert (few - everyone[list(rows)]).abs().max() <= tolerance * everyone.abs().max(), rows


def run(seeds, condition, denoiser=NETWORK, solver="dpmpp_2m", steps=7, wrap=None):
    levels = get_grid("karras", denoiser.path, steps)
    z = normal(seeds, SHAPE, "start", dtype=torch.float64)
    info = solver_info(solver) if isinstance(solver, str) else None
    source = brownian_noise if info is not None and info.brownian else seeded_noise
    solver = get_solver(solver) if isinstance(solver, str) else solver
    solver = wrap(solver) if wrap else solver
    return sample(denoiser, solver, levels[0].sigma * z, levels, condition, noise=source(seeds, z))


@pytest.mark.parametrize("name", SOLVERS)
def test_solvers(name):
    both = ClassifierFree(NETWORK, 1.5, keep_both=True) if SOLVERS[name].both_branches else NETWORK
    assert_alone(lambda seeds, condition: run(seeds, condition, both, name))


@pytest.mark.parametrize("name", ["dpm_adaptive", "euler"])
def test_solvers_under_guidance_with_a_memory(name):
    momentum, _ = get_guidance("apg", NETWORK, get_solver(name), scale=3.0, momentum=-0.5, threshold=1.0)
    assert_alone(lambda seeds, condition: run(seeds, condition, momentum, name, 3), 1e-13)


@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance(name):
    info = GUIDANCE[name]
    network = BLOCKS if "layers" in info.options or name == "embedded" else READER if info.inner else NETWORK
    options = {"scale": info.usual or 2.5, "layers": (1,), "weak": NetworkDenoiser(PerPixel(0.5), PATH, "v", "index")}
    options = {option: value for option, value in options.items() if option in info.options}
    inner = ClassifierFree(network, 2.5) if info.modifier and not info.inner else network
    rule, solver = get_guidance(name, inner, get_solver("dpmpp_2m"), **options)
    read = with_text if info.inner else lambda condition: condition
    assert_alone(lambda seeds, condition: run(seeds, read(condition), rule, solver), 1e-12)


def with_text(condition):
    """Tokens (B, 4, 6) that say what the labels say."""
    grid = torch.arange(24, dtype=torch.float64).reshape(1, 4, 6)
    return Condition(tokens=torch.sin(grid * (1 + condition.label.reshape(-1, 1, 1))))


@pytest.mark.parametrize("name", list(CACHES))
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun"])
def test_caches(name, solver):
    """But those of which a recipe says that pictures depend on those beside them."""
    denoiser = get_cache(name, NETWORK if CACHES[name].saves == "evaluations" else BLOCKS)
    assert_alone(lambda seeds, condition: run(seeds, condition, denoiser, solver, 20), 1e-12)


@pytest.mark.parametrize("name", ["euler", "dpmpp_3m", "dpm_adaptive", "restart", "edict"])
def test_editing(name):
    def known(seeds):
        image = normal(seeds, SHAPE, "image", dtype=torch.float64)
        mask = (normal(seeds, (1, *SHAPE[1:]), "mask", dtype=torch.float64) > 0).double()
        return image, mask, normal(seeds, SHAPE, "start", dtype=torch.float64)

    def inpaint(seeds, condition):
        image, mask, eps = known(seeds)
        return run(seeds, condition, Inpaint(NETWORK, image, mask, eps), name)

    def from_image(seeds, condition):
        image, _, eps = known(seeds)
        levels, noise = get_grid("karras", PATH, 8), seeded_noise(seeds, eps)
        return image_to_image(NETWORK, get_solver(name), image, eps, levels, 0.6, condition, noise=noise)

    assert_alone(inpaint)
    assert_alone(from_image)


def test_editing_by_functions():
    levels = get_grid("karras", PATH, 6)

    def back_and_forth(seeds, condition):
        image = normal(seeds, SHAPE, "image", dtype=torch.float64)
        mask = (normal(seeds, (1, *SHAPE[1:]), "mask", dtype=torch.float64) > 0).double()
        euler_a = get_solver("euler_a")
        return repaint(NETWORK, euler_a, image, mask, levels, seeds, condition, jump_length=2, resamples=2)

    def inverted(seeds, condition):
        image = normal(seeds, SHAPE, "image", dtype=torch.float64)
        return invert(NETWORK, get_solver("dpmpp_2m"), image, levels, condition)

    assert_alone(back_and_forth)
    assert_alone(inverted)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "dpm_adaptive", "unipc"])
def test_canvases(solver):
    def tiled(seeds, condition):
        windows = ShiftedWindows((4, 4), (3, 3), (1, 2), seeds=tuple(seeds))
        return run(seeds, condition, MultiDiffusion(NETWORK, windows, batch=5), solver, 2)

    assert_alone(tiled, 1e-13)


def test_windows_brought_together():
    def synced(seeds, condition):
        canvas = MultiDiffusion(NETWORK, ShiftedWindows((4, 4), (3, 3), (1, 1), seeds=(0,)), batch=5)
        return run(seeds, condition, canvas, wrap=lambda solver: SyncDiffusion(solver, weight=0.1))

    assert_alone(synced, 1e-12)
