"""Fusion sampling: the moves of the paper, what they keep, and when there are none."""

from __future__ import annotations

import math

import pytest
import torch

from samplers.analytic import Gaussian
from samplers.denoiser import Condition, Context
from samplers.guidance.cfg import ClassifierFree
from samplers.guidance.fusion import FusionSampling, fusion_coefficients
from samplers.noise import seeded_noise
from samplers.path import NoiseLevel, RectifiedFlow, VarianceExploding, VariancePreserving
from samplers.registry import get_grid, get_solver
from samplers.sample import State, sample
from samplers.wrappers import PlainSolver, Step

PATHS = [RectifiedFlow(), VarianceExploding(), VariancePreserving.scaled_linear()]


def point(path, at: float = 1.5) -> Gaussian:
    """The exact denoiser of data that are one point."""
    return Gaussian(path, torch.full((1,), at, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_a_move_is_the_papers(path, eta):
    """x - eps V sqrt(1 - a_s) / (1 - a_t) + n sqrt(V (1 - a_s) (2 - 2 a_t - V)) / (1 - a_t), on the path at unit length."""
    s, t = path(path.t_noise * 0.5), path(path.t_noise * 0.25)
    length, a_s, a_t = math.hypot(s.alpha, s.sigma), *(v.alpha**2 / (v.alpha**2 + v.sigma**2) for v in (s, t))
    variance = eta**2 * (1 - a_t) / (1 - a_s) * (1 - a_s / a_t)
    keep, spread = fusion_coefficients(s, t, eta)
    assert keep == pytest.approx(length * variance * math.sqrt(1 - a_s) / (1 - a_t))
    assert spread == pytest.approx(length * math.sqrt(variance * (1 - a_s) * (2 - 2 * a_t - variance)) / (1 - a_t))
    assert (s.sigma - keep) ** 2 + spread**2 == pytest.approx(s.sigma**2)
    last = fusion_coefficients(s, path(0.0), eta)  # the limit of small noise, where the paper's form is 0 / 0
    assert last == pytest.approx((s.sigma * eta**2, s.sigma * math.sqrt(eta**2 * (2 - eta**2))), rel=1e-2)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_moves_keep_the_marginal_of_a_point(path):
    """x = alpha x0 + sigma n stays that distribution, exactly: mean and variance over many moves of one state."""
    s, t, count = path(path.t_noise * 0.5), path(path.t_noise * 0.25), 100_000
    x = s.alpha * 1.5 + s.sigma * torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = []

    class Keep(PlainSolver):
        def advance(self, step, state):
            seen.append(state.x)
            return state

    def noise(a: NoiseLevel, b: NoiseLevel) -> torch.Tensor:
        return torch.randn(count, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(int(a.t) % 2**31))

    solver = FusionSampling(Keep(), moves=3)

    solver.advance(Step(point(path), s, t, Condition(), Context(), noise), State(x))
    assert seen[0].mean().item() == pytest.approx(s.alpha * 1.5, abs=0.015 * s.sigma)
    assert seen[0].std().item() == pytest.approx(s.sigma, rel=0.01)
    assert (seen[0] - x).abs().mean() > 0.1 * s.sigma


@pytest.mark.parametrize("options", [{"moves": 0}, {"moves": 3, "eta": 0.0}])
def test_without_moves_it_is_the_solver_itself(options):
    path = RectifiedFlow()
    denoiser = ClassifierFree(point(path), 3.0)
    x = torch.randn(4, 1, dtype=torch.float64)
    levels = get_grid("uniform", path, 5)
    plain, same = (
        sample(denoiser, solver, x, levels)
        for solver in (get_solver("dpmpp_2m"), FusionSampling(get_solver("dpmpp_2m"), **options))
    )
    assert torch.equal(plain, same)


def test_a_run_counts_its_moves_and_uses_the_refiner():
    path, other = RectifiedFlow(), []
    levels = get_grid("uniform", path, 4)
    x = torch.randn(2, 1, dtype=torch.float64)

    class Refiner:
        def __init__(self):
            self.path = path

        def __call__(self, x, level, condition, context):
            other.append(level.t)
            return point(path, -1.0)(x, level, condition, context)

    source = seeded_noise([0, 1], x)
    made = sample(point(path), FusionSampling(get_solver("euler"), Refiner(), moves=2), x, levels, noise=source)
    assert len(other) == 2 * 3 and 1.0 not in other  # none at pure noise
    torch.testing.assert_close(made, torch.full_like(x, 1.5))
    again = sample(point(path), FusionSampling(get_solver("euler"), Refiner(), moves=2), x, levels, noise=source)
    assert torch.equal(made, again)


def test_wrong_settings_are_one_sentence():
    with pytest.raises(ValueError, match="eta=2"):
        FusionSampling(get_solver("euler"), eta=2)
    with pytest.raises(ValueError, match="moves"):
        FusionSampling(get_solver("euler"), moves=-1)
    path = RectifiedFlow()
    with pytest.raises(ValueError, match="adds noise"):
        sample(
            point(path),
            FusionSampling(get_solver("euler")),
            torch.randn(1, 1, dtype=torch.float64),
            get_grid("uniform", path, 3),
        )
