"""Guidance distillation, latent consistency and phased consistency: the exact student has no loss, one that errs has."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from distill.networks.discriminator import TokenHeads, block_features, hinge_discriminator
from distill.objectives.guidance_distillation import GuidanceConfig, GuidanceObjective
from distill.objectives.latent_consistency import LatentConsistencyConfig, LatentConsistencyObjective
from distill.objectives.phased_consistency import PhasedConsistencyConfig, PhasedConsistencyObjective
from distill.objectives.trajectory_consistency import TrajectoryConsistencyConfig, TrajectoryConsistencyObjective
from distill.parallel.shards import detached_weights
from distill.types import Draws, Phase
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from samplers.guidance.cfg import ClassifierFree
from samplers.path import NoiseLevel
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from samplers.solvers.consistency import BoundaryScaled
from tests.distill.students import FLOW, SIZES, STUDENT, VP, Jump, batch_of, exact_teacher, loss_of, tiny_teacher

BOTH = pytest.mark.parametrize(("path", "kind"), [(FLOW, "x0"), (FLOW, "flow"), (VP, "eps"), (VP, "v")])
CPU = torch.device("cpu")


class Told(nn.Module):
    """The guided teacher as one network that reads the scale; `error` is added to the scale it was told."""

    def __init__(self, teacher, error: float = 0.0, fixed: float | None = None):
        super().__init__()
        self.teacher, self.error, self.fixed = teacher, error, fixed
        self.config = type("Config", (), {"scalars": ("guidance",) if fixed is None else ()})()

    def forward(self, x, time, condition, context):
        assert ("guidance" in condition.extra) == (self.fixed is None)
        level, rows = self.teacher.network.level(time), []
        for i in range(len(x)):
            scale = (self.fixed if self.fixed is not None else condition.extra["guidance"][i].item()) + self.error
            one = NoiseLevel(*(v[i].item() for v in (level.t, level.alpha, level.sigma)))
            label = Condition(label=condition.label[i : i + 1])
            rows.append(ClassifierFree(self.teacher.network.oracle, scale)(x[i : i + 1], one, label, Context()).raw)
        return torch.cat(rows)


# ---- guidance distillation ----


@pytest.mark.parametrize("time", ["uniform", "logit_normal"])
@BOTH
def test_guidance_is_distilled_at_the_scale_that_the_student_is_told(path, kind, time):
    teacher = exact_teacher(path, kind)
    config = GuidanceConfig(teacher={"guidance_scale": (1.5, 6.0)}, embed_guidance=True, start="network", time={"type": time})

    def loss(error):
        return loss_of(GuidanceObjective(config, Told(teacher, error), None, teacher), batch_of(6)).item()

    assert loss(0.0) < 1e-10  # the scales are float32 draws
    assert loss(-1.0) > 1e-5  # guidance counted from 0 instead of 1: w of the papers for our scale


def test_a_fixed_scale_needs_no_embedding():
    teacher = exact_teacher(VP, "v")
    config = GuidanceConfig(teacher={"guidance_scale": 4.0}, start="network")
    objective = GuidanceObjective(config, Told(teacher, fixed=4.0), None, teacher)
    assert loss_of(objective, batch_of(6)).item() < 1e-20
    defaults = objective.defaults()
    assert (defaults.guidance, defaults.guidance_scale) == ("cfg", 1.0)
    assert defaults.num_inference_steps == teacher.model.defaults.num_inference_steps == 20
    with pytest.raises(ValueError, match="needs embed_guidance"):
        GuidanceConfig(teacher={"guidance_scale": (1.0, 4.0)})
    with pytest.raises(ValueError, match="which is none"):
        GuidanceConfig()


def test_levels_are_never_clean_data():
    class Zero(Draws):
        def uniform(self, purpose, shape=(), device=None):
            return torch.zeros(len(self.index), *shape)

    teacher = exact_teacher(VP, "v")
    objective = GuidanceObjective(
        GuidanceConfig(teacher={"guidance_scale": 4.0}, start="network"), Told(teacher, fixed=4.0), None, teacher
    )
    assert objective.draw_level(Zero(0, torch.arange(2)), CPU).sigma.min() > 0


# ---- trajectory consistency ----


@BOTH
def test_trajectory_loss_is_between_two_ways_to_the_same_end(path, kind):
    """By the samplers, one sample at a time: the student is a Gaussian's denoiser, the teacher a guided mixture's."""
    teacher, student = exact_teacher(path, kind), exact_teacher(path, kind, gaussian=True).network
    student.config = teacher.network.config
    config = TrajectoryConsistencyConfig(
        teacher={"steps": 6, "guidance_scale": 3.0}, start="network", distance="l2", target_ema=None, drop_label=0.0
    )
    objective = TrajectoryConsistencyObjective(config, student, None, teacher)
    batch = batch_of(12)
    draws = Draws(0, batch.index, "student")
    i, end = objective.indices(draws, 6, CPU)
    assert (i == end).any() and (i > end).any() and (end == 0).any()
    grid = get_grid("uniform", objective.path, 6)[::-1]
    eps, euler, errors = draws.normal("eps", (2, 2, 2)), get_solver("ddim"), []
    field = ClassifierFree(teacher.network.oracle, 3.0)
    for row, (s, e) in enumerate(zip(i.tolist(), end.tolist(), strict=True)):
        condition = Condition(label=batch.labels[row : row + 1])
        x = grid[s + 1].mix(batch.latents[row : row + 1], eps[row : row + 1])
        mine = sample(student.oracle, euler, x, [grid[s + 1], grid[e]], condition)
        other = sample(field, euler, x, [grid[s + 1], grid[s]], condition)
        other = other if s == e else sample(student.oracle, euler, other, [grid[s], grid[e]], condition)
        errors.append((mine - other).square().mean())
    torch.testing.assert_close(loss_of(objective, batch), torch.stack(errors).mean(), atol=1e-10, rtol=1e-8)


def test_trajectory_ends_are_uniform_within_reach():
    teacher = exact_teacher()
    config = TrajectoryConsistencyConfig(teacher={"steps": 10}, start="network", reach=0.4, start_at=0.8, target_ema=None)
    objective = TrajectoryConsistencyObjective(config, copy.deepcopy(teacher.network), None, teacher)
    i, end = objective.indices(Draws(0, torch.arange(4000), "student"), 10, CPU)
    assert set(i.tolist()) == set(range(8))
    assert set((i - end)[i >= 4].tolist()) == {0, 1, 2, 3} and set(end[i == 1].tolist()) == {0, 1}
    share = torch.bincount((i - end)[i >= 4]) / (i >= 4).sum()
    torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.04, rtol=0)
    assert objective.defaults().sampler == "tcd" and objective.defaults().sampler_options == {"eta": 0.3}


# ---- latent consistency ----


def lcm(model, network, **changes):
    options = {"start": "network", "distance": "l2", "target_ema": None, "teacher": {"steps": 8}, **changes}
    return LatentConsistencyObjective(LatentConsistencyConfig(**options), network, None, model)


def test_boundary_scalings_are_those_of_the_sampler():
    teacher = exact_teacher(VP, "eps")
    objective = lcm(teacher, copy.deepcopy(teacher.network))
    for t in (1 / 64, 2 / 64, 0.3, 1.0):
        level = objective.path(t)
        many = NoiseLevel(*(torch.full((2,), v, dtype=torch.float64) for v in (level.t, level.alpha, level.sigma)))
        x = batch_of(2).latents
        expected = BoundaryScaled(teacher.network.oracle)(x, level, Condition(), Context()).x0
        got = objective.consistent(teacher.network.oracle(x, many, Condition(), Context()))
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@BOTH
def test_clean_data_stays_as_it_is(path, kind):
    """The boundary condition, exactly, even where the network says nothing finite."""
    teacher = exact_teacher(path, kind)
    objective = lcm(teacher, copy.deepcopy(teacher.network))
    x, clean = batch_of(3).latents, objective.teacher_levels[torch.zeros(3, dtype=torch.int64)]
    prediction = objective.teacher.denoiser(teacher.network)(x, clean, Condition(), Context())
    assert torch.equal(objective.consistent(prediction.with_raw(prediction.raw * float("nan"))), x)
    far = objective.boundary(objective.path(torch.tensor([0.25, 1.0]).double()))
    assert far[0].max() < (3e-3 if path is VP else 1e-6) and (far[1] - 1).abs().max() < 2e-3


@BOTH
def test_latent_consistency_target_is_the_guided_teachers_way_to_the_data(path, kind):
    teacher = exact_teacher(path, kind)
    path_of = teacher.model.path.build()
    scaled = lcm(teacher, copy.deepcopy(teacher.network))

    def boundary(level):
        many = NoiseLevel(*(torch.tensor([v], dtype=torch.float64) for v in (level.t, level.alpha, level.sigma)))
        return tuple(v.item() for v in scaled.boundary(many))

    def loss(scale: float, length: int = 8, with_boundary=boundary):
        field = ClassifierFree(teacher.network.oracle, scale)
        student = Jump(teacher.model, field, get_grid("uniform", path_of, 8), length, scaled=with_boundary)
        return loss_of(lcm(teacher, student, teacher={"steps": 8, "guidance_scale": 3.0}), batch_of(6)).item()

    assert loss(3.0) < 1e-16
    assert loss(2.0) > 1e-5  # another scale
    assert loss(3.0, 4) > 1e-5  # another end


def test_latent_consistency_has_its_target_made_by_the_average():
    teacher = tiny_teacher()
    objective = lcm(teacher, build({"type": "dit", **SIZES}), start="teacher", target_ema=0.95)
    batch = batch_of(4, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    before = loss_of(objective, batch)
    with torch.no_grad():
        objective.roles["target"].network.head.bias += 1
    assert loss_of(objective, batch) != before
    assert objective.defaults().sampler == "lcm"


# ---- phased consistency ----


def pcm(model, network, **changes):
    options = {"start": "network", "distance": "l2", "adversarial_weight": 0.0, "teacher": {"steps": 8}, "steps": 4, **changes}
    return PhasedConsistencyObjective(PhasedConsistencyConfig(**options), network, None, model)


@BOTH
@pytest.mark.parametrize("phases", [1, 4, 8])
def test_phased_target_is_the_teachers_way_to_the_end_of_the_phase(path, kind, phases):
    """One phase is a consistency model; as many as the teacher has steps, regression onto its steps."""
    teacher = exact_teacher(path, kind)
    field = ClassifierFree(teacher.network.oracle, 3.0)

    def loss(length: int, offset: int = 0):
        student = Jump(teacher.model, field, get_grid("uniform", teacher.model.path.build(), 8), length, offset)
        options = {"teacher": {"steps": 8, "guidance_scale": 3.0}, "steps": phases}
        return loss_of(pcm(teacher, student, **options), batch_of(6)).item()

    assert loss(8 // phases) < 1e-18
    assert loss(4 if phases == 1 else 8) > 1e-5


def test_renoising_leads_to_the_marginal_of_the_level():
    teacher = exact_teacher(VP, "v")
    objective = pcm(teacher, copy.deepcopy(teacher.network))
    ladder, start, index = objective.teacher_levels, torch.tensor([0, 2, 4, 6]), torch.arange(4)
    draws = Draws(0, index, "student")
    level = ladder[objective.judged(draws, start)]
    zero = objective.noised(torch.zeros(4, 2, 2, 2).double(), draws, "fake", ladder, start, level).x
    ratio = (objective.noised(torch.ones(4, 2, 2, 2).double(), draws, "fake", ladder, start, level).x - zero).mean((1, 2, 3))
    spread = (zero / draws.normal("fake", (2, 2, 2))).mean((1, 2, 3))
    torch.testing.assert_close(ratio * ladder[start].alpha, level.alpha, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close((ratio * ladder[start].sigma) ** 2 + spread**2, level.sigma**2, atol=1e-6, rtol=1e-6)
    many = objective.judged(Draws(0, torch.arange(400), "student"), torch.full((400,), 2))
    assert set(many.tolist()) == {3, 4}  # the phase's own levels, its end excepted


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_each_network_learns_in_its_own_phase_only(kind):
    teacher = tiny_teacher(kind, VP, "v")
    network = build({"type": kind, **SIZES}).requires_grad_(True)
    objective = pcm(teacher, network, start="teacher", adversarial_weight=0.5)
    batch = batch_of(4, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    models = {name: role.network for name, role in objective.roles.items()}
    judge = models["discriminator"]
    assert [phase.role for phase in objective.phases(0)] == ["student", "discriminator"]

    loss, logged = objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)
    loss.backward()
    mine = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    assert mine and all(p.grad is None for p in judge.parameters())
    network.zero_grad()
    plain = pcm(teacher, network, start="network")
    (loss_plain := loss_of(plain, batch)).backward()
    torch.testing.assert_close(loss - 0.5 * logged["adversarial"], loss_plain)
    without = [p.grad for p in network.parameters() if p.grad is not None]
    assert any((a - b).abs().max() > 1e-6 for a, b in zip(mine, without, strict=True))  # the judge's gradient arrives

    network.zero_grad(set_to_none=True)
    phase = Phase("discriminator", "discriminator")
    objective.loss(phase, models, batch, Draws(0, batch.index, "discriminator"), 0)[0].backward()
    assert all(p.grad is not None for p in judge.parameters())
    assert all(p.grad is None for name in ("student", "teacher") for p in models[name].parameters())


def test_the_judge_learns_to_tell_and_the_hinge_is_its_formula():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.5, 0.0])
    assert hinge_discriminator(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1.5 + 1) / 3)
    teacher = tiny_teacher()
    objective = pcm(teacher, build({"type": "dit", **SIZES}), start="teacher")
    denoiser = objective.teacher.denoiser(teacher.network)
    level = objective.path(torch.full((6,), 0.3))
    x = batch_of(6, shape=(2, 4, 4)).latents.float()
    condition = Condition(label=torch.zeros(6, dtype=torch.int64))
    features = [block_features(denoiser, v, level, condition, (0, 2)) for v in (x, 0.5 * x + 0.5)]
    assert [f.shape for f in features[0]] == [(6, 4, 16)] * 2
    heads = TokenHeads(16, 2)
    optimizer = torch.optim.Adam(heads.parameters(), lr=1e-2)
    values = []
    for _ in range(60):
        value = hinge_discriminator(heads(features[0]), heads(features[1]))
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[-1] < 0.5 * values[0]
    torch.testing.assert_close(detached_weights(heads)(features[0]), heads(features[0]))


def test_features_need_blocks():
    teacher = tiny_teacher()
    objective = pcm(teacher, build({"type": "dit", **SIZES}), start="teacher")
    x, level = torch.zeros(1, 2, 4, 4), objective.path(torch.tensor([0.3]))
    with pytest.raises(ValueError, match="reads block 3, but the network has 3"):
        block_features(objective.teacher.denoiser(teacher.network), x, level, Condition(), (3,))
    exact = exact_teacher()
    with pytest.raises(ValueError, match="this network has none"):
        block_features(objective.teacher.denoiser(exact.network), torch.zeros(1, 2, 2, 2).double(), level, Condition(), (0,))


def test_phases_must_divide_the_teachers_steps():
    with pytest.raises(ValueError, match="must be a multiple of steps 3"):
        PhasedConsistencyConfig(teacher={"steps": 8}, steps=3)
    with pytest.raises(ValueError, match="must be among the"):
        pcm(tiny_teacher(), build({"type": "dit", **SIZES}), schedule="karras", start="teacher")


@pytest.mark.parametrize("path", [FLOW, VP])
@pytest.mark.parametrize(
    "time",
    [
        {"type": "uniform"},
        {"type": "logit_normal", "mean": 0.2, "std": 0.7},
        {"type": "log_normal", "mean": -1.2, "std": 1.2},
        {"type": "uniform_logsnr", "low": 0.05, "high": 20.0},
        {"type": "karras", "low": 0.05, "high": 20.0, "rho": 3.0},
    ],
    ids=lambda time: time["type"] if isinstance(time, dict) else None,
)
def test_guidance_is_distilled_at_the_levels_asked_for(path, time):
    """Quantiles of 4,000 levels are those of the distribution that the type names."""
    config = GuidanceConfig(teacher={"guidance_scale": 3.0}, time=time)
    objective = GuidanceObjective(config, nn.Identity(), None, tiny_teacher("dit", path, "v"))
    level = objective.draw_level(Draws(0, torch.arange(4000), "student"), CPU)
    share = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    normal = torch.special.ndtri(share)
    if time["type"] in ("log_normal", "uniform_logsnr", "karras"):
        found = (-level.logsnr).quantile(share)
        low, high = math.log(0.05), math.log(20.0)
        expected = {
            "log_normal": -1.2 + 1.2 * normal,
            "uniform_logsnr": low + (high - low) * share,
            "karras": 3 * torch.log(0.05 ** (1 / 3) + (20.0 ** (1 / 3) - 0.05 ** (1 / 3)) * share),
        }[time["type"]]
        torch.testing.assert_close(found, expected, atol=0.12, rtol=0)
    else:
        found = (level.t / objective.path.t_noise).quantile(share)
        expected = share if time["type"] == "uniform" else torch.sigmoid(0.2 + 0.7 * normal)
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    assert level.sigma.min() > 0
