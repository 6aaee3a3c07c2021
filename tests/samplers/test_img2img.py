"""Image to image: grids cut as diffusers cuts them, and a start that is the forward process."""

import math

import pytest
import torch

from samplers import RectifiedFlow, VarianceExploding, VariancePreserving, get_grid, get_solver, sample, seeded_noise
from samplers.analytic import Gaussian, Mixture
from samplers.editing import image_to_image, start_at, start_at_level

PATHS = {"VE": VarianceExploding(), "VP": VariancePreserving.linear(), "RF": RectifiedFlow()}
IMAGE, EPS = (torch.randn(4, 2, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))


@pytest.mark.parametrize("steps", [1, 4, 20, 37, 50])
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.58, 0.75, 0.999, 1.0])
def test_strength_is_diffusers(steps, strength):
    """The levels that diffusers' image-to-image pipelines keep: timesteps[max(N - min(int(N strength), N), 0):]."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    theirs = scheduler.timesteps[max(steps - min(int(steps * strength), steps), 0) :].tolist()
    levels = get_grid("trailing", PATHS["VP"], steps)
    if not theirs:
        with pytest.raises(ValueError, match="leaves no step"):
            start_at(levels, strength)
        return
    cut = start_at(levels, strength)
    assert [round(1000 * v.t) - 1 for v in cut[:-1]] == theirs
    assert cut[-1].sigma == 0


def test_full_strength_is_the_whole_grid():
    levels = get_grid("karras", PATHS["RF"], 9)
    assert start_at(levels, 1.0) == levels


@pytest.mark.parametrize("name", PATHS)
def test_start_at_a_level(name):
    """By log-SNR or by a part of the clock: that level exactly, then the grid's cleaner ones."""
    path = PATHS[name]
    levels = get_grid("karras", path, 12)
    for level in (path.at_logsnr(0.5), path(0.3 * path.t_noise), levels[4]):
        cut = start_at_level(levels, level)
        assert cut[0] == level and cut[-1].sigma == 0
        assert list(cut[1:]) == [v for v in levels if v.logsnr > level.logsnr]
    assert len(start_at_level(levels, levels[4])) == len(levels) - 4


@pytest.mark.parametrize("name", PATHS)
def test_the_exact_flow_of_a_gaussian(name):
    """Noised by the forward process at the cut, then the probability-flow ODE to clean data in closed form."""
    path = PATHS[name]
    gaussian = Gaussian(path, torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 1.5]).double())
    levels = get_grid("uniform_logsnr", path, 200, logsnr_min=-3.0, logsnr_max=7.0)
    first = levels[100]
    made = image_to_image(gaussian, get_solver("unipc"), IMAGE, EPS, levels, 0.5)
    expected = gaussian.ode(first.alpha * IMAGE + first.sigma * EPS, first, path(0.0))
    assert (made - expected).abs().max() < 1e-4
    assert (made - gaussian.ode(first.sigma * EPS, first, path(0.0))).abs().max() > 0.1  # the image did take part


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m", "heun", "euler_a"])
def test_more_strength_forgets_more(solver):
    path = PATHS["RF"]
    mixture, levels = Mixture.example(path), get_grid("uniform", path, 40)
    image = mixture.sample(64, path(0.0), torch.Generator().manual_seed(3))
    eps = torch.randn(64, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    moved = []
    for strength in (0.1, 0.4, 0.9):
        made = image_to_image(mixture, get_solver(solver), image, eps, levels, strength, noise=seeded_noise(range(64), image))
        moved.append((made - image).square().mean().item())
    assert moved[0] < 0.3 * moved[1] < 0.3 * moved[2]


def test_full_strength_on_a_flow_is_plain_sampling():
    path = PATHS["RF"]
    mixture, levels = Mixture.example(path), get_grid("uniform", path, 8)
    made = image_to_image(mixture, get_solver("dpmpp_2m"), IMAGE, EPS, levels, 1.0)
    assert torch.equal(made, sample(mixture, get_solver("dpmpp_2m"), EPS, levels))


def test_errors_are_sentences():
    path = PATHS["RF"]
    levels = get_grid("uniform", path, 8)
    for strength in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="must lie between 0"):
            start_at(levels, strength)
    with pytest.raises(ValueError, match="leaves no step of 8"):
        start_at(levels, 0.1)
    with pytest.raises(ValueError, match="no level cleaner"):
        start_at_level(levels, path(0.0))
