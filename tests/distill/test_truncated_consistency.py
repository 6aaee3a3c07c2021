"""Truncated consistency: who answers where, at which levels, and what a boundary's error counts."""

from __future__ import annotations

import pytest
import torch

from distill.objectives.truncated_consistency import (
    TruncatedConsistencyConfig,
    TruncatedConsistencyObjective,
    truncated_quantiles,
)
from distill.types import Draws
from samplers.noise_ratio import at_ratio
from samplers.path import expand
from tests.distill.flow_maps import ExactEnd, gaussian_teacher, ode
from tests.distill.students import Exact, batch_of, latents, loss_of, models_of, tiny_teacher
from tests.distill.test_objective_continuous import tiny

CPU = torch.device("cpu")


def truncated(network, given=None, **config) -> TruncatedConsistencyObjective:
    settings = {"start": "network", "drop_label": 0.0, **config}
    return TruncatedConsistencyObjective(TruncatedConsistencyConfig(**settings), network, None, given or tiny_teacher())


@pytest.mark.parametrize(("first", "mine", "zero"), [(True, True, True), (False, True, False), (True, False, False)])
def test_exact_answers_of_both_have_no_loss(first, mine, zero):
    """On one trajectory of the ODE; and the loss sees each of them."""
    teacher, config = gaussian_teacher(), {"distance": "squared", "weighting": "uniform", "boundary_width": 0.01}
    oracle = teacher.network.oracle
    exact, other = ExactEnd(teacher, 0.002, 0.01), Exact(teacher.model, oracle)
    if first:
        has, teacher.network = getattr(teacher.network, "config", None), ExactEnd(teacher, 0.002, 0.01)
        teacher.network.config = has
    objective = truncated(exact if mine else other, teacher, **config)
    objective.earlier = lambda models, x0, eps, x_t, t, s, *rest: ode(oracle, x_t, t, s)
    loss = loss_of(objective, batch_of(64)).item()
    assert loss < 1e-16 if zero else loss > 1e-8


def test_the_first_stage_answers_below_and_the_student_from_the_transition_on():
    objective, batch = truncated(tiny().float(), transition=2.0, schedule_options={"sigma_min": 2.0}), latents()
    ratio = torch.tensor([0.5, 1.999, 2.0, 30.0]).double()
    level, models = at_ratio(objective.path, ratio), models_of(objective)
    condition = objective.condition(batch, CPU)
    with torch.no_grad():
        found = objective.truncated(models, batch.latents, ratio, level, condition, 1.0)
        ends = [
            objective.function(objective.predict(models[r], batch.latents, level, condition)) for r in ("teacher", "student")
        ]
    assert (ends[0] - ends[1]).abs().flatten(1).amax(1).min() > 1e-3
    torch.testing.assert_close(found, torch.cat([ends[0][:2], ends[1][2:]]))


def test_the_loss_is_both_means_and_the_boundarys_counts_for_its_weight():
    """Over many samples; with a weight of 1 instead, or one mean of all, it is another."""
    batch = latents(400)
    objective = truncated(tiny().float(), distance="squared", weighting="uniform", boundary_share=0.3, boundary_weight=0.2)
    draws, models = Draws(0, batch.index, "student"), models_of(objective)
    high, low = objective.pair(draws, CPU, 0)
    boundary = objective.at_boundary(draws, CPU)
    assert torch.equal(boundary, high == objective.config.transition)
    t, s, eps = at_ratio(objective.path, high), at_ratio(objective.path, low), draws.normal_like("eps", batch.latents)
    condition = objective.condition(batch, CPU)
    with torch.no_grad():
        mine = objective.function(objective.predict(models["student"], t.mix(batch.latents, eps), t, condition))
        target = objective.truncated(models, s.mix(batch.latents, eps), low, s, condition, 1.0)
        error = (mine - target).square().mean((1, 2, 3))
        expected = error[~boundary].sum() / (0.7 * 400) + 0.2 * error[boundary].sum() / (0.3 * 400)
        assert loss_of(objective, batch).item() == pytest.approx(expected.item(), rel=1e-4)
    assert boundary.double().mean().item() == pytest.approx(0.3, abs=0.07)


@pytest.mark.parametrize("df", [0.01, 2.0, None])
def test_levels_are_the_distribution_cut_off(df):
    """Against draws of torch's own, of which those between the ends are kept."""
    config = TruncatedConsistencyConfig(mean=0.3, std=0.8, df=df, transition=1.0, sigma_max=80.0)
    table = truncated_quantiles(config)
    torch.manual_seed(0)
    plain = torch.distributions.Normal(0.0, 1.0) if df is None else torch.distributions.StudentT(torch.tensor(df))
    drawn = 0.3 + 0.8 * plain.sample((600_000,)).double()
    kept = drawn[(drawn > 0) & (drawn < torch.tensor(80.0).log())]
    assert len(kept) > 3000
    shares = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double()
    found = table[(shares * (len(table) - 1)).round().long()]
    below = torch.stack([(kept < value).double().mean() for value in found])
    torch.testing.assert_close(below, shares, atol=0.03, rtol=0)
    assert table[0] == 0 and table[-1].exp().item() == pytest.approx(80.0)


def test_the_earlier_point_is_as_near_as_published():
    objective = truncated(tiny().float(), gap=1e-3)
    high, low = objective.pair(Draws(0, torch.arange(50), "student"), CPU, 0)
    torch.testing.assert_close(low, high - high * 1e-3 * (1 + 8 * torch.sigmoid(-high)))
    assert (expand(low, torch.zeros(50, 1)) < expand(high, torch.zeros(50, 1))).all()


def test_it_is_not_sampled_where_it_was_not_trained():
    with pytest.raises(ValueError, match=r"sampled at sigma / alpha = 0\.5, but below the transition 1 it is not trained"):
        truncated(tiny().float(), schedule_options={"sigma_min": 0.5})
    with pytest.raises(ValueError, match=r"transition 100\.0 must be between"):
        truncated(tiny().float(), transition=100.0)
