"""What came after MeanFlow: AlphaFlow's way to it, and its improved form. Against formulas and exact flow maps."""

from __future__ import annotations

import pytest
import torch

from distill.objectives.alpha_flow import AlphaFlowConfig, AlphaFlowObjective
from distill.objectives.improved_mean_flow import ImprovedMeanFlowConfig, ImprovedMeanFlowObjective
from distill.objectives.mean_flow import MeanFlowConfig, MeanFlowObjective
from distill.types import Draws
from samplers.denoiser import Condition
from samplers.path import expand
from tests.distill.flow_maps import ExactMap, gaussian_teacher
from tests.distill.students import SIZES, Exact, batch_of, loss_of, tiny_teacher
from tests.distill.test_objective_continuous import models_of, small_batch, tiny

CPU = torch.device("cpu")
BOTH = {**SIZES, "scalars": ["target_time", "guidance"]}
ENDS = {**SIZES, "scalars": ["target_time"]}
PLAIN = {"start": "network", "drop_label": 0.0}


def alpha_flow(network, teacher=None, alpha: float | None = None, **config) -> AlphaFlowObjective:
    objective = AlphaFlowObjective(AlphaFlowConfig(**{**PLAIN, **config}), network, None, teacher or tiny_teacher())
    if alpha is not None:
        objective.alpha = lambda step: alpha
    return objective


def improved(network, given=None, **config) -> ImprovedMeanFlowObjective:
    settings = ImprovedMeanFlowConfig(**{**PLAIN, **config})
    return ImprovedMeanFlowObjective(settings, network, None, given or tiny_teacher())


def gradient(objective, batch) -> torch.Tensor:
    weight = objective.roles["student"].network.head.weight
    weight.grad = None
    loss_of(objective, batch).backward()
    return weight.grad.clone()


def test_alpha_falls_along_a_sigmoid_between_its_steps():
    objective = alpha_flow(tiny(sizes=ENDS), anneal=(100, 300))
    assert [objective.alpha(step) for step in (0, 100, 300, 10**6)] == [1, 1, 0, 0]
    assert objective.alpha(200) == pytest.approx(0.5)
    assert objective.alpha(210) == pytest.approx(1 / (1 + 2.718281828 ** (25 * 0.05)), rel=1e-6)
    falling = [objective.alpha(step) for step in range(100, 301)]
    assert falling == sorted(falling, reverse=True) and not any(0 < alpha < 5e-3 for alpha in falling)
    with pytest.raises(ValueError, match="anneal is"):
        AlphaFlowConfig(anneal=(5, 5))


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_small_alpha_has_the_gradient_of_mean_flow(power):
    """And a wrong weight, without 1/alpha, would not."""
    network, batch, settings = tiny(sizes=ENDS), small_batch(), {"different": 1.0, "power": power, "floor": 1e-14}
    config = MeanFlowConfig(**PLAIN, **settings)
    limit = gradient(MeanFlowObjective(config, network, None, tiny_teacher()), batch)
    near = gradient(alpha_flow(network, alpha=1e-4, **settings), batch)
    torch.testing.assert_close(near, limit, rtol=1e-3, atol=1e-3 * limit.abs().max().item())
    at_zero = gradient(alpha_flow(network, alpha=0.0, **settings), batch)
    torch.testing.assert_close(at_zero, limit)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.2])
def test_the_target_is_split_where_alpha_says(alpha):
    network, batch = tiny(sizes=ENDS), small_batch()
    objective = alpha_flow(network, alpha=alpha, different=1.0, power=0.0)
    draws = Draws(0, batch.index, "student")
    r, t = objective.times(draws, CPU)
    eps, condition = draws.normal("eps", (2, 4, 4)).double(), Condition(label=batch.labels)
    x, v = objective.path(t).mix(batch.latents, eps), eps - batch.latents
    s = t - alpha * (t - r)
    on_line = (1 - expand(s, x)) * batch.latents + expand(s, x) * eps  # v is the line's own: x_s is on it
    rest = objective.mean_velocity(network, on_line, r, s, condition, 1.0)
    u = objective.mean_velocity(network, x, r, t, condition, 1.0)
    error = (u - (alpha * v + (1 - alpha) * rest).detach()).square().sum((1, 2, 3))
    assert loss_of(objective, batch).item() == pytest.approx((error / alpha).mean().item(), rel=1e-8)


def test_targets_are_kept_within_a_limit():
    network, batch, settings = tiny(sizes=ENDS), small_batch(), {"different": 1.0, "power": 0.0}
    free, held = (alpha_flow(network, alpha=0.5, limit=limit, **settings) for limit in (None, 0.5))
    draws, v = Draws(0, batch.index, "student"), torch.full_like(batch.latents, 3.0)
    r, t = free.times(draws, CPU)
    condition = Condition(label=batch.labels)
    targets = [one.target(models_of(one), batch.latents, v, r, t, condition, 1.0, 0) for one in (free, held)]
    assert targets[0].max() > 0.5 and torch.equal(targets[1], targets[0].clamp(-0.5, 0.5))


def test_equal_times_are_flow_matching_at_any_alpha():
    network, batch = tiny(sizes=ENDS), small_batch()
    losses = {loss_of(alpha_flow(network, alpha=alpha, different=0.0), batch).item() for alpha in (0.0, 0.3, 1.0)}
    assert max(losses) == pytest.approx(min(losses), rel=1e-12)


def test_the_exact_map_is_the_fixed_point_of_small_alpha():
    """Along the teacher's velocity the target differs from the exact mean velocity by the error of an Euler step, O(alpha)."""
    teacher, batch = gaussian_teacher(), batch_of(32)
    exact = ExactMap(teacher.model, teacher.network.oracle)
    settings = {"mode": "distillation", "different": 0.8, "power": 0.0}
    losses = [loss_of(alpha_flow(exact, teacher, alpha, **settings), batch).item() for alpha in (0.02, 0.01, 0.0)]
    assert losses[2] < 1e-12 and losses[0] / losses[1] == pytest.approx(8, rel=0.1)  # (alpha^2)^2 / alpha
    instant = Exact(teacher.model, teacher.network.oracle)
    assert loss_of(alpha_flow(instant, teacher, 0.01, **settings), batch).item() > 100 * losses[1]


def test_improved_compares_the_fields_own_velocity():
    """For the exact map of a flow, V is the marginal velocity at every point, which is the minimum of regression on v. Along
    MeanFlow's direction, that of one picture and its noise, it is not."""
    teacher, batch = gaussian_teacher(), batch_of(16)
    exact = ExactMap(teacher.model, teacher.network.oracle)
    objective = improved(exact, teacher, different=1.0)
    draws = Draws(0, batch.index, "student")
    r, t = objective.times(draws, CPU)
    eps, condition = draws.normal_like("eps", batch.latents), Condition(label=batch.labels)
    x, models = objective.path(t).mix(batch.latents, eps), models_of(objective)
    velocity = objective.teacher_predict(models, x, objective.path(t), condition).flow(objective.path)
    _, predicted = objective.guided_velocity(models, eps - batch.latents, x, t, condition, torch.ones(16))
    torch.testing.assert_close(predicted, velocity, rtol=1e-9, atol=1e-9)
    u = objective.mean_velocity(exact, x, r, t, condition, 1.0)

    def compound(direction):
        return u + expand(t - r, x) * objective.change(models, x, direction, r, t, condition, 1.0)

    torch.testing.assert_close(compound(predicted), velocity, rtol=1e-6, atol=1e-6)
    assert (compound(eps - batch.latents) - velocity).abs().max() > 0.01


def test_improved_takes_the_gradient_through_u_alone():
    network, batch = tiny(sizes=ENDS), small_batch()
    objective = improved(network, different=1.0, power=0.0)
    draws, h = Draws(0, batch.index, "student"), 1e-5
    r, t = objective.times(draws, CPU)
    eps, condition = draws.normal("eps", (2, 4, 4)).double(), Condition(label=batch.labels)
    x, v = objective.path(t).mix(batch.latents, eps), eps - batch.latents

    def u(x, r, t):
        return objective.mean_velocity(network, x, r, t, condition, 1.0)

    predicted = u(x, t, t).detach()
    change = ((u(x + h * predicted, r, t + h) - u(x - h * predicted, r, t - h)) / (2 * h)).detach()
    error = (u(x, r, t) + expand(t - r, x) * change - v).square().sum((1, 2, 3)).mean()
    assert loss_of(objective, batch).item() == pytest.approx(error.item(), rel=1e-5)
    mine = gradient(objective, batch)
    network.zero_grad()
    error.backward()
    torch.testing.assert_close(mine, network.head.weight.grad, rtol=1e-4, atol=1e-6 * mine.abs().max().item())


def test_improved_learns_guidance_of_the_scale_that_it_receives():
    """v + (1 - 1/w)(u(c, w) - u(null, 1)): for networks that know the field, w v(c) + (1 - w) v(null)."""
    network, batch = tiny(sizes=BOTH), small_batch()
    objective = improved(
        network, teacher={"guidance_scale": (1.0, 8.0)}, embed_guidance=True, drop_label=0.4, guided=(0.1, 0.8)
    )
    draws = Draws(0, batch.index, "student")
    scale = torch.tensor([1.0, 2.0, 4.0, 8.0, 1.0])
    x, t, condition = (
        batch.latents,
        torch.tensor([0.2, 0.4, 0.5, 0.7, 0.9]).double(),
        Condition(label=torch.tensor([0, 1, 2, 0, 1])),
    )
    v = draws.normal("eps", (2, 4, 4)).double()
    target, predicted = objective.guided_velocity(models_of(objective), v, x, t, condition, scale)
    with torch.no_grad():
        with_c = objective.mean_velocity(network, x, t, t, condition, scale)
        blank = objective.mean_velocity(network, x, t, t, condition.null(), 1.0)
    torch.testing.assert_close(predicted, with_c)
    torch.testing.assert_close(target, v + expand(1 - 1 / scale, x) * (with_c - blank))
    assert torch.equal(target[scale == 1], v[scale == 1]) and (target - v)[3].abs().max() > 0.01
    # the fixed point: U = v + (1 - 1/w)(U - null) is solved by the guided velocity
    w, cond, null = 4.0, torch.tensor(1.5), torch.tensor(0.25)
    guided = w * cond + (1 - w) * null
    torch.testing.assert_close(guided, cond + (1 - 1 / w) * (guided - null))


def test_scales_have_a_power_law():
    for power, middle in ((1.0, 8**0.5), (0.0, 4.5), (2.0, 2 * 8 / 9)):
        objective = improved(tiny(sizes=BOTH), teacher={"guidance_scale": (1.0, 8.0)}, embed_guidance=True, scale_power=power)
        scale = objective.scale(Draws(0, torch.arange(4000), "student"), CPU)
        assert scale.min() >= 1 and scale.max() <= 8
        assert scale.median().item() == pytest.approx(middle, rel=0.05)  # of the density w^-power on [1, 8]


def test_samples_without_a_condition_are_trained_at_scale_one():
    network, batch = tiny(sizes=BOTH), small_batch(40)
    objective = improved(network, teacher={"guidance_scale": (2.0, 8.0)}, embed_guidance=True, drop_label=0.5)
    received: list = []
    original = objective.guided_velocity
    objective.guided_velocity = lambda *arguments: received.append(arguments[4:]) or original(*arguments)
    loss_of(objective, batch)
    condition, scale = received[0]
    assert torch.equal(scale == 1, condition.label < 0) and 5 < (scale == 1).sum() < 35
