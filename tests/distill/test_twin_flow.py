"""TwinFlow: steps against exact flow maps, the twin's sign, and which way a difference of the flows moves a picture."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.objectives.mean_flow import with_target_time
from distill.objectives.twin_flow import TwinFlowConfig, TwinFlowObjective
from distill.types import Draws
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from samplers.path import expand
from tests.distill.flow_maps import ExactMap, gaussian_teacher
from tests.distill.students import SIZES, batch_of, latents, loss_of, models_of, tiny_teacher
from tests.distill.test_objective_continuous import tiny
from tests.gen.conftest import randomise

CPU = torch.device("cpu")
ENDS = {**SIZES, "scalars": ["target_time"]}


def twin(network, given=None, **config) -> TwinFlowObjective:
    settings = {"start": "network", "drop_label": 0.0, **config}
    return TwinFlowObjective(TwinFlowConfig(**settings), network, None, given or tiny_teacher())


class ExactTwin(ExactMap):
    """At negative times, as at positive ones with both ends together, the velocity of the Gaussian: it draws that itself.
    offset: of the twin's velocity."""

    offset = 0.0

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        fake = time < 0
        told = Condition(label=condition.label, extra={"target_time": condition.extra["target_time"].abs()})
        own = super().forward(x, time.abs(), told, context)
        oracle = self.oracle(x, self.path(time.abs().double()), told, Context()).x0
        oracle = oracle - self.offset * expand(time.abs().double(), x)  # x0 = x - t v
        return torch.where(expand(fake.to(x), x) != 0, oracle, own)


def at(objective, batch):
    draws = Draws(0, batch.index, "student")
    s, t = objective.times(draws, CPU)
    return (
        draws,
        s,
        t,
        objective.path(t).mix(batch.latents, draws.normal_like("eps", batch.latents)),
        Condition(label=batch.labels),
    )


def test_the_velocity_of_a_network_with_learned_variances_is_without_them():
    network = randomise(build({"type": "dit", **ENDS, "learned_variance": True}), 2)
    objective, batch = twin(network), latents()
    _, s, t, x, condition = at(objective, batch)
    told = with_target_time(condition, s)
    wanted = objective.teacher.denoiser(network)(x, objective.path(t), told, Context()).flow(objective.path)
    torch.testing.assert_close(objective.velocity(network, x, t, s, condition, 1.0), wanted)


def test_the_exact_map_is_its_own_target_but_for_an_euler_step():
    """Of length d along the field: F is off by O(d), and a wrong map by much more."""
    teacher, batch, gaps = gaussian_teacher(), batch_of(64), []
    for difference in (0.02, 0.01):
        exact = ExactTwin(teacher.model, teacher.network.oracle)
        objective = twin(exact, teacher, mode="distillation", difference=difference, near=0.0, one_step=0.3)
        _, s, t, x, condition = at(objective, batch)
        models = models_of(objective)
        v = objective.teacher_predict(models, x, objective.path(t), condition).flow(objective.path)
        said = objective.velocity(exact, x, t, s, condition, 1.0)
        long = (t - s) > 0.05
        gaps.append((objective.target(models, said, x, v, s, t, condition, 1.0) - said)[long].abs().mean().item())
    assert gaps[0] / gaps[1] == pytest.approx(2, rel=0.15) and gaps[1] < 0.05
    wrong = objective.velocity(exact, x, t, t, condition, 1.0)  # the instant velocity for the mean one
    assert (objective.target(models, wrong, x, v, s, t, condition, 1.0) - wrong)[long].abs().mean().item() > 10 * gaps[1]


@pytest.mark.parametrize("order", [1, 3])
def test_the_target_is_a_first_step_along_the_field_and_the_averages_rest(order):
    objective, batch = twin(tiny(sizes=ENDS), order=order, difference=0.1, limit=1e9), batch_of(5, shape=(2, 4, 4))
    network, condition = objective.roles["target"].network, Condition(label=batch.labels)
    t, s, x, v = (
        torch.tensor([1.0, 0.9, 0.5, 0.4, 0.3]).double(),
        torch.zeros(5).double() + 0.1,
        batch.latents,
        batch.latents.flip(0),
    )
    said = torch.zeros_like(x)
    y, now = x - 0.1 * v, t - 0.1
    for part in range(order):
        then = t - 0.1 + (s - t + 0.1) * (part + 1) / order
        y = y - expand(now - then, x) * objective.velocity(network, y, now, then, condition, 1.0)
        now = then
    found = objective.target(models_of(objective), said, x, v, s, t, condition, 1.0)
    torch.testing.assert_close(found, (x - y) / 0.1, rtol=1e-6, atol=1e-6)  # F = 0 moves by the whole quotient
    fixed = (x - y) / expand(t - s, x)
    torch.testing.assert_close(objective.target(models_of(objective), fixed, x, v, s, t, condition, 1.0), fixed)
    held = twin(tiny(sizes=ENDS), limit=0.3).target(models_of(objective), said, x, v, s, t, condition, 1.0)
    assert held.abs().max() <= 0.3


def test_the_twin_is_asked_with_both_times_negative():
    seen: list = []

    def network(x, time, condition, context=None):
        seen.append((time, condition.extra["target_time"]))
        return x

    objective = twin(tiny(sizes=ENDS).float())
    t, s, fake = torch.tensor([0.5, 0.8]).double(), torch.tensor([0.1, 0.8]).double(), torch.tensor([False, True])
    objective.velocity(network, torch.zeros(2, 2, 4, 4), t, s, Condition(), 1.0, fake)
    torch.testing.assert_close(seen[0][0].double(), torch.tensor([0.5, -0.8]).double())
    torch.testing.assert_close(seen[0][1].double(), torch.tensor([0.1, -0.8]).double())


def test_flows_that_agree_move_nothing_and_others_move_pictures_to_the_data():
    """The gradient descends along fake - real, of denoised pictures: F = z - x, so that x goes the other way of F."""
    teacher, batch = gaussian_teacher(), batch_of(16)
    exact = ExactTwin(teacher.model, teacher.network.oracle)
    objective, condition = twin(exact, teacher), Condition(label=batch.labels)
    draws = Draws(0, batch.index, "student")
    assert objective.apart(models_of(objective), batch.latents, draws, condition, 1.0).abs().max() < 1e-9
    exact.offset = 0.25  # as if its own pictures lay at smaller numbers than the data
    apart = objective.apart(models_of(objective), batch.latents, draws, condition, 1.0)
    torch.testing.assert_close(apart, torch.full_like(apart, 0.25))

    def pull(weight: float) -> Tensor:
        """Of the loss on what is added to every picture that the student says."""
        loss = loss_of(twin(exact, teacher, matching_weight=weight), batch)
        return torch.autograd.grad(loss, exact.zero)[0]

    assert pull(1.0) - pull(0.0) < -1e-3  # descending, its pictures rise to where the data are


def test_its_own_flow_is_that_of_its_own_pictures():
    """The loss of the twin alone: from own noise to what it draws in one step, at both negative times."""
    batch, network = latents(), tiny(sizes=ENDS).float()
    both = [loss_of(twin(network, fake_weight=w, matching_weight=0.0, robust=1e4), batch) for w in (0.0, 1.0)]
    objective = twin(network, robust=1e4)
    draws, condition = Draws(0, batch.index, "student"), Condition(label=batch.labels)
    own, one = draws.normal_like("own start", batch.latents), torch.ones(4).double()
    drawn = own - objective.velocity(network, own, one, 0 * one, condition, 1.0)
    t, eps = objective.judged("own", draws, CPU), draws.normal_like("own eps", batch.latents)
    said = objective.velocity(network, objective.path(t).mix(drawn, eps), t, t, condition, 1.0, torch.ones(4).bool())
    expected = (said - (eps - drawn)).square().mean() / 1e4
    torch.testing.assert_close(both[1] - both[0], expected, rtol=1e-3, atol=1e-9)


def test_the_field_is_enhanced_by_the_averages_condition():
    objective, batch = twin(tiny(sizes=ENDS), enhance=0.7), batch_of(5, shape=(2, 4, 4))
    draws, _, t, x, condition = at(objective, batch)
    eps, models, target = draws.normal_like("eps", batch.latents), models_of(objective), objective.roles["target"].network
    found = objective.field(models, batch.latents, eps, x, t, condition, 1.0)
    with_c, blank = (objective.velocity(target, x, t, t, c, 1.0) for c in (condition, condition.null()))
    torch.testing.assert_close(found, eps - batch.latents + 0.7 * (with_c - blank))


def test_steps_are_of_three_kinds():
    objective = twin(tiny(sizes=ENDS).float(), one_step=0.2, near=0.5)
    s, t = objective.times(Draws(0, torch.arange(4000), "student"), CPU)
    whole, near = (s == 0) & (t == 1), (t - s) <= 0.05 * t
    assert whole.double().mean().item() == pytest.approx(0.2, abs=0.03)
    assert near.double().mean().item() == pytest.approx(0.5 + 0.3 * 0.05, abs=0.03) and (s < t).double().mean() > 0.999
    with pytest.raises(ValueError, match="shares of the samples"):
        twin(tiny(sizes=ENDS).float(), one_step=0.6, near=0.6)


def test_only_the_student_learns():
    objective = twin(tiny(sizes=ENDS).float())
    models = models_of(objective)
    loss_of(objective, latents()).backward()
    assert all(p.grad is not None for p in models["student"].parameters())
    assert all(p.grad is None for role in ("teacher", "target") for p in models[role].parameters())


def test_every_step_has_a_length(monkeypatch):
    """Also where the number drawn for its end is 0, as one in 2^24 is: the target divides by the length."""
    monkeypatch.setattr(Draws, "uniform", lambda self, purpose, shape=(), device=None: torch.zeros(len(self.index)))
    s, t = twin(tiny(sizes=ENDS).float(), one_step=0.0).times(Draws(0, torch.arange(3), "student"), CPU)
    assert (s > 0).all() and (s < t).all()
