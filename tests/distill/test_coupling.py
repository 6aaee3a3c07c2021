"""Couplings of data and noise: optimal, marginal-preserving, blind to the condition, and straighter."""

from __future__ import annotations

import pytest
import torch

from distill.losses.coupling import CouplingConfig, assign, couple, draw_rows, match_stably, sinkhorn
from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective
from distill.types import Batch, Draws
from tests.distill.test_diffusion import PHASE, Fixed, batch_of


def costs(size: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.cdist(torch.randn(size, 3, generator=g).double(), torch.randn(size, 3, generator=g).double()).square()


def pairs(kind: str, x0: torch.Tensor, eps: torch.Tensor, seed=0, batch=None, **options):
    index = torch.arange(len(x0))
    return couple(CouplingConfig(type=kind, **options), x0, eps, batch or Batch(index=index), Draws(seed, index))


@pytest.mark.parametrize("size", [1, 2, 3, 17, 64])
def test_assignment_is_scipys(size):
    scipy = pytest.importorskip("scipy.optimize")
    for seed in range(4):
        cost = costs(size, seed)
        mine = assign(cost)
        rows, columns = scipy.linear_sum_assignment(cost.numpy())
        assert mine.tolist() == columns.tolist()
        ties = cost.round()  # whole numbers: many optima, one value
        mine = assign(ties)
        _, columns = scipy.linear_sum_assignment(ties.numpy())
        assert sorted(mine.tolist()) == list(range(size))
        assert ties[torch.arange(size), mine].sum() == ties[rows, columns].sum()


def test_in_one_dimension_exact_coupling_sorts_both_sides():
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(50, 1, generator=g), torch.randn(50, 1, generator=g)
    coupled = pairs("exact", x0, eps)
    assert torch.equal(coupled[x0.argsort(0)[:, 0]], eps.sort(0).values)


@pytest.mark.parametrize("kind", ["exact", "stable"])
def test_every_noise_is_used_once_and_the_cost_falls(kind):
    g = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(40, 2, generator=g), torch.randn(40, 2, generator=g)
    coupled = pairs(kind, x0, eps)
    assert sorted(map(tuple, coupled.tolist())) == sorted(map(tuple, eps.tolist()))
    assert (coupled - x0).square().sum() < 0.8 * (eps - x0).square().sum()
    assert (pairs("exact", x0, eps) - x0).square().sum() <= (coupled - x0).square().sum() + 1e-4


def test_stable_matching_has_no_blocking_pair():
    cost = costs(30, 3)
    partner = match_stably(cost)
    mine = cost[torch.arange(30), partner]
    theirs = torch.empty(30, dtype=torch.float64).index_put((partner,), mine)
    assert not ((cost < mine[:, None]) & (cost < theirs[None])).any()


def test_sinkhorn_is_the_entropic_plan():
    cost = costs(12, 0)
    plan = sinkhorn(cost, 0.7, 3000)
    ones = torch.ones(12, dtype=torch.float64)
    torch.testing.assert_close(plan.sum(1), ones)
    torch.testing.assert_close(plan.sum(0), ones, atol=1e-9, rtol=0)
    # log plan + cost / temperature is a sum of a row and a column term: all its 2 x 2 differences vanish
    rest = plan.log() + cost / 0.7
    torch.testing.assert_close(rest - rest[:1] - rest[:, :1] + rest[0, 0], torch.zeros_like(rest), atol=1e-9, rtol=0)


def test_sinkhorn_goes_from_the_exact_coupling_to_an_independent_one():
    g = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(32, 2, generator=g), torch.randn(32, 2, generator=g)
    cold = pairs("sinkhorn", x0, eps, epsilon=1e-3, iterations=3000)
    exact = pairs("exact", x0, eps)
    assert (cold == exact).all(1).float().mean() > 0.8
    assert (cold - x0).square().sum() == pytest.approx((exact - x0).square().sum().item(), rel=0.05)
    hot = sinkhorn(torch.cdist(x0, eps).square(), 1e6, 100)
    torch.testing.assert_close(hot, torch.full((32, 32), 1 / 32), atol=1e-4, rtol=0)


def test_rows_are_drawn_with_the_probabilities_of_the_plan():
    plan = torch.tensor([[0.1, 0.6, 0.3]], dtype=torch.float64).expand(6000, 3)
    chosen = draw_rows(plan, Draws(0, torch.arange(6000)).uniform("coupling").double())
    shares = torch.bincount(chosen, minlength=3) / 6000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.6, 0.3]), atol=0.025, rtol=0)
    assert draw_rows(plan[:2], torch.tensor([0.0, 1.0]).double()).tolist() == [0, 2]


@pytest.mark.parametrize("kind", ["exact", "sinkhorn"])
def test_noise_tells_nothing_about_the_condition(kind):
    """Two classes far apart: coupled over the whole batch, the class could be read from the noise; within classes it cannot."""
    label = torch.arange(200) % 2
    g = torch.Generator().manual_seed(2)
    x0 = 4.0 * label[:, None] + torch.randn(200, 1, generator=g)
    eps = torch.randn(200, 1, generator=g)
    batch = Batch(index=torch.arange(200), labels=label)

    def gap(coupled):
        return (coupled[label == 1].mean() - coupled[label == 0].mean()).item()

    assert abs(gap(pairs(kind, x0, eps, batch=batch))) < 0.45  # three standard errors
    assert gap(pairs(kind, x0, eps, batch=batch, within="batch")) > 1.2
    same = pairs(kind, x0, eps, batch=batch)
    assert set(same[label == 0].flatten().tolist()) <= set(eps[label == 0].flatten().tolist())


def test_distinct_captions_keep_their_own_noise():
    x0, eps = torch.randn(4, 2), torch.randn(4, 2)
    batch = Batch(index=torch.arange(4), captions=["a", "b", "c", "d"])
    assert torch.equal(pairs("exact", x0, eps, batch=batch), eps)


def test_exact_coupling_makes_straighter_flows():
    """The straightness of arXiv 2304.14772: how far x1 - x0 is from its mean given x_t, here within bins of x_t."""
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.rand(512, 1, generator=g) < 0.5).float() * 4 - 2, torch.randn(512, 1, generator=g)

    def spread(noise):
        x, v = (x0 + noise)[:, 0] / 2, (noise - x0)[:, 0]
        order = x.argsort()
        return v[order].unflatten(0, (32, 16)).var(1).mean().item()

    assert spread(pairs("exact", x0, eps)) < 0.25 * spread(eps)


def test_the_objective_couples():
    batch = batch_of(8)
    seen = {}

    def x_of(coupling):
        objective = DiffusionObjective(DiffusionConfig(coupling=coupling), Fixed(torch.zeros(8, 2, 4, 4)))
        network = objective.roles["denoiser"].network
        network.forward = lambda x, *rest: seen.setdefault(str(coupling), x)
        objective.loss(PHASE, {"denoiser": network}, batch, Draws(0, batch.index, "denoiser"), 0)
        level = objective.levels(Draws(0, batch.index, "denoiser"), torch.device("cpu"))
        return (seen[str(coupling)] - level.alpha[:, None, None, None] * batch.latents) / level.sigma[:, None, None, None]

    plain, coupled = x_of({"type": "independent"}), x_of({"type": "exact"})
    order = torch.cdist(coupled.flatten(1), plain.flatten(1)).argmin(1)
    assert sorted(order.tolist()) == list(range(8)) and order.tolist() != list(range(8))
    torch.testing.assert_close(coupled, plain[order], atol=1e-4, rtol=0)
    assert (coupled - batch.latents).square().sum() < (plain - batch.latents).square().sum()
