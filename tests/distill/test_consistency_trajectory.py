"""Consistency trajectory models against the exact trajectories of Gaussian data, and against their formulas."""

from __future__ import annotations

import pytest
import torch

from distill.losses.balance import gradient_ratio
from distill.objectives.bases.teacher import Teacher
from distill.objectives.consistency_trajectory import ConsistencyTrajectoryConfig, ConsistencyTrajectoryObjective
from distill.types import Draws, Phase
from samplers.denoiser import Condition
from samplers.noise_ratio import at_ratio
from samplers.path import expand
from tests.distill.flow_maps import ExactMap, gaussian_teacher, ode
from tests.distill.students import SIZES, Exact, batch_of, latents, loss_of, models_of, tiny_teacher
from tests.distill.test_objective_continuous import tiny
from tests.gen.conftest import randomise

ENDS = {**SIZES, "scalars": ["target_time"]}
CPU = torch.device("cpu")


def trajectory(network, given=None, **config) -> ConsistencyTrajectoryObjective:
    settings = {"start": "network", "drop_label": 0.0, "adversarial_weight": 0.0, "levels": 9, "solver_steps": 3, **config}
    return ConsistencyTrajectoryObjective(ConsistencyTrajectoryConfig(**settings), network, None, given or double_teacher())


def double_teacher() -> Teacher:
    teacher = tiny_teacher()
    teacher.network.double()
    return teacher


def judged_teacherless(monkeypatch):
    """Exact networks have no blocks that a discriminator could read, and none is asked for."""
    monkeypatch.setattr(ConsistencyTrajectoryObjective, "judged_blocks", lambda *_: ((), []))


@pytest.mark.parametrize(("solver", "order"), [("heun", 3), ("euler", 2)])
def test_the_exact_map_has_no_loss_but_the_solvers_error(monkeypatch, solver, order):
    """Which falls as the solver's local error, on a grid twice as dense, with one step."""
    judged_teacherless(monkeypatch)
    losses = []
    for levels in (33, 65):
        teacher = gaussian_teacher()
        exact = ExactMap(teacher.model, teacher.network.oracle)
        config = {"levels": levels, "solver_steps": 1, "distance": "squared", "denoising_weight": 0.0, "sigma_max": 20.0}
        losses.append(loss_of(trajectory(exact, teacher, teacher={"solver": solver}, **config), batch_of(256)).item())
    assert torch.tensor(losses[0] / losses[1]).log2().item() / 2 == pytest.approx(order, abs=0.5)
    denoiser = Exact(teacher.model, teacher.network.oracle)  # says the mean of x0 whatever the end
    assert loss_of(trajectory(denoiser, teacher, teacher={"solver": solver}, **config), batch_of(64)) > 100 * losses[1]


def test_the_trajectory_function_is_the_published_one():
    """G = s/t x + (1 - s/t) g in the variance-exploding coordinates x / alpha."""
    objective, batch = trajectory(tiny(sizes=ENDS)), batch_of(4, shape=(2, 4, 4))
    t, s = (at_ratio(objective.path, torch.tensor(ratios).double()) for ratios in ([3.0, 1.0, 0.5, 0.2], [1.0, 0.9, 0.01, 0.2]))
    network, condition = objective.roles["student"].network, Condition(label=batch.labels)
    moved = objective.end(network, batch.latents, t, s, condition, 1.0)
    told = Condition(label=batch.labels, extra={"target_time": s.t})
    g = objective.predict(network, batch.latents, t, told).x0
    share = expand((s.sigma / s.alpha) / (t.sigma / t.alpha), g)
    y = share * batch.latents / expand(t.alpha, g) + (1 - share) * g
    torch.testing.assert_close(moved / expand(s.alpha, g), y)
    torch.testing.assert_close(moved[3], batch.latents[3])  # from a level to itself


def test_the_target_takes_the_teachers_steps_and_then_the_averages():
    """Euler steps along the grid, one jump to s and one to the cleanest level, written out."""
    objective = trajectory(tiny(sizes=ENDS), teacher={"solver": "euler"}, levels=9, solver_steps=3)
    batch = batch_of(4, shape=(2, 4, 4))
    draws = Draws(0, batch.index, "student")
    seen = set()
    for step in range(12):
        at = objective.trajectories(batch, draws, step)
        seen.add(at.gone)
        condition, grid = Condition(label=batch.labels), objective.grid(CPU)
        x = at.x_t
        for taken in range(at.gone):
            high, low = grid[at.place - taken], grid[at.place - taken - 1]
            t, u = at_ratio(objective.path, high), at_ratio(objective.path, low)
            eps = objective.teacher_predict(models_of(objective), x, t, condition).eps
            x = expand(u.alpha, x) * (x / expand(t.alpha, x) + expand(low - high, x) * eps)
        target, end = objective.roles["target"].network, objective.cleanest(u)
        x = objective.end(target, objective.end(target, x, u, at.s, condition, 1.0), at.s, end, condition, 1.0)
        torch.testing.assert_close(objective.target(models_of(objective), at), x)
        assert (at.s.t <= u.t * (1 + 1e-12)).all() and (at.s.t >= end.t * (1 - 1e-12)).all()
    assert seen == {1, 2, 3}


def test_longer_solutions_are_drawn_more_often():
    objective = trajectory(tiny(sizes=ENDS), solver_steps=3)
    counts = torch.tensor([objective.count(seed, step) for seed in range(30) for step in range(40)])
    shares = torch.stack([(counts == k).double().mean() for k in (1, 2, 3)])
    torch.testing.assert_close(shares, torch.tensor([1, 2, 3]).double() / 6, atol=0.05, rtol=0)


def test_at_equal_levels_it_is_a_denoiser():
    """The whole denoising loss, with EDM's weight, beside the first."""
    batch, network, teacher = batch_of(4, shape=(2, 4, 4)), tiny(sizes=ENDS), double_teacher()
    with_loss = trajectory(network, teacher, balance=False, denoising_weight=0.5)
    without = trajectory(network, teacher, balance=False, denoising_weight=0.0)
    draws = Draws(0, batch.index, "student")
    level = with_loss.denoised_level(draws, with_loss.trajectories(batch, draws, 0))
    x = level.mix(batch.latents, draws.normal_like("denoised eps", batch.latents))
    told = Condition(label=batch.labels, extra={"target_time": level.t})
    error = (with_loss.predict(network, x, level, told).x0 - batch.latents).square().mean((1, 2, 3))
    ratio = level.sigma / level.alpha
    expected = 0.5 * (error * (ratio**2 + 0.25) / (0.5 * ratio) ** 2).mean()
    assert (loss_of(with_loss, batch) - loss_of(without, batch)).item() == pytest.approx(expected.item(), rel=1e-6)


def test_balanced_losses_pull_alike():
    """At the network's output the second loss's gradient, weighed, is as long as the first's; and no graph, no balance."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=g, requires_grad=True)
    first, second = (x**2).sum(), 7 * (x @ torch.randn(3, 2, generator=g)).sin().mean()
    ratio = gradient_ratio(first, second, x)
    balanced = torch.autograd.grad(ratio * second, x, retain_graph=True)[0].norm()
    torch.testing.assert_close(balanced, torch.autograd.grad(first, x, retain_graph=True)[0].norm())
    assert not ratio.requires_grad and gradient_ratio(first, second, x, high=0.5).item() == pytest.approx(
        min(ratio.item(), 0.5)
    )
    with torch.no_grad():
        assert gradient_ratio(first, second, x).item() == 1


@pytest.mark.parametrize("balance", [True, False])
def test_only_the_student_learns_and_the_average_passes_gradients_on(balance):
    batch = latents()
    network = tiny(sizes=ENDS).float()
    objective = trajectory(network, tiny_teacher(), adversarial_weight=0.3, adversarial_start=2, balance=balance)
    assert [phase.name for phase in objective.phases(1)] == ["student"]
    assert [phase.name for phase in objective.phases(2)] == ["student", "discriminator"]
    models = models_of(objective)
    loss_of(objective, batch, step=2).backward()
    assert all(p.grad is not None for p in models["student"].parameters())
    assert all(p.grad is None for role in ("teacher", "target", "discriminator") for p in models[role].parameters())
    models["student"].zero_grad()
    loss, _ = objective.loss(Phase("discriminator", "discriminator"), models, batch, Draws(0, batch.index, "student"), 2)
    loss.backward()
    assert all(p.grad is not None for p in models["discriminator"].parameters())
    assert all(p.grad is None or not p.grad.any() for p in models["student"].parameters())


def test_the_discriminators_weight_counts_once_beside_the_balance(monkeypatch):
    """Whether the balance is at its bound or not, or is left out, as in a measurement."""
    monkeypatch.setattr("distill.objectives.consistency_trajectory.gradient_ratio", lambda *given: 10.0)
    batch, objective = (
        latents(),
        trajectory(tiny(sizes=ENDS).float(), tiny_teacher(), adversarial_weight=0.3, denoising_weight=0.0),
    )
    models = models_of(objective)
    randomise(models["discriminator"], 5)
    with torch.no_grad():
        draws = Draws(0, batch.index, "student")
        loss, logged = objective.loss(Phase("student", "student"), models, batch, draws, 0)
    assert logged["adversarial"].abs() > 1e-3
    torch.testing.assert_close(loss, logged["error"] + 10 * 0.3 * logged["adversarial"])


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="solver_steps 9 must be below levels 9"):
        trajectory(tiny(sizes=ENDS), solver_steps=9)
    with pytest.raises(ValueError, match="must receive where a step ends"):
        trajectory(tiny())


def test_stops_halfway_are_points_of_the_trajectory(monkeypatch):
    """An exact student drawn in any number of steps without new noise lands on the ODE's end."""
    judged_teacherless(monkeypatch)
    teacher = gaussian_teacher()
    exact = ExactMap(teacher.model, teacher.network.oracle)
    objective, noise = trajectory(exact, teacher), torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(1)).double()
    start = at_ratio(objective.path, torch.full((4,), 80.0))
    x = noise * expand(start.sigma, noise)
    clean = objective.path(torch.zeros(4, dtype=torch.float64))
    for steps in (1, 3):
        drawn = objective.draw(exact, noise, Condition(label=torch.zeros(4).long()), steps=steps)
        torch.testing.assert_close(drawn, ode(teacher.network.oracle, x, start, clean), atol=1e-5, rtol=1e-5)
