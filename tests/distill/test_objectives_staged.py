"""Methods that solve for the step a student should take: progressive distillation, TRACT, multistep consistency models.

`Jump` is the exact answer of each: the student that does in one step what the teacher's DDIM does in many. Its loss must be
zero, and that of a student that aims beside it must not.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from distill.losses.levels import draw_index
from distill.losses.solver_steps import adjusted_ddim, ddim
from distill.objectives import make_objective
from distill.objectives.multistep_consistency import MultistepConsistencyConfig, MultistepConsistencyObjective
from distill.objectives.progressive_distillation import ProgressiveConfig, ProgressiveObjective
from distill.objectives.tract import TractConfig, TractObjective
from distill.types import Draws
from gen.nn.registry import build
from samplers.analytic import Mixture
from samplers.denoiser import Condition, Context
from samplers.guidance.cfg import ClassifierFree
from samplers.registry import get_grid
from tests.distill.students import FLOW, SIZES, STUDENT, VP, Jump, batch_of, exact_teacher, loss_of, tiny_teacher
from tests.gen.conftest import randomise

BOTH = pytest.mark.parametrize(("path", "kind"), [(FLOW, "flow"), (FLOW, "x0"), (VP, "v"), (VP, "eps")])


def grid(teacher, steps):
    return get_grid("uniform", teacher.model.path.build(), steps)


def build_one(objective, config, teacher, network):
    return objective(config, network, None, teacher)


# ---- progressive distillation ----


@BOTH
def test_progressive_target_is_two_steps_of_the_teacher_in_one(path, kind):
    teacher = exact_teacher(path, kind)
    config = ProgressiveConfig(teacher={"steps": 8}, steps=4, start="network")

    def loss(length: int, offset: int = 0):
        student = Jump(teacher.model, teacher.network.oracle, grid(teacher, 8), length, offset)
        return loss_of(ProgressiveObjective(config, student, None, teacher), batch_of(6)).item()

    assert loss(2) < 1e-20
    assert loss(1) > 1e-4  # the teacher's own clean image at t, which a wrong target is
    assert loss(2, 1) > 1e-4  # the second of the two steps left out


def test_progressive_takes_the_guidance_into_the_first_stage():
    teacher = exact_teacher(VP, "v")
    config = ProgressiveConfig(teacher={"steps": 4, "guidance_scale": 3.0}, steps=2, start="network")
    for scale, zero in ((3.0, True), (1.0, False)):
        student = Jump(teacher.model, ClassifierFree(teacher.network.oracle, scale), grid(teacher, 4), 2)
        assert (loss_of(ProgressiveObjective(config, student, None, teacher), batch_of(6)).item() < 1e-18) == zero


def test_progressive_weight_is_the_truncated_snr():
    teacher = exact_teacher(VP, "v")
    config = ProgressiveConfig(teacher={"steps": 4}, steps=2, start="network")
    objective = ProgressiveObjective(config, copy.deepcopy(teacher.network), None, teacher)
    batch = batch_of(16)
    i = draw_index(Draws(0, batch.index, "student"), "step", 2, torch.device("cpu"))
    assert set(i.tolist()) == {0, 1}
    student = Jump(teacher.model, teacher.network.oracle, grid(teacher, 4), 2)

    class Off(torch.nn.Module):  # x0 off by 0.1 everywhere: every error is 0.01
        def forward(self, x, time, condition, context):
            level = teacher.network.level(time)
            return student(x, time, condition) - 0.1 / level.sigma.reshape(-1, 1, 1, 1)

    objective = ProgressiveObjective(config, Off(), None, teacher)
    level = objective.levels[i + 1]
    expected = 0.01 * torch.maximum((level.alpha / level.sigma) ** 2, torch.ones(16).double()).mean()
    torch.testing.assert_close(loss_of(objective, batch), expected, atol=1e-10, rtol=1e-8)


def tiny_progressive(**changes):
    teacher = tiny_teacher(path=VP, prediction="v")
    config = ProgressiveConfig(
        **{"teacher": {"steps": 8}, "steps": 1, "stage_steps": 3, "last_stage_steps": 5, "stage_ema": 0.5, **changes}
    )
    return ProgressiveObjective(config, build({"type": "dit", **SIZES}), None, teacher)


def test_stages_are_a_function_of_the_step():
    objective = tiny_progressive()
    assert objective.config.counts == [4, 2, 1]
    assert [objective.stage(step) for step in (0, 2, 3, 7, 8, 12, 13, 999)] == [0, 0, 1, 1, 2, 2, 2, 2]


def test_a_stage_ends_with_its_average_as_the_next_teacher():
    objective = tiny_progressive()
    student, average, stage = (objective.roles[role].network for role in ("student", "average", "stage"))
    start, expected = student.head.bias.detach().clone(), student.head.bias.detach().clone()
    for step in range(3):
        with torch.no_grad():
            student.head.bias += 1
        live = student.head.bias.detach().clone()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * live
        assert objective.defaults().num_inference_steps == 4
        torch.testing.assert_close(stage.head.bias, start)  # until the end the old teacher stays
        objective.after_step(step)
    for network in (student, average, stage):
        torch.testing.assert_close(network.head.bias.detach(), expected)
    assert objective.defaults().num_inference_steps == 2  # what a run that stops now exports
    assert not torch.equal(live, expected)


def test_a_stage_begins_a_new_average():
    objective = tiny_progressive()
    student, average = (objective.roles[role].network.head for role in ("student", "average"))
    for step in range(3):
        objective.after_step(step)
    before = average.bias.detach().clone()
    with torch.no_grad():
        student.bias += 1
    objective.after_step(3)
    torch.testing.assert_close(average.bias, before + 0.9)  # decay (1 + 0) / (10 + 0), not that of a fourth step


def test_later_stages_are_taught_by_the_stage_before():
    objective = tiny_progressive(teacher={"steps": 8, "guidance_scale": 4.0})
    batch = batch_of(4, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    first, later = loss_of(objective, batch, 0), loss_of(objective, batch, 4)
    randomise(objective.roles["teacher"].network, 8)
    assert loss_of(objective, batch, 4) == later and loss_of(objective, batch, 0) != first
    randomise(objective.roles["stage"].network, 9)
    assert loss_of(objective, batch, 4) != later


def test_progressive_refuses_what_cannot_be_halved():
    with pytest.raises(ValueError, match="cannot be halved to steps 4"):
        ProgressiveConfig(teacher={"steps": 12}, steps=4)
    with pytest.raises(ValueError, match="does not halve"):
        tiny_progressive(schedule="karras")


# ---- TRACT ----


@BOTH
@pytest.mark.parametrize("length", [2, 4])
def test_tract_target_is_the_teachers_way_to_the_start_of_the_segment(path, kind, length):
    """With two steps per segment it is progressive distillation's."""
    teacher = exact_teacher(path, kind)
    config = TractConfig(teacher={"steps": 8}, steps=8 // length, counts=(8 // length,), start="network")

    def loss(length: int, offset: int = 0):
        student = Jump(teacher.model, teacher.network.oracle, grid(teacher, 8), length, offset)
        return loss_of(TractObjective(config, student, None, teacher), batch_of(6)).item()

    assert loss(length) < 1e-18
    assert loss(8) > 1e-4  # a consistency model's, which goes to the data
    assert loss(1) > 1e-4


def test_tract_goes_on_with_its_averaged_self():
    teacher = tiny_teacher()
    config = TractConfig(teacher={"steps": 4}, steps=1, counts=(1,), target_ema=0.5)
    objective = TractObjective(config, build({"type": "dit", **SIZES}), None, teacher)
    batch = batch_of(6, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    before = loss_of(objective, batch)
    randomise(objective.roles["target"].network, 3)
    assert loss_of(objective, batch) != before
    loss_of(objective, batch).backward()
    assert all(p.grad is None for role in ("target", "teacher", "stage") for p in objective.roles[role].network.parameters())


def test_tract_counts_must_divide():
    with pytest.raises(ValueError, match=r"must fall from teacher\.steps 8"):
        TractConfig(teacher={"steps": 8}, steps=3, counts=(3,))
    with pytest.raises(ValueError, match="counts end with 2, but steps is 4"):
        TractConfig(teacher={"steps": 8}, steps=4, counts=(4, 2))


# ---- multistep consistency models ----


def multistep(model, network, /, **changes):
    options = {"start": "network", "distance": "l2", "variance_scale": 0.0, **changes}
    return MultistepConsistencyObjective(MultistepConsistencyConfig(**options), network, None, model)


@BOTH
@pytest.mark.parametrize("segments", [1, 2, 8])
def test_multistep_target_is_the_teachers_way_to_the_start_of_the_segment(path, kind, segments):
    teacher = exact_teacher(path, kind)

    def loss(length: int, **changes):
        student = Jump(teacher.model, teacher.network.oracle, grid(teacher, 8), length)
        return loss_of(multistep(teacher, student, steps=segments, substeps=(8, 8), **changes), batch_of(6)).item()

    assert loss(8 // segments) < 1e-18
    if segments == 1:
        assert loss(4) > 1e-4
    else:
        assert loss(8) > 1e-4
    assert loss(8 // segments, variance_scale=0.75) > 1e-6 or segments == 8  # aDDIM leads elsewhere: the variance has effect


def test_one_substep_per_segment_is_the_diffusion_loss():
    teacher = exact_teacher(VP, "v")
    student = exact_teacher(VP, "v", gaussian=True).network
    student.config = teacher.network.config
    objective = multistep(teacher, student, steps=4, substeps=(4, 4), form="training", weight="uniform")
    batch = batch_of(12)
    draws = Draws(0, batch.index, "student")
    t = objective.levels[draw_index(draws, "segment", 4, torch.device("cpu")) + 1]
    x0, eps = batch.latents, draws.normal("eps", batch.latents.shape[1:])
    x = t.alpha.reshape(-1, 1, 1, 1) * x0 + t.sigma.reshape(-1, 1, 1, 1) * eps
    expected = (student.oracle(x, t, Condition(), Context()).x0 - x0).square().mean()
    torch.testing.assert_close(loss_of(objective, batch), expected, atol=1e-10, rtol=1e-10)


def test_one_segment_in_training_form_is_consistency_training():
    """L = w(t) d(f(alpha_t x + sigma_t eps, t), f(alpha_s x + sigma_s eps, s)) (2303.01469, equation 10); f(x, 0) = x."""
    teacher = exact_teacher(FLOW, "x0")
    student = exact_teacher(FLOW, "x0", gaussian=True).network
    student.config = teacher.network.config
    objective = multistep(teacher, student, steps=1, substeps=(6, 6), form="training", distance="pseudo_huber", huber_c=0.3)
    batch = batch_of(20)
    draws = Draws(0, batch.index, "student")
    n = 1 + draw_index(draws, "substep", 6, torch.device("cpu")).double()
    assert n.min() == 1 and n.max() == 6
    x0, eps = batch.latents, draws.normal("eps", batch.latents.shape[1:]).double()

    def f(clock):
        level, u = objective.path(clock), clock.reshape(-1, 1, 1, 1)
        x = (1 - u) * x0 + u * eps
        return torch.where(u == 0, x, student.oracle(x, level, Condition(), Context()).x0)

    t, s = n / 6, (n - 1) / 6
    square = (f(t) - f(s)).square().flatten(1).sum(1)
    weight = ((1 - t) / t) ** 2 + 1  # of a squared error: inside of the norm
    expected = ((weight * square + 0.09).sqrt() - 0.3).mean()
    torch.testing.assert_close(loss_of(objective, batch), expected, atol=1e-7, rtol=1e-7)  # eps is float32 there


def test_the_last_step_adds_no_noise():
    """One substep to clean data: the target is the teacher's image itself, whatever its variance."""
    teacher = exact_teacher(FLOW, "flow")
    objective = multistep(teacher, copy.deepcopy(teacher.network), steps=1, substeps=(1, 1), variance_scale=0.75)
    assert loss_of(objective, batch_of(6)).item() < 1e-20


def test_variance_is_of_the_unguided_teacher():
    teacher = exact_teacher(VP, "v")
    objective = multistep(teacher, copy.deepcopy(teacher.network), variance_scale=0.75, teacher={"guidance_scale": 5.0})
    batch = batch_of(4)
    t = objective.path(torch.full((4,), 0.6).double())
    condition = Condition(label=batch.labels)
    models = {name: role.network for name, role in objective.roles.items()}
    x, variance = objective.endpoint(models, batch.latents, batch_of(4, 9).latents, t, condition, 5.0)
    plain = teacher.network.oracle(batch_of(4, 9).latents, t, condition, Context()).x0
    torch.testing.assert_close(variance, 0.75 * (plain - batch.latents).square().flatten(1).mean(1), atol=1e-12, rtol=0)
    assert (x - plain).abs().max() > 1e-2  # the endpoint itself is guided


def test_adjusted_ddim_keeps_the_spread_that_ddim_loses():
    """A cloud of 24 points in 64 dimensions: |z_s|^2 after one long step from the exact marginal, against its expectation.

    One Gaussian would not do: there x0 is parallel to eps, and the adjustment is too much.
    """
    path = exact_teacher(VP).model.path.build()
    g = torch.Generator().manual_seed(0)
    points = torch.randn((24, 4, 4, 4), generator=g, dtype=torch.float64)
    cloud = Mixture(path, points, torch.full_like(points, 1e-3), torch.full((24,), 1 / 24, dtype=torch.float64))
    t, s = path(0.8), path(0.5)
    x0 = cloud.sample(1000, path(0.0), g)
    z = t.alpha * x0 + t.sigma * torch.randn(x0.shape, generator=g, dtype=torch.float64)
    said = cloud(z, t, Condition(), Context()).x0
    many = [type(t)(*(torch.full((1000,), v, dtype=torch.float64) for v in (l.t, l.alpha, l.sigma))) for l in (t, s)]
    expected = s.alpha**2 * points.square().sum() / 24 + s.sigma**2 * 64
    variance = (said - x0).square().flatten(1).mean(1)
    plain = ddim(said, z, *many).square().sum() / 1000 / expected
    adjusted = adjusted_ddim(said, z, *many, variance).square().sum() / 1000 / expected
    assert plain < 0.92
    assert (adjusted - 1).abs() < 0.01


def test_substeps_grow_exponentially():
    objective = multistep(tiny_teacher(), tiny_teacher().network, steps=4, substeps=(64, 1280), anneal=1000)
    counts = [objective.substeps(step) for step in range(0, 1200, 50)]
    assert counts[0] == 16 and counts[-1] == counts[20] == 320 and counts == sorted(counts)
    assert objective.substeps(500) == round(math.sqrt(64 * 1280) / 4)


def test_a_multistep_student_is_its_own_teacher_without_gradient():
    teacher = tiny_teacher()
    objective = multistep(teacher, copy.deepcopy(teacher.network).requires_grad_(True), steps=2, substeps=(8, 8))
    batch = batch_of(6, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    student = objective.roles["student"].network
    calls = []
    student.register_forward_hook(lambda module, args, out: calls.append(out.requires_grad))
    loss_of(objective, batch).backward()
    assert sorted(calls) == [False, True]


def test_names_are_registered():
    teacher = {"model": "nowhere"}
    for name in ("progressive", "tract", "multistep_consistency"):
        with pytest.raises(ValueError, match="does not exist"):
            make_objective({"type": name, "teacher": teacher, "steps": 4}, torch.nn.Identity())
    assert STUDENT.role == "student"


@pytest.mark.parametrize("distance", ["l2", "pseudo_huber", "huber"])
def test_the_default_weight_does_not_explode_near_clean_data(distance):
    """SNR + 1 is that of a squared error of x0, which is then one of v: by what the network says, no norm has a slope over
    1."""
    teacher = tiny_teacher("dit", VP, "v")
    config = MultistepConsistencyConfig(form="training", steps=4, distance=distance, huber_c=1e-4)
    objective = MultistepConsistencyObjective(config, nn.Identity(), None, teacher)
    assert config.weight == "snr_plus_one"
    x0, raw = (torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(i)).double() for i in (0, 1))
    level = objective.path(torch.tensor([1 / 1280, 1 / 64, 0.1, 0.5, 0.9, 0.99]).double())
    raw.requires_grad_()
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in (level.alpha, level.sigma))
    found = alpha * (alpha * x0 + sigma * x0.flip(0)) - sigma * raw
    value, _ = objective.error(found, x0, level)
    (slope,) = torch.autograd.grad(value, raw)
    each = 6 * slope.flatten(1).norm(dim=1)
    v = (alpha * (alpha * x0 + sigma * x0.flip(0)) - x0) / sigma
    if distance == "l2":  # then it is the mean squared error of v
        assert value.item() == pytest.approx((raw - v).square().mean().item(), rel=1e-9)
    else:
        assert each.max() <= 1 + 1e-9 and each.min() > 0.1
