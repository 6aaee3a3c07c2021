"""The sampler of flow maps: exact with an exact map, and it tells the network where a step ends, on the network's clock."""

from __future__ import annotations

import pytest
import torch

from samplers.analytic import Gaussian
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.noise import seeded_noise
from samplers.path import RectifiedFlow, VariancePreserving
from samplers.registry import get_grid, get_solver
from samplers.sample import sample

MEAN, STD = torch.tensor([0.7, -1.2]).double(), torch.tensor([0.4, 1.5]).double()


def exact_map(x, time, condition, context):
    """The mean velocity u = (x_t - x_r) / (t - r) of a Gaussian's flow, at r = the target time."""
    oracle, path = Gaussian(RectifiedFlow(), MEAN, STD), RectifiedFlow()
    t, r = time[0].double().item(), condition.extra["target_time"][0].double().item()
    return (x - oracle.ode(x, path(t), path(r))) / (t - r)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_an_exact_map_lands_on_the_end_of_the_ode_in_any_number_of_steps(steps):
    path = RectifiedFlow()
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    oracle = Gaussian(path, MEAN, STD)
    out = sample(NetworkDenoiser(exact_map, path, "flow"), get_solver("flow_map"), x, get_grid("uniform", path, steps))
    torch.testing.assert_close(out, oracle.ode(x, path(1.0), path(0.0)), atol=1e-6, rtol=0)  # times are told in float32
    euler = sample(Gaussian(path, MEAN, STD), get_solver("euler"), x, get_grid("uniform", path, steps))
    assert (euler - out).abs().max() > 0.05


@pytest.mark.parametrize(
    ("path", "clock", "told"),
    [(RectifiedFlow(), "1000t", 250.0), (RectifiedFlow(), "t", 0.25), (VariancePreserving.linear(), "index", 249.0)],
)
def test_the_target_is_told_on_the_networks_clock(path, clock, told):
    seen = []

    def network(x, time, condition, context):
        seen.append((condition.extra["target_time"], condition.extra["other"]))
        return x

    condition = Condition(extra={"target_time": torch.tensor([0.25]), "other": torch.tensor([3.0])})
    NetworkDenoiser(network, path, "v", clock)(torch.zeros(1, 2), path(0.5), condition, Context())
    torch.testing.assert_close(seen[0][0], torch.tensor([told]))
    assert seen[0][1].item() == 3.0
    assert condition.extra["target_time"].item() == 0.25  # the caller's condition stays


def test_levels_must_fall():
    path = RectifiedFlow()
    with pytest.raises(ValueError, match="must fall in noise"):
        sample(NetworkDenoiser(exact_map, path, "flow"), get_solver("flow_map"), torch.zeros(1, 2), [path(0.2), path(0.6)])


class Recorded:
    """A map that is exact, and remembers which ends it was told."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def __call__(self, x, time, condition, context):
        self.ends.append(condition.extra["target_time"][0].double().item())
        return exact_map(x, time, condition, context)


@pytest.mark.parametrize("gamma", [0.3, 0.8, 1.0])
def test_gamma_goes_past_the_next_level_and_noise_takes_it_back(gamma):
    """Every step of the exact map, then gamma r_t alpha_t of new noise: the marginals stay the Gaussian's own."""
    path, network = RectifiedFlow(), Recorded()
    count, levels = 4000, get_grid("uniform", path, 3)
    x = torch.randn(count, 2, generator=torch.Generator().manual_seed(0)).double()
    noise = seeded_noise(range(count), x)
    out = sample(NetworkDenoiser(network, path, "flow"), get_solver("flow_map", gamma=gamma), x, levels, noise=noise)
    ratios = [end / (1 - end) for end in network.ends]
    inner = [level.sigma / level.alpha for level in levels[1:-1]]
    torch.testing.assert_close(
        torch.tensor(ratios[:-1]), torch.tensor([(1 - gamma**2) ** 0.5 * r for r in inner]), rtol=1e-5, atol=1e-6
    )
    assert ratios[-1] == 0
    torch.testing.assert_close(out.mean(0), MEAN, atol=0.08, rtol=0)  # five deviations of a mean of 4000
    torch.testing.assert_close(out.std(0), STD, atol=0, rtol=0.06)


def test_gamma_one_is_multistep_consistency_sampling():
    """From clean data to a level's noise ratio, whatever was there before."""
    path, levels = RectifiedFlow(), get_grid("uniform", RectifiedFlow(), 4)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)).double()

    def run(solver):
        return sample(NetworkDenoiser(exact_map, path, "flow"), solver, x, levels, told, noise=seeded_noise(range(5), x))

    told = Condition(extra={"target_time": torch.zeros(5)})  # which flow_map puts its own in the place of
    torch.testing.assert_close(run(get_solver("flow_map", gamma=1.0)), run(get_solver("consistency")), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gamma", [-0.1, 1.1])
def test_gamma_is_a_share(gamma):
    with pytest.raises(ValueError, match="give 0"):
        get_solver("flow_map", gamma=gamma)


def test_new_noise_must_come_from_somewhere():
    path = RectifiedFlow()
    x = torch.zeros(1, 2).double()
    with pytest.raises(ValueError, match="pass noise="):
        sample(NetworkDenoiser(exact_map, path, "flow"), get_solver("flow_map", gamma=0.5), x, get_grid("uniform", path, 2))
