"""Align Your Flow: both losses against exact flow maps and against differences of the map itself."""

from __future__ import annotations

import pytest
import torch

from distill.objectives.align_your_flow import AlignYourFlowConfig, AlignYourFlowObjective
from distill.objectives.bases.teacher import Teacher
from distill.objectives.mean_flow import MeanFlowConfig, MeanFlowObjective
from distill.types import Draws
from samplers.denoiser import Condition, Context
from samplers.path import expand
from tests.distill.flow_maps import ExactMap, gaussian_teacher
from tests.distill.students import FLOW, SIZES, Exact, batch_of, loss_of, models_of, tiny_teacher
from tests.distill.test_objective_continuous import tiny

CPU = torch.device("cpu")
ENDS = {**SIZES, "scalars": ["target_time"]}
FORMS = pytest.mark.parametrize("form", ["eulerian", "lagrangian"])


def aligned(network, given, weak=None, **config) -> AlignYourFlowObjective:
    settings = {"start": "network", "drop_label": 0.0, "warmup": 0, "normalisation": None, **config}
    return AlignYourFlowObjective(AlignYourFlowConfig(**settings), network, None, given, weak)


def double_teacher(seed: int = 1) -> Teacher:
    torch.manual_seed(seed)
    teacher = tiny_teacher("dit", FLOW, seed=seed)
    teacher.network.double()
    return teacher


def drawn(objective, batch):
    draws = Draws(0, batch.index, "student")
    s, t = objective.times(draws, CPU)
    return s, t, objective.path(t).mix(batch.latents, draws.normal_like("eps", batch.latents)), Condition(label=batch.labels)


@FORMS
def test_the_exact_map_of_the_teacher_has_no_loss(form):
    teacher, batch = gaussian_teacher(), batch_of(32)
    assert loss_of(aligned(ExactMap(teacher.model, teacher.network.oracle), teacher, form=form), batch).item() < 1e-10
    assert loss_of(aligned(Exact(teacher.model, teacher.network.oracle), teacher, form=form), batch).item() > 0.01


def test_the_eulerian_direction_is_how_the_end_moves_with_the_start():
    """df/dt = (f(x + h v, t + h, s) - f(x - h v, t - h, s)) / 2h over (s - t), for networks that know nothing."""
    objective, batch, h = aligned(tiny(sizes=ENDS), double_teacher()), batch_of(6, shape=(2, 4, 4)), 1e-5
    s, t, x, condition = drawn(objective, batch)
    models = models_of(objective)
    v = objective.teacher_predict(models, x, objective.path(t), condition).flow(objective.path)

    def f(x, t):
        u = objective.mean_velocity(objective.roles["student"].network, x, s, t, condition, 1.0)
        return x + expand(s - t, x) * u

    with torch.no_grad():
        moved = (f(x + h * v, t + h) - f(x - h * v, t - h)) / (2 * h)
        _, g = objective.direction(models, x, s, t, condition, 1.0, 0)
    torch.testing.assert_close(g, moved, rtol=1e-4, atol=1e-4 * g.abs().max().item())


def test_the_lagrangian_direction_is_how_the_end_leaves_the_field():
    """v(f, s) - df/ds, with df/ds as a difference in s alone."""
    objective, h = aligned(tiny(sizes=ENDS), double_teacher(), form="lagrangian", min_time=0.05), 1e-5
    batch = batch_of(6, shape=(2, 4, 4))
    s, t, x, condition = drawn(objective, batch)
    s = s.clamp(min=0.05)
    models = models_of(objective)

    def f(s):
        return x + expand(s - t, x) * objective.mean_velocity(objective.roles["student"].network, x, s, t, condition, 1.0)

    with torch.no_grad():
        v = objective.teacher_predict(models, f(s), objective.path(s), condition).flow(objective.path)
        expected = v - (f(s + h) - f(s - h)) / (2 * h)
        _, g = objective.direction(models, x, s, t, condition, 1.0, 0)
    torch.testing.assert_close(g, expected, rtol=1e-4, atol=1e-4 * g.abs().max().item())


@FORMS
def test_it_is_flow_matching_where_both_ends_meet(form):
    """(F(x, t, t) - v)^2, at any progress of the warm-up, and while warming up anywhere for the Eulerian form."""
    batch = batch_of(6, shape=(2, 4, 4))
    objective = aligned(tiny(sizes=ENDS), double_teacher(), form=form, warmup=10**9)
    s, t, x, condition = drawn(objective, batch)
    models = models_of(objective)
    v = objective.teacher_predict(models, x, objective.path(t), condition).flow(objective.path)
    for end in (t, s) if form == "eulerian" else (t,):
        said, g = objective.direction(models, x, end, t, condition, 1.0, 0)
        torch.testing.assert_close(said + g, v, atol=1e-6, rtol=1e-6)


def test_the_eulerian_target_is_mean_flows_and_tangents_are_shortened():
    teacher, batch = double_teacher(), batch_of(6, shape=(2, 4, 4))
    network = tiny(sizes=ENDS)
    objective = aligned(network, teacher)
    s, t, x, condition = drawn(objective, batch)
    mean_flow = MeanFlowObjective(MeanFlowConfig(start="network", mode="distillation"), network, None, teacher)
    models = models_of(objective)
    v = objective.teacher_predict(models, x, objective.path(t), condition).flow(objective.path)
    said, g = objective.direction(models, x, s, t, condition, 1.0, 0)
    torch.testing.assert_close(said + g, mean_flow.target(models, x, v, s, t, condition, 1.0, 0))
    short = aligned(network, teacher, normalisation=0.1).direction(models, x, s, t, condition, 1.0, 0)[1]
    norm = g.flatten(1).norm(dim=1)
    torch.testing.assert_close(short, g / expand(norm + 0.1, g))


def test_times_are_an_interval_and_where_it_lies():
    objective = aligned(tiny(sizes=ENDS), double_teacher(), interval_mean=0.3, interval_std=0.5)
    s, t = objective.times(Draws(0, torch.arange(4000), "student"), CPU)
    logit = torch.logit(t - s)
    assert (s >= 0).all() and (t <= 1).all()
    assert logit.mean().item() == pytest.approx(0.3, abs=0.05) and logit.std().item() == pytest.approx(0.5, abs=0.03)
    place = s / (1 - (t - s))
    assert place.mean().item() == pytest.approx(0.5, abs=0.03) and place.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_guidance_away_from_a_weak_model_needs_no_empty_prompt():
    strong, weak, batch = double_teacher(1), double_teacher(5), batch_of(3, shape=(2, 4, 4))
    objective = aligned(tiny(sizes=ENDS), strong, weak)
    condition, level = Condition(label=batch.labels), objective.path(torch.tensor([0.2, 0.5, 0.9]).double())
    scale = torch.tensor([1.0, 2.0, 3.0]).double()
    models = models_of(objective)
    a, b = (one.denoiser(one.network)(batch.latents, level, condition, Context()).x0 for one in (strong, weak))
    expected = b + expand(scale, a) * (a - b)
    torch.testing.assert_close(objective.teacher_predict(models, batch.latents, level, condition, scale).x0, expected)
    torch.testing.assert_close(
        objective.teacher_predict({"teacher": strong.network}, batch.latents, level, condition, scale).x0, expected
    )
    nowhere = aligned(tiny(sizes=ENDS), strong, weak, teacher={"guidance_interval": (100.0, 101.0)})  # log-SNR of no level
    torch.testing.assert_close(nowhere.teacher_predict(models, batch.latents, level, condition, scale).x0, a)
    other = double_teacher(5)
    other.model = other.model.model_copy(update={"prediction": "v"})
    with pytest.raises(ValueError, match="has prediction 'v', but the teacher 'tiny' 'x0'"):
        aligned(tiny(sizes=ENDS), strong, other)
