"""The order that falls with the steps left, against the ending of the multistep core that says the same."""

from __future__ import annotations

import pytest
import torch

from samplers import VariancePreserving, get_grid, sample
from samplers.analytic import Mixture
from samplers.solvers.lower_order import LowerOrderFinal
from samplers.solvers.multistep import Multistep

PATH = VariancePreserving.scaled_linear()
X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
UNIPC = {"order": 3, "rule": "bh2", "corrector_order": 4}
DEIS = {"order": 3, "predict": "eps"}


def run(solver, steps: int) -> torch.Tensor:
    levels = get_grid("scheduler", PATH, steps, spacing="leading", offset=30, final="first")
    return sample(Mixture.example(PATH, "eps"), solver, X, levels)


@pytest.mark.parametrize("settings", [UNIPC, DEIS])
@pytest.mark.parametrize("steps", [2, 3, 9, 14])
def test_short_runs_lose_points_as_steps_are_left(settings, steps):
    found = run(LowerOrderFinal(**settings, lower_below=15), steps)
    torch.testing.assert_close(found, run(Multistep(**settings, ending="count"), steps), atol=1e-12, rtol=1e-12)
    if steps > 3:
        assert (found - run(Multistep(**settings), steps)).abs().max() > 1e-6


@pytest.mark.parametrize("settings", [UNIPC, DEIS])
def test_longer_runs_keep_theirs(settings):
    plain = run(Multistep(**settings), 15)
    torch.testing.assert_close(run(LowerOrderFinal(**settings, lower_below=15), 15), plain, atol=1e-12, rtol=1e-12)
    euler_last = run(LowerOrderFinal(**settings, euler_at_final=True), 15)
    assert (euler_last - plain).abs().max() > 1e-6


def test_trained_timesteps():
    told = [round(1000 * level.t - 1) for level in get_grid("trained", PATH, 4)[:-1]]
    assert told == [999, 759, 499, 259]
    with pytest.raises(ValueError, match="60 steps of 50 trained ones on a table of 1000: take fewer steps"):
        get_grid("trained", PATH, 60)
