"""Discrete-time consistency methods against the exact trajectories of Gaussian data, and against their formulas."""

from __future__ import annotations

import math

import pytest
import torch

from distill.losses.consistency_schedules import Boundary, growing_decay
from distill.networks.evaluator.network import Evaluator, EvaluatorConfig
from distill.networks.feature_maps import FeatureMaps
from distill.objectives.bases import perceptual
from distill.objectives.consistency_distillation import ConsistencyDistillationConfig, ConsistencyDistillationObjective
from distill.objectives.consistency_training import ConsistencyTrainingConfig, ConsistencyTrainingObjective
from distill.objectives.easy_consistency import EasyConsistencyConfig, EasyConsistencyObjective
from distill.objectives.improved_consistency import ImprovedConsistencyConfig, ImprovedConsistencyObjective
from distill.types import Draws
from gen.generator import Generator
from gen.nn.registry import build
from samplers.denoiser import Condition
from samplers.noise_ratio import at_ratio
from tests.distill.cases import AUTOENCODER
from tests.distill.flow_maps import ExactEnd, gaussian_teacher
from tests.distill.students import SIZES, VP, batch_of, loss_of, tiny_teacher
from tests.gen.conftest import randomise


def models_of(objective):
    return {name: role.network for name, role in objective.roles.items()}


@pytest.mark.parametrize(("solver", "order"), [("heun", 3), ("euler", 2)])
def test_the_exact_function_has_no_loss_but_the_teachers_error(solver, order):
    """|f(x_t) - f(x_s)| is the local error of the teacher's solver: of order 3 for Heun and 2 for Euler, so that the squared
    loss falls by 2^(2 order) when the levels are twice as dense."""
    losses = []
    for levels in (33, 65):
        teacher = gaussian_teacher()
        config = ConsistencyDistillationConfig(
            levels=levels, distance="squared", teacher={"solver": solver}, boundary_width=0.01, target_ema=None
        )
        losses.append(loss_of(exact_objective(config, teacher), batch_of(256)).item())
    assert math.log2(losses[0] / losses[1]) / 2 == pytest.approx(order, abs=0.4)


def exact_objective(config, teacher, kind=ConsistencyDistillationObjective):
    """An objective whose student knows the exact consistency function."""
    config = config.model_copy(update={"start": "network"})
    return kind(config, ExactEnd(teacher, config.sigma_min, config.boundary_width), None, teacher)


def test_another_function_has_a_loss():
    teacher = gaussian_teacher()
    config = ConsistencyDistillationConfig(levels=65, distance="squared", boundary_width=0.01, target_ema=None, start="network")
    exact = exact_objective(config, teacher)
    denoiser = ConsistencyDistillationObjective(
        config, teacher.network, None, teacher
    )  # the mean of x0, not the end of the ODE
    assert loss_of(denoiser, batch_of(64)) > 100 * loss_of(exact, batch_of(64))


def test_improved_training_is_its_formula():
    """sum over samples of 1 / (t - s) (sqrt(|f(x_t) - f(x_s)|^2 + c^2) - c), c = 0.00054 sqrt(d), one noise for both points."""
    teacher = tiny_teacher()
    network = build({"type": "dit", **SIZES})
    config = ImprovedConsistencyConfig(total_steps=100, first_levels=10, last_levels=40, drop_label=0.0)
    objective = ImprovedConsistencyObjective(config, network, None, teacher)
    batch = batch_of(6, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    draws = Draws(0, batch.index, "student")
    high, low = objective.pair(draws, torch.device("cpu"), 50)
    grid = torch.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 21).double() ** 7  # step 50 of 100: N = 20 + 1
    positions = (high[:, None] - grid).abs().argmin(1)
    torch.testing.assert_close(high, grid[positions], rtol=1e-5, atol=0)
    torch.testing.assert_close(low, grid[positions - 1], rtol=1e-5, atol=1e-9)

    eps, total = draws.normal("eps", (2, 4, 4)), 0.0
    for i in range(6):
        ends = []
        for ratio in (high[i], low[i]):
            t = ratio / (1 + ratio)  # the rectified flow's clock
            x = ((1 - t) * batch.latents[i] + t * eps[i]).float()[None]
            x0 = network(x, t[None].float(), Condition(label=batch.labels[i : i + 1]))
            keep = 0.05**2 / ((ratio - 0.002) ** 2 + 0.05**2)
            ends.append((keep * x / (1 - t) + (1 - keep) * x0).double())
        distance = (ends[0] - ends[1]).norm()
        c = 0.00054 * math.sqrt(32)
        total += ((distance**2 + c**2).sqrt() - c) / (high[i] - low[i])
    got = loss_of(objective, batch, 50)
    assert got.item() == pytest.approx(total.item() / 6, rel=1e-4)


def test_easy_tuning_starts_as_the_denoising_loss():
    """In stage 0 the target is the clean picture."""
    teacher = tiny_teacher()
    network = randomise(build({"type": "dit", **SIZES}), 2)
    config = EasyConsistencyConfig(stage_steps=10, distance="squared", weighting="uniform", drop_label=0.0)
    objective = EasyConsistencyObjective(config, network, None, teacher)
    batch = batch_of(5, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    draws = Draws(0, batch.index, "student")
    high, low = objective.pair(draws, torch.device("cpu"), 9)
    assert torch.equal(low, torch.zeros_like(low))
    level = at_ratio(objective.path, high)
    x = level.mix(batch.latents, draws.normal("eps", (2, 4, 4)))
    f = Boundary(0.002, 0.5, 0.05)(objective.predict(network, x, level, Condition(label=batch.labels)), "x0")
    assert loss_of(objective, batch, 9).item() == pytest.approx((f - batch.latents).square().mean().item(), rel=1e-5)
    _, later = objective.pair(draws, torch.device("cpu"), 100)
    assert (later > 0.9 * high).sum() >= 4 and (later < high).all()


def test_consistency_training_mixes_the_same_noise_and_averages_on_schedule():
    teacher = tiny_teacher()
    config = ConsistencyTrainingConfig(total_steps=100, first_levels=2, last_levels=20, target_ema=0.9)
    objective = ConsistencyTrainingObjective(config, build({"type": "dit", **SIZES}), None, teacher)
    batch = batch_of(4, shape=(2, 4, 4))
    x0, eps = batch.latents.float(), torch.ones(4, 2, 4, 4)
    t, s = (at_ratio(objective.path, torch.full((4,), v)) for v in (3.0, 1.0))
    x_s = objective.earlier({}, x0, eps, t.mix(x0, eps), t, s, Condition(), 1.0)
    torch.testing.assert_close(x_s, 0.5 * x0 + 0.5 * eps)

    student, target = objective.roles["student"].network, objective.roles["target"].network
    for step, count in ((0, 2), (100, 21)):
        before = target.head.bias.clone()
        with torch.no_grad():
            student.head.bias += 1
        objective.after_step(step)
        decay = growing_decay(count, 2, 0.9)
        torch.testing.assert_close(target.head.bias, decay * before + (1 - decay) * student.head.bias)


@pytest.mark.parametrize("path", [{"type": "rectified_flow"}, VP], ids=["flow", "vp"])
def test_only_the_student_learns(path):
    teacher = tiny_teacher("uvit", path)
    config = ConsistencyDistillationConfig(levels=8, teacher={"solver": "heun", "guidance_scale": (1.0, 4.0)})
    objective = ConsistencyDistillationObjective(config, build({"type": "uvit", **SIZES}), None, teacher)
    randomise(objective.roles["student"].network, 5)
    batch = batch_of(6, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    loss_of(objective, batch).backward()
    models = models_of(objective)
    assert all(p.grad is not None for p in models["student"].parameters())
    assert all(p.grad is None for role in ("teacher", "target") for p in models[role].parameters())


def test_the_target_is_the_average():
    teacher = tiny_teacher()
    config = ConsistencyDistillationConfig(levels=8)
    objective = ConsistencyDistillationObjective(config, build({"type": "dit", **SIZES}), None, teacher)
    batch = batch_of(6, shape=(2, 4, 4))
    batch.latents = batch.latents.float()
    before = loss_of(objective, batch)
    randomise(objective.roles["target"].network, 7)
    assert (loss_of(objective, batch) - before).abs() > 1e-4


def test_a_trained_student_is_exported_with_its_sampler(tmp_path):
    teacher = tiny_teacher()
    objective = ConsistencyDistillationObjective(
        ConsistencyDistillationConfig(steps=2), randomise(build({"type": "dit", **SIZES}), 3), None, teacher
    )
    objective.export({"student": objective.roles["student"].network.eval()}, tmp_path / "export")
    generator = Generator.from_pretrained(tmp_path / "export", device="cpu", dtype="float32")
    defaults = generator.config.defaults
    assert (defaults.sampler, defaults.num_inference_steps, defaults.schedule) == ("consistency", 2, "karras")
    assert defaults.sampler_options == {"sigma_min": 0.002}
    made = generator(class_labels=[0, 2], seed=1, output_type="latent", progress=False).images
    assert torch.isfinite(torch.as_tensor(made)).all()


def test_levels_beyond_the_path_are_refused():
    short = {"type": "variance_preserving", "betas": "scaled_linear"}
    with pytest.raises(ValueError, match="sigma_max is 80"):
        ConsistencyDistillationObjective(
            ConsistencyDistillationConfig(), build({"type": "dit", **SIZES}), None, tiny_teacher("dit", short)
        )


@pytest.mark.parametrize(
    ("config", "objective", "more"),
    [
        (ConsistencyDistillationConfig, ConsistencyDistillationObjective, {}),
        (ConsistencyTrainingConfig, ConsistencyTrainingObjective, {"total_steps": 10}),
        (ImprovedConsistencyConfig, ImprovedConsistencyObjective, {"total_steps": 10}),
        (EasyConsistencyConfig, EasyConsistencyObjective, {"stage_steps": 10}),
    ],
    ids=["cd", "ct", "ict", "ect"],
)
def test_the_distance_may_be_that_of_features_alone_or_beside_another(config, objective, more, monkeypatch):
    """Of the pictures that the decoder makes, by LPIPS's equation or by the network that compares itself."""
    teacher = tiny_teacher()
    teacher.autoencoder = randomise(build({**AUTOENCODER, "channels": 2}), 5).eval().requires_grad_(False)
    evaluator = Evaluator(EvaluatorConfig(size=16, widths=(4, 6), dim=8, text_dim=8)).eval()
    monkeypatch.setattr(perceptual, "load_feature_maps", lambda name: Maps(evaluator, (4, 6)))
    made = {
        kind: objective(config(start="network", **more, **options), build({"type": "dit", **SIZES}), None, teacher)
        for kind, options in {
            "alone": {"distance": "perceptual"},
            "beside": {"distance": "squared", "perceptual": 0.7},
            "plain": {"distance": "squared"},
        }.items()
    }
    a, b = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(3)
    for f, g in zip(*(evaluator.stages(teacher.autoencoder.decode(v).clamp(-1.2, 1.2)) for v in (a, b)), strict=True):
        f, g = (v / (v.square().sum(1, keepdim=True) + 1e-10).sqrt() for v in (f, g))
        expected = expected + (f - g).square().sum(1).mean((1, 2))
    torch.testing.assert_close(made["alone"].distance(a, b), expected, rtol=1e-4, atol=1e-5)
    square = (a - b).square().mean((1, 2, 3))
    torch.testing.assert_close(made["beside"].distance(a, b), square + 0.7 * expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made["plain"].distance(a, b), square)
    monkeypatch.setattr(Maps, "distance", lambda self, x, y: (x - y).abs().mean((1, 2, 3)), raising=False)
    shown = (teacher.autoencoder.decode(a) - teacher.autoencoder.decode(b)).abs().mean((1, 2, 3))
    torch.testing.assert_close(made["alone"].distance(a, b), shown)


class Maps(FeatureMaps):
    def forward(self, images):
        return self.network.stages(images)
