"""The sampler of flow maps: exact with an exact map, and it tells the network where a step ends, on the network's clock."""

from __future__ import annotations

import pytest
import torch

from samplers.analytic import Gaussian
from samplers.denoiser import Condition, Context, NetworkDenoiser
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
