"""Continuous-time consistency and MeanFlow: tangents against the definition, and against exact flow maps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from distill.losses.jvp import jvp
from distill.objectives.mean_flow import MeanFlowConfig, MeanFlowObjective, select, with_target_time
from distill.objectives.scm import ContinuousConsistencyConfig, ContinuousConsistencyObjective
from distill.types import Draws, Phase
from gen.generator import Generator
from gen.nn.registry import build
from samplers.denoiser import Condition
from tests.distill.flow_maps import ExactEnd, ExactMap, gaussian_teacher
from tests.distill.students import FLOW, SIZES, VP, Exact, batch_of, exact_teacher, loss_of, tiny_teacher
from tests.gen.conftest import randomise

CPU = torch.device("cpu")
TOLD = {**SIZES, "scalars": ["target_time"]}


def models_of(objective):
    return {name: role.network for name, role in objective.roles.items()}


def tiny(kind: str = "dit", sizes=SIZES, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return randomise(build({"type": kind, **sizes}), seed).double()


def small_batch(count: int = 5):
    return batch_of(count, shape=(2, 4, 4))


# ---- derivatives ----


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_forward_mode_is_the_difference_quotient(kind):
    network = tiny(kind)
    network.attention_backend = "math"
    x, direction = small_batch(3).latents, small_batch(6).latents[3:]
    time, condition = torch.tensor([0.2, 0.5, 0.9]).double(), Condition(label=torch.tensor([0, 1, -1]))

    def function(x, time):
        return network(x, time, condition)

    ones = torch.ones(3).double()
    value, exact = jvp(function, (x, time), (direction, ones))
    again, close = jvp(function, (x, time), (direction, ones), "difference", 1e-4)
    torch.testing.assert_close(value, again)
    torch.testing.assert_close(exact, close, atol=1e-5 * exact.abs().max().item(), rtol=0)
    assert not exact.requires_grad and exact.abs().max() > 1e-3


def test_derivatives_are_not_taken_in_half_precision():
    layer = nn.Linear(4, 4)
    x, d = torch.randn(2, 4), torch.randn(2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        _, change = jvp(layer, (x,), (d,))
    torch.testing.assert_close(change, d @ layer.weight.T.detach())


# ---- continuous-time consistency ----


def continuous(given, network, **config) -> ContinuousConsistencyObjective:
    settings = {"start": "network", "adaptive": False, "warmup": 0, "normalisation": None, "drop_label": 0.0, **config}
    return ContinuousConsistencyObjective(ContinuousConsistencyConfig(**settings), network, None, given)


def tangent(objective, batch, step=0):
    draws = Draws(0, batch.index, "student")
    angle = objective.angles(draws, CPU)
    z = draws.normal("eps", batch.latents.shape[1:]).to(batch.latents)
    condition = objective.condition(batch, CPU)
    x, said, g = objective.tangent(models_of(objective), batch.latents, z, angle, condition, objective.scale(draws, CPU), step)
    return angle, z, x, said, g


def test_the_exact_function_has_no_tangent():
    teacher = gaussian_teacher()
    batch = batch_of(32)
    exact = continuous(teacher, ExactEnd(teacher))
    *_, g = tangent(exact, batch)
    assert g.abs().max() < 1e-9
    denoiser = continuous(teacher, teacher.network)  # the mean of x0: not constant along the ODE
    *_, g = tangent(denoiser, batch)
    assert g.abs().max() > 0.05


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "vp"])
def test_the_tangent_is_cos_t_df_dt(path, sigma_data):
    """g = cos(t) df/dt along the trajectory, f = cos(t) x - sin(t) sd F: here by differences of f itself, with a network that
    knows nothing, in the direction of one picture and its noise."""
    teacher = tiny_teacher("dit", path)
    objective = continuous(teacher, tiny(), mode="training", sigma_data=sigma_data)
    batch = small_batch()
    angle, z, _, _, g = tangent(objective, batch)
    condition = Condition(label=batch.labels)
    network = objective.roles["student"].network

    def f(angle):
        cos, sin = (v.reshape(-1, 1, 1, 1) for v in (angle.cos(), angle.sin()))
        x = cos * batch.latents + sin * sigma_data * z
        return cos * x - sin * objective.field(lambda x, level: objective.predict(network, x, level, condition), x, angle)

    h = 1e-5
    df = (f(angle + h) - f(angle - h)) / (2 * h)
    expected = angle.cos().reshape(-1, 1, 1, 1) * df
    torch.testing.assert_close(g, expected.detach(), atol=1e-6 * expected.abs().max().item(), rtol=1e-5)

    # f is what the network says x0 is
    level = objective.path.at_logsnr(-(sigma_data * angle.tan()).log())
    on_path = level.alpha.reshape(-1, 1, 1, 1) * (batch.latents + (sigma_data * angle.tan()).reshape(-1, 1, 1, 1) * z)
    torch.testing.assert_close(f(angle), objective.predict(network, on_path, level, condition).x0, atol=1e-9, rtol=1e-9)


def test_the_student_moves_its_velocity_along_the_tangent():
    """The gradient of the loss is that of -2 g F / (sd d), per sample."""
    objective = continuous(tiny_teacher(), tiny(), mode="training", normalisation=0.1)
    batch = small_batch()
    angle, _, x, _, g = tangent(objective, batch)
    network = objective.roles["student"].network
    loss_of(objective, batch).backward()
    mine = network.head.weight.grad.clone()
    network.zero_grad()
    condition = Condition(label=batch.labels)
    said = objective.field(lambda x, level: objective.predict(network, x, level, condition), x, angle)
    (-2 * (g * said).flatten(1).mean(1)).mean().backward()
    torch.testing.assert_close(mine, network.head.weight.grad, rtol=1e-6, atol=1e-10)
    assert (g.flatten(1).norm(dim=1) < 1).all()


def test_warm_up_brings_in_the_derivative():
    """At the start only the difference of velocities is left: the loss of diffusion, in the direction of -(F - dx/dt)."""
    objective = continuous(tiny_teacher(), tiny(), mode="training", warmup=10**9)
    batch = small_batch()
    angle, z, _, said, g = tangent(objective, batch)
    cos, sin = (v.reshape(-1, 1, 1, 1) for v in (angle.cos(), angle.sin()))
    torch.testing.assert_close(g, -(cos**2) * (said - (cos * z - sin * batch.latents)), atol=1e-6, rtol=1e-6)
    full = tangent(continuous(tiny_teacher(), tiny(), mode="training"), batch)[-1]
    objective = continuous(tiny_teacher(), tiny(), mode="training", warmup=10)
    half = tangent(objective, batch, step=4)[-1]
    torch.testing.assert_close(half, (g + full) / 2, atol=1e-6, rtol=1e-6)


def test_the_teachers_direction_is_guided():
    teacher = exact_teacher()
    batch = batch_of(8)
    plain = tangent(continuous(teacher, ExactEnd(gaussian_teacher())), batch)[-1]
    guided = tangent(continuous(teacher, ExactEnd(gaussian_teacher()), teacher={"guidance_scale": 3.0}), batch)[-1]
    assert (plain - guided).abs().max() > 0.01


def test_the_weight_learns_the_log_of_the_error():
    """exp(w) e - w is least at w = -log e; the student's loss then counts every level alike."""
    objective = continuous(tiny_teacher(), tiny(), mode="training", adaptive=True, share=0.4)
    assert [phase.name for phase in objective.phases(0)] == ["student", "weight"]
    batch, models = small_batch(), models_of(objective)
    g = tangent(objective, batch)[-1][:2].flatten(1).square().mean(1)
    draws, phase = Draws(0, batch.index, "weight"), Phase("weight", "weight")
    loss, _ = objective.loss(phase, models, batch, draws, 0)
    assert loss.item() == pytest.approx(g.mean().item(), rel=1e-5)  # exp(0) e - 0, on ceil(.4 * 5) samples
    with torch.no_grad():
        models["weight"].mlp[2].bias.fill_(1.5)
    loss, _ = objective.loss(phase, models, batch, draws, 0)
    assert loss.item() == pytest.approx(math.exp(1.5) * g.mean().item() - 1.5, rel=1e-5)
    plain = loss_of(continuous(tiny_teacher(), tiny(), mode="training"), batch)
    assert loss_of(objective, batch).item() == pytest.approx(math.exp(1.5) * plain.item(), rel=1e-5)


def test_levels_are_log_normal_in_the_noise_ratio():
    objective = continuous(tiny_teacher(), tiny(), mean=-0.8, std=1.6, sigma_data=0.5)
    logs = (0.5 * objective.angles(Draws(0, torch.arange(4000)), CPU).tan()).log()
    assert logs.mean().item() == pytest.approx(-0.8, abs=0.1) and logs.std().item() == pytest.approx(1.6, abs=0.08)


# ---- MeanFlow ----


def mean_flow(teacher, network, **config) -> MeanFlowObjective:
    return MeanFlowObjective(MeanFlowConfig(**{"start": "network", **config}), network, None, teacher)


def test_the_exact_map_has_no_loss():
    """u = v - (t - r) du/dt for the mean velocity of an exact flow."""
    teacher, batch = gaussian_teacher(), batch_of(32)
    settings = {"mode": "distillation", "different": 0.8, "power": 0.0}
    exact = loss_of(mean_flow(teacher, ExactMap(teacher.model, teacher.network.oracle), **settings), batch)
    velocity = Exact(teacher.model, teacher.network.oracle)  # tells v, whatever r is
    instant = loss_of(mean_flow(teacher, velocity, **settings), batch)
    assert exact.item() < 1e-12 and instant.item() > 1e-3


def test_the_loss_is_its_formula():
    """With equal times it is flow matching; the adaptive weight divides by the error and a floor."""
    teacher, network, batch = tiny_teacher(), tiny(sizes=TOLD), small_batch()
    objective = mean_flow(teacher, network, different=0.0, drop_label=0.0, power=0.0)
    draws = Draws(0, batch.index, "student")
    r, t = objective.times(draws, CPU)
    assert torch.equal(r, t)
    eps = draws.normal("eps", (2, 4, 4)).double()
    x = objective.path(t).mix(batch.latents, eps)
    u = objective.mean_velocity(network, x, t, t, Condition(label=batch.labels), 1.0)
    error = (u - (eps - batch.latents)).square().sum((1, 2, 3))
    assert loss_of(objective, batch).item() == pytest.approx(error.mean().item(), rel=1e-8)
    weighted = mean_flow(teacher, network, different=0.0, drop_label=0.0, power=0.5, floor=0.2)
    assert loss_of(weighted, batch).item() == pytest.approx((error / (error + 0.2).sqrt()).mean().item(), rel=1e-8)


def test_the_target_holds_the_derivative_at_a_fixed_end():
    teacher, network, batch = tiny_teacher(), tiny(sizes=TOLD), small_batch()
    objective = mean_flow(teacher, network, different=1.0, drop_label=0.0, power=0.0)
    draws, h = Draws(0, batch.index, "student"), 1e-5
    r, t = objective.times(draws, CPU)
    eps, condition = draws.normal("eps", (2, 4, 4)).double(), Condition(label=batch.labels)

    def u(t):
        return objective.mean_velocity(network, objective.path(t).mix(batch.latents, eps), r, t, condition, 1.0)

    change = (u(t + h) - u(t - h)) / (2 * h)  # along the line through the picture and its noise
    target = eps - batch.latents - (t - r).reshape(-1, 1, 1, 1) * change
    expected = (u(t) - target).square().sum((1, 2, 3)).mean()
    assert loss_of(objective, batch).item() == pytest.approx(expected.item(), rel=1e-5)
    loss_of(objective, batch).backward()
    mine = network.head.weight.grad.clone()
    network.zero_grad()
    (u(t) - target.detach()).square().sum((1, 2, 3)).mean().backward()
    torch.testing.assert_close(mine, network.head.weight.grad, rtol=1e-4, atol=1e-6 * mine.abs().max().item())


def test_times():
    objective = mean_flow(tiny_teacher(), tiny(sizes=TOLD), mean=-0.4, different=0.25)
    r, t = objective.times(Draws(0, torch.arange(4000)), CPU)
    assert (r <= t).all() and (r < t).float().mean().item() == pytest.approx(0.25, abs=0.03)
    apart = r < t
    logits = torch.cat([r[apart], t[apart]]).logit()  # the two together are a pair of independent draws
    assert logits.mean().item() == pytest.approx(-0.4, abs=0.1) and logits.std().item() == pytest.approx(1.0, abs=0.08)


def test_guidance_inside():
    """v <- omega v + kappa u(c) + (1 - omega - kappa) u(null); samples without a condition keep v."""
    teacher = exact_teacher()
    network = ExactMap(teacher.model, teacher.network.oracle)
    network.forward = lambda x, time, condition, context=None: teacher.network(x, time, condition)  # told r = t: v itself
    objective = mean_flow(teacher, network, omega=1.0, kappa=0.5)
    batch = batch_of(4)
    t = torch.tensor([0.2, 0.5, 0.7, 0.9]).double()
    eps = batch_of(4, 20).latents
    x, condition = objective.path(t).mix(batch.latents, eps), Condition(label=batch.labels)
    null = torch.tensor([False, False, True, False])
    got = objective.velocity(models_of(objective), batch.latents, eps, x, t, condition, 1.0, null)
    level = objective.path(t)
    with_c, without = (
        objective.teacher_predict(models_of(objective), x, level, c).flow(objective.path) for c in (condition, condition.null())
    )
    expected = (eps - batch.latents) + 0.5 * with_c - 0.5 * without
    torch.testing.assert_close(got[~null], expected[~null])
    torch.testing.assert_close(got[null], (eps - batch.latents)[null])
    assert (got - (eps - batch.latents))[~null].abs().max() > 0.01


def test_conditions_are_dropped_row_by_row():
    tokens, mask = torch.ones(3, 2, 4), torch.ones(3, 2, dtype=torch.bool)
    condition = Condition(label=torch.tensor([0, 1, 2]), tokens=tokens, mask=mask)
    mixed = select(torch.tensor([True, False, True]), condition.null(), condition)
    assert mixed.label.tolist() == [-1, 1, -1] and mixed.mask.any(1).tolist() == [False, True, False]
    assert with_target_time(mixed, torch.zeros(3)).extra["target_time"].tolist() == [0, 0, 0]


def test_what_it_needs():
    with pytest.raises(ValueError, match=r"set network.scalars to \[target_time\]"):
        mean_flow(tiny_teacher(), build({"type": "dit", **SIZES}))
    with pytest.raises(ValueError, match="is for rectified flows"):
        mean_flow(tiny_teacher("dit", VP), build({"type": "dit", **TOLD}))


def test_an_exported_mean_flow_is_told_where_its_steps_end(tmp_path):
    teacher = tiny_teacher()
    network = randomise(build({"type": "dit", **TOLD}), 3)
    objective = mean_flow(teacher, network, steps=2)
    objective.export({"student": network.eval()}, tmp_path / "export")
    generator = Generator.from_pretrained(tmp_path / "export", device="cpu", dtype="float32")
    assert (generator.config.defaults.sampler, generator.config.defaults.num_inference_steps) == ("flow_map", 2)
    noise, labels = small_batch(2).latents.float(), [0, 2]
    made = generator(class_labels=labels, latents=noise, output_type="latent", progress=False).images
    drawn = objective.draw(network, noise, Condition(label=torch.tensor(labels)))
    torch.testing.assert_close(torch.as_tensor(made), drawn, atol=1e-5, rtol=1e-5)
    half, condition = torch.full((2,), 0.5), Condition(label=torch.tensor(labels))
    u = objective.mean_velocity(network, noise, half, torch.ones(2), condition, 1.0)
    end = noise - 0.5 * u
    last = end - 0.5 * objective.mean_velocity(network, end, 0 * half, half, condition, 1.0)
    torch.testing.assert_close(drawn, last, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="the sampler flow_map gives it"):
        generator(class_labels=labels, latents=noise, output_type="latent", progress=False, sampler="euler")


def test_mean_flow_guides_itself_between_two_times_only():
    """Outside of them, and for samples without a condition, v is the picture's own."""
    teacher, network, batch = tiny_teacher(), tiny(sizes=TOLD), small_batch(40)
    objective = mean_flow(teacher, network, different=0.0, omega=0.2, kappa=0.9, guided=(0.3, 0.75), drop_label=0.25)
    draws = Draws(0, batch.index, "student")
    condition, null = objective.dropped_condition(batch, draws, CPU)
    assert torch.equal(null, condition.label < 0) and 3 < null.sum() < 20
    _, t = objective.times(draws, CPU)
    eps = draws.normal("eps", (2, 4, 4)).double()
    x = objective.path(t).mix(batch.latents, eps)
    v = objective.velocity(models_of(objective), batch.latents, eps, x, t, condition, 1.0, null)
    own = (v == eps - batch.latents).flatten(1).all(1)
    inside = (t >= 0.3) & (t <= 0.75)
    assert inside.any() and not inside.all() and torch.equal(own, null | ~inside)
    row = int((inside & ~null).nonzero()[0])
    one = slice(row, row + 1)

    def u(condition):
        return objective.mean_velocity(network, x[one], t[one], t[one], condition, 1.0)

    told, blank = (u(Condition(label=label)) for label in (batch.labels[one], torch.tensor([-1])))
    expected = 0.2 * (eps - batch.latents)[one] + 0.9 * told + (1 - 0.2 - 0.9) * blank
    torch.testing.assert_close(v[one], expected)


def test_a_lora_has_a_derivative_like_any_student():
    """Forward mode through its low-rank weights, against the difference."""
    for kind in ("dit", "uvit"):
        teacher = tiny_teacher(kind)
        config = {"warmup": 0, "adaptive": False, "lora": {"rank": 2}}
        made = [ContinuousConsistencyConfig(**config, derivative=how) for how in ("forward", "difference")]
        exact, near = (ContinuousConsistencyObjective(one, nn.Identity(), None, teacher) for one in made)
        near.roles["student"] = exact.roles["student"]
        randomise(exact.roles["student"].network.up, 0)
        batch = small_batch()
        batch.latents = batch.latents.float()
        a, b = (tangent(one, batch)[-1] for one in (exact, near))
        assert a.abs().max() > 0.1
        torch.testing.assert_close(a, b, atol=2e-2, rtol=2e-2)
        loss_of(exact, batch).backward()
        assert any(p.grad.abs().sum() > 0 for p in exact.roles["student"].network.parameters())
