"""Distribution matching: its gradient is the divergence's, the critic learns the student, the student learns the teacher."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks.lora.overlay import LoraNetwork
from distill.objectives.bases.teacher import Teacher
from distill.objectives.dmd2 import Critic, DistributionMatchingConfig, DistributionMatchingObjective, matching
from distill.types import Batch, Draws, Phase
from gen.nn.registry import build
from samplers.analytic import Gaussian
from samplers.denoiser import Context
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.distill.students import (
    FLOW,
    SIZES,
    STUDENT,
    VP,
    Source,
    batch_of,
    exact_teacher,
    latents,
    model,
    models_of,
    tiny_teacher,
)
from tests.gen.conftest import randomise

CRITIC = Phase("critic", "critic")
CPU = torch.device("cpu")
NO_JUDGE = {"adversarial_weight": 0.0, "discriminator_weight": 0.0}
CASES = pytest.mark.parametrize(("network", "path", "kind"), [("dit", FLOW, "flow"), ("uvit", VP, "v")])


def dmd(given, network, /, **changes) -> DistributionMatchingObjective:
    own = {"start": "network", "steps": 4, "teacher": {"guidance_scale": 3.0}, **changes}
    return DistributionMatchingObjective(DistributionMatchingConfig(**own), network, None, given)


def student(kind: str = "dit", **more) -> nn.Module:
    torch.manual_seed(0)
    return randomise(build({"type": kind, **SIZES, **more}), 7).requires_grad_(True)


class Spread(nn.Module):
    """Draws mean + std z of unit noise z at the noisiest level, where it is called."""

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.mean, self.log_std = nn.Parameter(mean.clone()), nn.Parameter(std.log())

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        return self.mean + self.log_std.exp() * x


class Learning(nn.Module):
    """The denoiser of a Gaussian whose mean and deviation are parameters."""

    def __init__(self, path, mean: Tensor, std: Tensor):
        super().__init__()
        self.path, self.mean, self.log_std = path, nn.Parameter(mean.clone()), nn.Parameter(std.log())

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        oracle = Gaussian(self.path, self.mean, self.log_std.exp(), "x0")
        return oracle(x, self.path(time.double()), condition, Context()).x0


def gaussians(**changes):
    """(the objective of a teacher that is one Gaussian, its student and its critic, which begin alike and elsewhere)."""
    teacher = exact_teacher(gaussian=True)
    like = teacher.network.oracle.mean
    one = Spread(torch.zeros_like(like), torch.full_like(like, 1.5))
    options = {"teacher": {}, "noisiest_share": 1.0, "range": (0.1, 0.9), **NO_JUDGE, **changes}
    objective = dmd(teacher, one, **options)
    critic = Learning(objective.path, one.mean.detach(), one.log_std.detach().exp())
    objective.roles["critic"].network.network = critic
    return objective, one, critic


def test_the_gradient_is_that_of_the_divergence_at_the_level():
    """d KL / d mean of Gaussians is alpha^2 (m - m') / (alpha^2 s'^2 + sigma^2); the direction is sigma^2 / alpha^2 of it."""
    objective, one, critic = gaussians()
    truth, count = objective.teacher.network.oracle, 20000
    for t in (0.2, 0.5, 0.8):
        level = objective.path(torch.full((count,), t, dtype=torch.float64))
        z, noise = (torch.randn(count, *one.mean.shape, generator=torch.Generator().manual_seed(s)).double() for s in (1, 2))
        x_t = level.mix(one(z, None, None), noise).detach()
        found = (critic(x_t, level.t, None) - truth(x_t, level, None, Context()).x0).detach().mean(0)
        alpha, sigma = 1 - t, t
        exact = alpha**2 * (one.mean - truth.mean).detach() / (alpha**2 * truth.std**2 + sigma**2)
        torch.testing.assert_close(found, sigma**2 / alpha**2 * exact, atol=0.02, rtol=0.02)


def test_matching_moves_by_the_direction_over_the_distance_of_each_sample():
    g = torch.Generator().manual_seed(0)
    x0, fake, real = (torch.randn(3, 2, 4, 4, generator=g, dtype=torch.float64) for _ in range(3))
    x0.requires_grad_(True)
    (gradient,) = torch.autograd.grad(matching(x0, fake, real).sum(), x0)
    far = (x0.detach() - real).abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient, (fake - real) / far / 32)


def test_a_critic_that_agrees_with_the_teacher_moves_nothing_and_another_does():
    objective, one, critic = gaussians()
    batch, models = batch_of(8), models_of(objective)

    def gradient() -> float:
        one.zero_grad(set_to_none=True)
        objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)[0].backward()
        return max(p.grad.abs().max().item() for p in one.parameters())

    truth = objective.teacher.network.oracle
    assert gradient() > 0.05
    with torch.no_grad():
        critic.mean.copy_(truth.mean)
        critic.log_std.copy_(truth.std.log())
    assert gradient() < 1e-9


def test_the_critic_comes_to_the_student_and_the_student_to_the_teacher():
    objective, one, critic = gaussians(weight="snr", max_weight=5.0)
    models, truth = models_of(objective), objective.teacher.network.oracle
    rates = {"student": 0.02, "critic": 0.05}
    networks = {"student": one, "critic": critic}
    optimizers = {name: torch.optim.Adam(networks[name].parameters(), betas=(0.5, 0.99)) for name in rates}
    for step in range(300):
        batch = batch_of(32, first=32 * step)
        for phase in (STUDENT, CRITIC, CRITIC):
            optimizer = optimizers[phase.role]
            optimizer.zero_grad()
            objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), step)[0].backward()
            optimizer.param_groups[0]["lr"] = rates[phase.role] * min(1.0, 2 - step / 150)
            optimizer.step()
    assert (truth.mean.abs().max() > 0.5) and ((truth.std - 1.5).abs().max() > 0.5)  # it had somewhere to go
    torch.testing.assert_close(one.mean.detach(), truth.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(one.log_std.detach().exp(), truth.std, atol=0.1, rtol=0)
    torch.testing.assert_close(critic.mean.detach(), one.mean.detach(), atol=0.2, rtol=0)


@CASES
def test_simulated_inputs_are_what_the_students_own_sampler_comes_to(network, path, kind):
    teacher, one = tiny_teacher(network, path, kind), student(network)
    objective = dmd(teacher, one)
    batch = latents(8)
    draws, shape = Draws(0, batch.index, "student"), (2, 4, 4)
    condition = objective.condition(batch, CPU)
    start = torch.tensor([4, 3, 2, 1, 1, 2, 3, 4])
    found = objective.simulate(one, start, batch.latents, condition, 3.0, draws)
    levels = get_grid("uniform", objective.path, 4)
    noises = {n: draws.normal("eps" if n == 4 else f"eps {n}", shape) for n in range(4, 0, -1)}

    class Plain:
        path = objective.path

        def __call__(self, x, level, condition, context):
            return objective.predict(one, x, level, condition, 3.0)

    with torch.no_grad():
        for row, number in enumerate(start.tolist()):
            order = iter([noises[n][row : row + 1] for n in range(3, 0, -1)])
            x = noises[4][row : row + 1] * levels[0].sigma
            if number < 4:
                steps, one_row = levels[: 5 - number], condition[row : row + 1]
                x = sample(Plain(), get_solver("lcm"), x.float(), steps, one_row, noise=lambda *_, order=order: next(order))
            torch.testing.assert_close(found[row : row + 1], x.float(), atol=1e-4, rtol=1e-4)


def test_the_levels_compared_are_those_of_the_config_within_the_range():
    draws = Draws(0, torch.arange(2000), "student")
    t = dmd(tiny_teacher(), student()).compared(draws, CPU).t
    assert t.min() >= 0.02 and t.max() <= 0.98 and t.mean().item() == pytest.approx(0.5, abs=0.02)
    time = {"type": "logit_normal", "mean": -1.0, "std": 1.0}
    low = dmd(tiny_teacher(), student(), time=time, range=(0.1, 0.9)).compared(draws, CPU).t
    assert low.min() == 0.1 and low.median().item() == pytest.approx(0.27, abs=0.02)


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_critic_of_a_teacher_with_learned_variances_begins_as_the_teacher(lora):
    network = randomise(build({"type": "dit", **SIZES, "learned_variance": True}), 1).eval().requires_grad_(False)
    teacher, batch = Teacher(model(), network, name="tiny"), latents()
    objective = dmd(teacher, nn.Identity(), start="teacher", lora=lora)
    condition, level = objective.condition(batch, CPU), objective.path(torch.full((4,), 0.5, dtype=torch.float64))
    found, _ = objective.judge(objective.roles["critic"].network, batch.latents, level, condition, 1.0)
    wanted = objective.teacher_predict(models_of(objective), batch.latents, level, condition).x0
    assert wanted.shape == batch.latents.shape
    torch.testing.assert_close(found.x0, wanted, atol=1e-6, rtol=1e-5)
    for phase in (STUDENT, CRITIC):
        assert objective.loss(phase, models_of(objective), batch, Draws(0, batch.index, phase.name), 0)[0].isfinite()


def test_where_samples_start():
    draws = Draws(0, torch.arange(400), "student")
    for share, low, high in ((0.0, 70, 130), (0.5, 210, 290), (1.0, 400, 400)):
        start = dmd(tiny_teacher(), student(), noisiest_share=share).start(draws, CPU)
        assert low <= (start == 4).sum() <= high and start.min() >= 1 and start.max() == 4
    objective = dmd(tiny_teacher(), one := student(), inputs="data", drop_label=0.0)
    x0, real, *_ = objective.rollout(one, latents(), draws := Draws(0, torch.arange(4), "student"))
    start = objective.start(draws, CPU)
    z = objective.levels[start].mix(real, draws.normal("eps", (2, 4, 4)))
    expected = objective.predict(one, z, objective.levels[start], objective.condition(latents(), CPU), 3.0).x0
    assert torch.equal(x0, expected) and torch.equal(real, latents().latents)


@CASES
def test_the_critic_denoises_what_the_student_draws_and_tells_it_from_the_data(network, path, kind):
    teacher, one = tiny_teacher(network, path, kind), student(network)
    objective = dmd(teacher, one, discriminator_weight=0.3, weight="uniform", max_weight=1.0, blocks=(0, 2))
    batch, models = latents(), models_of(objective)
    draws = Draws(0, batch.index, "critic")
    loss, logged = objective.loss(CRITIC, models, batch, draws, 0)
    critic = models["critic"]
    with torch.no_grad():
        x0, data, condition, scale = objective.rollout(one, batch, draws)
        seen = {}
        level = objective.compared(draws, CPU)
        for name, picture, noise in (("fake", x0, "noise"), ("real", data, "real noise")):
            x = level.mix(picture, draws.normal(noise, (2, 4, 4)))
            seen[name] = objective.judge(critic, x, level, condition, scale)
        error = (seen["fake"][0].x0 - x0).square().mean()
        loss_disc = F.softplus(seen["fake"][1]).mean() + F.softplus(-seen["real"][1]).mean()
    assert seen["fake"][1].shape == (4, 2)  # one for each of two blocks
    torch.testing.assert_close(loss.detach(), error + 0.3 * loss_disc, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logged["loss_disc"], loss_disc, atol=1e-5, rtol=1e-4)


@CASES
def test_the_students_loss_is_the_matching_and_how_real_the_critic_takes_it_for(network, path, kind):
    objective = dmd(tiny_teacher(network, path, kind), student(network), adversarial_weight=0.5, discriminator_weight=0.5)
    batch, models = latents(), models_of(objective)
    draws = Draws(0, batch.index, "student")
    loss, logged = objective.loss(STUDENT, models, batch, draws, 0)
    with torch.no_grad():
        x0, _, condition, scale = objective.rollout(models["student"], batch, draws)
        level = objective.compared(draws, CPU)
        x_t = level.mix(x0, draws.normal("noise", (2, 4, 4)))
        fake, logits = objective.judge(models["critic"], x_t, level, condition, scale)
        real = objective.teacher_predict(models, x_t, level, condition, scale)
        adversarial = -torch.log(torch.sigmoid(logits)).mean()  # falls as the logits rise, which say "real"
        wanted = matching(x0, fake.x0, real.x0).mean() + 0.5 * adversarial
    torch.testing.assert_close(loss.detach(), wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logged["adversarial"], adversarial, atol=1e-5, rtol=1e-4)


@CASES
def test_each_network_learns_in_its_own_phase_only(network, path, kind):
    teacher, one = tiny_teacher(network, path, kind), student(network)
    objective = dmd(teacher, one, adversarial_weight=0.5, discriminator_weight=0.5)
    batch, models = latents(), models_of(objective)
    assert [phase.role for phase in objective.phases(0)] == ["student", "critic"]
    objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)[0].backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in one.parameters())
    assert all(p.grad is None for name in ("critic", "teacher") for p in models[name].parameters())
    one.zero_grad(set_to_none=True)
    objective.loss(CRITIC, models, batch, Draws(0, batch.index, "critic"), 0)[0].backward()
    assert all(p.grad is not None for p in models["critic"].heads.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in models["critic"].network.parameters())
    assert all(p.grad is None for name in ("student", "teacher") for p in models[name].parameters())


def test_the_student_is_moved_towards_what_the_critic_takes_for_real():
    teacher, one = tiny_teacher(), student()
    objective = dmd(teacher, one, distribution_weight=0.0, adversarial_weight=1.0, noisiest_share=1.0)
    batch, models = latents(), models_of(objective)
    randomise(models["critic"].heads, 3)

    def value() -> Tensor:
        return objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)[1]["adversarial"]

    before = value()
    optimizer = torch.optim.SGD(one.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)[0].backward()
        optimizer.step()
    assert value() < before - 1e-3


def test_at_first_the_critic_is_the_teacher_and_trains_alone():
    teacher = tiny_teacher()
    objective = dmd(teacher, student(scalars=["guidance"]), embed_guidance=True, critic_warmup=2)
    assert [[p.role for p in objective.phases(step)] for step in (0, 1, 2)] == [["critic"], ["critic"], ["student", "critic"]]
    x, level = latents(2).latents, objective.path(torch.tensor([0.3, 0.7]).double())
    condition = objective.condition(latents(2), CPU)
    critic = objective.judge(objective.roles["critic"].network, x, level, condition, torch.tensor([2.0, 6.0]))[0]
    torch.testing.assert_close(critic.x0, objective.teacher.denoiser(teacher.network)(x, level, condition, Context()).x0)


@CASES
def test_the_heads_read_numbers_of_unit_variance_from_the_first_at_every_level(network, path, kind):
    teacher, source = tiny_teacher(network, path, kind), Source()
    config = DistributionMatchingConfig(start="network", blocks=(0, 2))
    objective = DistributionMatchingObjective(config, student(network), source, teacher)
    critic, seen = objective.roles["critic"].network, []
    assert (critic.heads.times.diff() > 0).all()
    for head in critic.heads.heads:
        head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = source.batch(range(64))
    noise = Draws(0, batch.index, "heads").normal("noise", (2, 4, 4))
    for time in critic.heads.times[[0, 3, 7]].double().tolist():
        t = time if path is FLOW else (time + 1) / 64
        level = objective.path(torch.full((64,), t, dtype=torch.float64))
        objective.judge(critic, level.mix(batch.latents, noise), level, objective.condition(batch, CPU), 3.0)
    for numbers in seen:
        assert numbers.mean(0).abs().max() < 1e-3 and (numbers.std(0) - 1).abs().max() < 1e-2
    heads = critic.heads  # half-way between two knots it takes the mean of their statistics
    half, between = heads.times[2:4].mean()[None].expand(64), heads.center[2:4].mean(0)
    features = [n[:, :16, None].mT.expand(-1, 2, -1) for n in torch.randn(2, 64, 16).unbind()]
    seen.clear()
    heads(features, half)
    spread = heads.spread[2:4].mean(0)
    torch.testing.assert_close(seen[1], (heads.pooled(features)[:, 1] - between[1]) / spread[1], atol=1e-3, rtol=1e-3)
    tokens = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(0))
    pooled = critic.heads.pooled([tokens])[:, 0]
    torch.testing.assert_close(pooled[:, :16], tokens.mean(1))
    torch.testing.assert_close(pooled[:, 16:], tokens.std(1), atol=1e-5, rtol=1e-4)


def test_with_a_lora_teacher_student_and_critic_share_their_weights():
    teacher = tiny_teacher()
    objective = dmd(teacher, nn.Identity(), start="teacher", lora={"rank": 2}, **NO_JUDGE)
    critic = objective.roles["critic"].network
    assert isinstance(critic.network, LoraNetwork) and critic.network.base is teacher.network
    names = {name for name, _ in critic.named_parameters()}
    assert names and all("down" in name or "up" in name for name in names)
    batch, models = latents(), models_of(objective)
    for phase in (STUDENT, CRITIC):
        objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), 0)[0].backward()
    assert all(p.grad is not None for p in critic.parameters())


def test_without_a_discriminator_prompts_are_enough():
    """Pictures of the data change nothing, so none are needed; noised data and a discriminator need them, and say so."""
    batch = latents(4)
    alone = Batch(index=batch.index, labels=batch.labels)
    for phase in (STUDENT, CRITIC):
        draws = Draws(0, batch.index, phase.name)
        objective = dmd(tiny_teacher(), student(), **NO_JUDGE)
        with_pictures, without = (objective.loss(phase, models_of(objective), each, draws, 0)[0] for each in (batch, alone))
        assert torch.equal(with_pictures, without)
    for options in ({}, {"inputs": "data", **NO_JUDGE}):
        objective = dmd(tiny_teacher(), student(), **options)
        with pytest.raises(ValueError, match="give data of pictures"):
            objective.loss(CRITIC, models_of(objective), alone, Draws(0, batch.index, "critic"), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial_weight": 0.0}, "give both or neither"),
        ({"range": (0.5, 0.2)}, "must rise"),
        ({"range": (0.0, 0.9)}, "clean data"),
    ],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DistributionMatchingConfig(**options)
    assert Critic(nn.Identity(), None, ()).heads is None
