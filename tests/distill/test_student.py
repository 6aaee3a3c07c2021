"""The base of distillation: steps along trajectories, the teacher under guidance, students and LoRAs, what is exported."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distill.losses import distances as losses
from distill.losses import solver_steps as steps
from distill.networks.lora.overlay import LoraConfig, LoraNetwork
from distill.objectives import make_objective
from distill.objectives.bases.frozen_copies import ema_update
from distill.objectives.bases.student import StudentObjective
from distill.objectives.bases.student_config import StudentConfig
from distill.objectives.bases.teacher import Teacher
from distill.types import Draws
from gen.generator import Generator
from gen.models.bridge.network import BridgedConfig, BridgedNetwork
from gen.models.folder import learns_variance
from gen.nn.registry import build
from samplers.analytic import Mixture
from samplers.denoiser import Condition, Context
from samplers.guidance.cfg import ClassifierFree
from samplers.path import NoiseLevel, VariancePreserving
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.distill.students import FLOW, SHAPE, SIZES, VP, batch_of, exact_teacher, model, tiny_teacher
from tests.gen.conftest import randomise, tiny_text_encoder


def objective_of(model: Teacher, network=None, /, **config) -> StudentObjective:
    network = copy.deepcopy(model.network).requires_grad_(True) if network is None else network
    return StudentObjective(StudentConfig(**config), network, None, model)


def models_of(objective):
    return {name: role.network for name, role in objective.roles.items()}


def stacked(*levels) -> NoiseLevel:
    return steps.LevelTable.of(levels)[torch.arange(len(levels) - 1, -1, -1)]


@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "vp"])
@pytest.mark.parametrize("solver", ["ddim", "euler", "heun"])
def test_a_step_per_sample_is_the_samplers_own(path, solver):
    path = model(path).path.build()
    oracle = Mixture.example(path, "v", shape=SHAPE)
    grid = get_grid("uniform", path, 5)
    x = batch_of(5).latents
    many = steps.step(
        solver, lambda x, level: oracle(x, level, Condition(), Context()), x, stacked(*grid[:-1]), stacked(*grid[1:])
    )
    for i in range(5):  # the first step starts at (nearly) pure noise, the last one ends on clean data
        one = sample(oracle, get_solver(solver), x[i : i + 1], grid[i : i + 2])
        torch.testing.assert_close(many[i : i + 1], one, atol=1e-12, rtol=1e-10)


def test_heun_is_differentiable_at_both_ends():
    path = model(FLOW).path.build()
    oracle = Mixture.example(path, shape=SHAPE)
    grid = get_grid("uniform", path, 3)
    x = batch_of(3).latents.requires_grad_()
    predict = lambda x, level: oracle(x, level, Condition(), Context())  # noqa: E731
    steps.step("heun", predict, x, stacked(*grid[:-1]), stacked(*grid[1:])).sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().sum() > 0


@pytest.mark.parametrize("path", [FLOW, VP], ids=["flow", "vp"])
def test_inverse_ddim_undoes_ddim(path):
    path = model(path).path.build()
    s = path(torch.tensor([1.0, 0.9, 0.5, 0.2], dtype=torch.float64))
    t = path(torch.tensor([0.3, 0.0, 0.4, 0.0], dtype=torch.float64))
    x, x0 = batch_of(4).latents, batch_of(4, 10).latents
    torch.testing.assert_close(steps.inverse_ddim(steps.ddim(x0, x, s, t), x, s, t), x0, atol=1e-12, rtol=0)
    # a target that stays at s instead is another x0: the test is not of two identities
    assert (steps.inverse_ddim(x, x, s, t) - x0).abs().max() > 0.1


def test_adjusted_ddim_has_the_stated_length():
    """|x_t - alpha_t x0|^2 = sigma_t^2 |eps|^2 + d (alpha_t - alpha_s sigma_t / sigma_s)^2 variance (2403.06807)."""
    path = model(VP).path.build()
    s, t = (path(torch.tensor(v, dtype=torch.float64)) for v in ([0.9, 0.5, 0.3], [0.6, 0.2, 0.25]))
    x, x0, variance = batch_of(3).latents, batch_of(3, 7).latents, torch.tensor([0.3, 0.05, 0.0]).double()
    out = steps.adjusted_ddim(x0, x, s, t, variance)
    eps = (x - s.alpha.reshape(-1, 1, 1, 1) * x0) / s.sigma.reshape(-1, 1, 1, 1)
    left = (out - t.alpha.reshape(-1, 1, 1, 1) * x0).square().flatten(1).sum(1)
    added = 8 * (t.alpha - s.alpha * t.sigma / s.sigma) ** 2 * variance
    torch.testing.assert_close(left, t.sigma**2 * eps.square().flatten(1).sum(1) + added, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(out[2], steps.ddim(x0, x, s, t)[2], atol=1e-12, rtol=0)  # no variance: DDIM
    assert added[0] > 0.01


def test_huber_is_of_the_whole_image():
    a = batch_of(4).latents.requires_grad_()
    losses.pseudo_huber(a, torch.zeros_like(a), 1e-4).sum().backward()
    norms = a.grad.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-6, rtol=0)  # elementwise it would be sqrt(8)
    b = a.detach()
    expected = (b.flatten(1).square().sum(1) + 0.09).sqrt() - 0.3
    torch.testing.assert_close(losses.pseudo_huber(b, 0 * b, 0.3), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(losses.elementwise_huber(b, 0 * b, 0.3), ((b**2 + 0.09).sqrt() - 0.3).flatten(1).mean(1))


def test_weights_are_those_of_the_readings():
    path = VariancePreserving.cosine(64)
    level = path(torch.tensor([0.1, 0.5, 0.9]).double())
    snr = (level.alpha / level.sigma) ** 2
    torch.testing.assert_close(losses.level_weight("snr_plus_one", level), 1 / level.sigma**2)
    torch.testing.assert_close(losses.level_weight("truncated_snr", level), torch.maximum(snr, torch.ones(3).double()))
    assert losses.level_weight("snr", level, 5.0)[0] == 5.0


@pytest.mark.parametrize("scale", [1.0, 3.0, "each"])
def test_the_teacher_is_under_guidance(scale):
    teacher = exact_teacher(prediction="flow")
    scale = torch.tensor([1.0, 2.0, 4.0]).double() if scale == "each" else scale
    objective = objective_of(teacher, copy.deepcopy(teacher.network))
    x, labels = batch_of(3).latents, torch.tensor([0, 1, -1])
    level = objective.path(torch.tensor([0.9, 0.5, 0.2]).double())
    got = objective.teacher_predict(models_of(objective), x, level, Condition(label=labels), scale)
    oracle = teacher.network.oracle
    for i in range(3):
        one = NoiseLevel(*(v[i].item() for v in (level.t, level.alpha, level.sigma)))
        value = scale[i].item() if isinstance(scale, torch.Tensor) else scale
        guided = ClassifierFree(oracle, value)(x[i : i + 1], one, Condition(label=labels[i : i + 1]), Context())
        torch.testing.assert_close(got.x0[i : i + 1], guided.x0, atol=1e-10, rtol=1e-10)


def test_guidance_stops_outside_its_interval():
    teacher = exact_teacher()
    objective = objective_of(
        teacher, copy.deepcopy(teacher.network), teacher={"guidance_scale": 4.0, "guidance_interval": (-1.0, 1.0)}
    )
    x, level = batch_of(2).latents, objective.path(torch.tensor([0.95, 0.5]).double())  # log-SNR -2.9 and 0
    condition = Condition(label=torch.tensor([0, 1]))
    plain = objective.teacher_predict(models_of(objective), x, level, condition)
    got = objective.teacher_predict(models_of(objective), x, level, condition, 4.0)
    torch.testing.assert_close(got.x0[0], plain.x0[0], atol=1e-12, rtol=0)
    assert (got.x0[1] - plain.x0[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["dit", "uvit"])
def test_a_student_that_reads_a_scale_starts_as_its_teacher(kind):
    teacher = tiny_teacher(kind)
    torch.manual_seed(3)
    network = build({"type": kind, **SIZES, "scalars": ["guidance"]})
    objective = objective_of(teacher, network, embed_guidance=True, teacher={"guidance_scale": (1.0, 5.0)})
    x, level = batch_of(3, shape=(2, 4, 4)).latents.float(), objective.path(torch.tensor([0.9, 0.5, 0.2]))
    condition = Condition(label=torch.tensor([0, 1, -1]))
    scale = objective.scale(Draws(0, torch.arange(3)), x.device)
    assert scale.shape == (3,) and scale.min() >= 1 and scale.max() <= 5
    mine = objective.predict(network, x, level, condition, scale)
    torch.testing.assert_close(
        mine.raw, objective.teacher_predict(models_of(objective), x, level, condition).raw, atol=1e-5, rtol=1e-5
    )
    randomise(network.scalar_embeds, 4)
    other = objective.predict(network, x, level, condition, scale + 1)
    assert (other.raw - objective.predict(network, x, level, condition, scale).raw).abs().max() > 1e-3
    with pytest.raises(ValueError, match="receives its guidance"):
        network(x, level.t, condition)
    with pytest.raises(ValueError, match=r"set network.scalars to \[guidance\]"):
        objective_of(teacher, build({"type": kind, **SIZES}), embed_guidance=True)


@pytest.mark.parametrize("embed", [False, True])
def test_without_a_network_section_the_student_is_like_its_teacher(embed):
    teacher = tiny_teacher("uvit")
    torch.manual_seed(0)
    objective = objective_of(teacher, nn.Identity(), embed_guidance=embed)
    student = objective.roles["student"].network
    assert student is not teacher.network and student.config.scalars == (("guidance",) if embed else ())
    assert all(p.requires_grad for p in student.parameters()) and not any(p.requires_grad for p in teacher.network.parameters())
    x, level = batch_of(2, shape=(2, 4, 4)).latents.float(), objective.path(torch.tensor([0.9, 0.5]))
    condition = Condition(label=torch.tensor([0, 1]))
    mine = objective.predict(student, x, level, condition, 3.0).raw
    torch.testing.assert_close(
        mine, objective.teacher_predict(models_of(objective), x, level, condition).raw, atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ValueError, match="give its section"):
        make_objective({"type": "diffusion"}, nn.Identity())


def test_another_network_is_refused():
    with pytest.raises(ValueError, match="another shape"):
        objective_of(tiny_teacher(), build({"type": "dit", **SIZES, "dim": 32}))
    with pytest.raises(ValueError, match="not the teacher's: it lacks"):
        objective_of(tiny_teacher(), build({"type": "dit", **SIZES, "depth": 2}))


def changed_lora(lora: LoraNetwork, seed: int = 0) -> LoraNetwork:
    randomise(lora.up, seed)
    return lora


def test_a_lora_leaves_its_base_alone_and_is_exported_as_one(tmp_path):
    teacher = tiny_teacher()
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    objective = objective_of(teacher, lora={"rank": 2, "alpha": 3.0})
    network = objective.roles["student"].network
    x, level = batch_of(2, shape=(2, 4, 4)).latents.float(), objective.path(torch.tensor([0.9, 0.5]))
    condition = Condition(label=torch.tensor([0, 1]))
    base = objective.teacher_predict(models_of(objective), x, level, condition).raw
    torch.testing.assert_close(objective.predict(network, x, level, condition).raw, base, atol=2e-6, rtol=1e-5)  # B = 0
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"down", "up"}
    changed_lora(network)
    out = objective.predict(network, x, level, condition).raw
    assert (out - base).abs().max() > 1e-2
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    torch.testing.assert_close(objective.teacher_predict(models_of(objective), x, level, condition).raw, base, atol=0, rtol=0)
    assert all(torch.equal(value, before[name]) for name, value in teacher.network.state_dict().items())

    objective.export({"student": network}, tmp_path / "export")
    generator = Generator(teacher.model, copy.deepcopy(teacher.network), device="cpu", dtype="float32")
    report = generator.load_adapter(tmp_path / "export")
    assert len(generator.loaded_adapters.loaded) == 1 and report is not None
    adapters = generator.adapters
    loaded = generator.denoiser(x, level, condition, Context(adapters=adapters)).raw
    torch.testing.assert_close(loaded, out, atol=2e-5, rtol=1e-5)
    merged = objective.teacher.denoiser(network.merged())(x, level, condition, Context()).raw
    torch.testing.assert_close(merged, out, atol=1e-5, rtol=1e-5)


def test_a_copy_of_a_lora_has_its_own_factors_and_the_same_base():
    lora = changed_lora(LoraNetwork(tiny_teacher().network, LoraConfig(rank=2)))
    twin = copy.deepcopy(lora)
    assert twin.base is lora.base
    changed_lora(twin, 9)
    assert not torch.equal(twin.up["blocks/0/attn/qkv"], lora.up["blocks/0/attn/qkv"])


def test_lora_targets_are_ends_of_names():
    base = tiny_teacher().network
    assert LoraNetwork(base, LoraConfig(targets=("attn.qkv",))).names == [f"blocks.{i}.attn.qkv" for i in range(3)]
    with pytest.raises(ValueError, match=r"did you mean 'attn.qkv'"):
        LoraNetwork(base, LoraConfig(targets=("attn.qvk",)))


def test_the_target_is_an_average_and_is_kept():
    teacher = tiny_teacher()
    objective = objective_of(teacher, target_ema=0.75)
    student, target = (objective.roles[name].network for name in ("student", "target"))
    start = student.head.weight.detach().clone()
    with torch.no_grad():
        student.head.weight += 1
    objective.after_step(0)
    torch.testing.assert_close(target.head.weight, start + 0.25)
    assert not target.head.weight.requires_grad and not objective.roles["target"].trains
    state = {name: value.clone() for name, value in objective.state_dict().items()}
    other = objective_of(tiny_teacher(), target_ema=0.75)
    other.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    with pytest.raises(ValueError, match="keeps no"):
        objective_of(tiny_teacher()).load_state_dict(state)


def test_a_lora_on_a_network_of_diffusers_with_learned_variances_is_known_to_have_them():
    theirs = nn.Module()
    theirs.blocks, theirs.config = nn.ModuleList([nn.Linear(4, 4)]), {"in_channels": 4, "out_channels": 8}
    bridged = BridgedNetwork(theirs, BridgedConfig(4))
    assert learns_variance(bridged) and learns_variance(LoraNetwork(bridged, LoraConfig(rank=1)))
    theirs.config = {"in_channels": 4, "out_channels": 4}
    assert not learns_variance(LoraNetwork(bridged, LoraConfig(rank=1)))


@pytest.mark.parametrize("own", [{"type": "mmdit"}, {"type": "z_image", "axes": [4, 6, 6]}])
def test_what_no_prompt_is_stays_the_teachers_own(own):
    """Networks of text and patches have learned it; they are not told what the text encoder says of an empty prompt."""
    text = tiny_text_encoder().eval().requires_grad_(False)
    sizes = {"size": 4, "patch": 2, "channels": 2, "dim": 32, "heads": 2, "depth": 1, "text_tokens": 8, "text_dim": 16}
    network = randomise(build({**sizes, **own}), 1).eval().requires_grad_(False)
    condition = text.condition("cat").null()
    x, time = batch_of(1, shape=(2, 4, 4)).latents.float(), torch.full((1,), 0.5)
    before = network(x, time, condition, Context())
    objective = objective_of(Teacher(model(), network, text_encoder=text, name="tiny"), nn.Identity())
    after = [role.network(x, time, condition, Context()) for role in objective.roles.values()]
    for one in after:
        torch.testing.assert_close(one, before)


def test_averaging_with_no_decay_copies():
    a, b = (randomise(build({"type": "dit", **SIZES}), seed) for seed in (1, 2))
    ema_update(a, b, 0.0)
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_the_exported_model_draws_with_its_own_few_steps(tmp_path):
    teacher = tiny_teacher()
    teacher.model = teacher.model.model_copy(update={"sample_size": 4})
    torch.manual_seed(0)
    network = build({"type": "dit", **SIZES, "channels": 2, "scalars": ["guidance"]})
    objective = objective_of(teacher, network, steps=3, embed_guidance=True, teacher={"guidance_scale": (2.0, 6.0)})
    randomise(network.scalar_embeds, 4)
    objective.export({"student": network.eval()}, tmp_path / "export")
    generator = Generator.from_pretrained(tmp_path / "export", device="cpu", dtype="float32")
    defaults = generator.config.defaults
    assert (defaults.num_inference_steps, defaults.sampler, defaults.guidance, defaults.guidance_scale) == (
        3, "ddim", "embedded", 4.0,
    )  # fmt: skip
    noise = batch_of(2, shape=(2, 4, 4)).latents.float()
    labels = [0, 2]
    made = generator(class_labels=labels, latents=noise, output_type="latent", progress=False).images
    torch.testing.assert_close(
        torch.as_tensor(made), objective.draw(network, noise, Condition(label=torch.tensor(labels))), atol=1e-5, rtol=1e-5
    )
