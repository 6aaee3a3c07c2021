"""Score identity distillation: its estimate of the divergence, the gradient through both scores, guidance of the critic."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.distances import level_weight
from distill.losses.loss_weighting import EDM
from distill.networks.discriminator import ChannelMean, PooledHeads, block_features
from distill.networks.lora.overlay import LoraNetwork
from distill.objectives.dmd2 import how_far
from distill.objectives.sid import ScoreIdentityConfig, ScoreIdentityObjective, identity_loss
from distill.types import Draws
from samplers.denoiser import Context
from samplers.path import RectifiedFlow
from tests.distill.students import STUDENT, VP, Source, batch_of, exact_teacher, latents, models_of, tiny_teacher
from tests.distill.test_distribution_matching import CPU, CRITIC, Learning, Spread, student


def sid(given, network, /, **changes) -> ScoreIdentityObjective:
    own = {"start": "network", "steps": 2, "teacher": {"guidance_scale": 3.0}, **changes}
    return ScoreIdentityObjective(ScoreIdentityConfig(**own), network, None, given)


def gaussians(**changes):
    """(the objective of a teacher that is one Gaussian, its student, its critic): the critic knows the student exactly."""
    teacher = exact_teacher(gaussian=True)
    like = teacher.network.oracle.mean
    one = Spread(torch.full_like(like, 0.4), torch.full_like(like, 1.5))
    objective = sid(teacher, one, **{"teacher": {}, "noisiest_share": 1.0, "range": (0.1, 0.9), **changes})
    critic = Learning(objective.path, one.mean.detach(), one.log_std.detach().exp())
    objective.roles["critic"].network.network = critic
    return objective, one, critic


def linear(mean: Tensor, std: Tensor, level) -> tuple[Tensor, Tensor]:
    """(a, b) of the denoised mean a x + b of a Gaussian at a level, by hand."""
    alpha, sigma = (v.view(-1, 1, 1, 1) for v in (level.alpha, level.sigma))
    a = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
    return a, mean - a * alpha * mean


def test_the_loss_is_its_formula_pixel_by_pixel():
    g = torch.Generator().manual_seed(0)
    x0, fake, real = (torch.randn(3, 2, 2, 2, generator=g, dtype=torch.float64) for _ in range(3))
    for alpha in (0.0, 1.0, 1.2):
        for row, found in enumerate(identity_loss(x0, fake, real, alpha).tolist()):
            terms = zip(*(v[row].flatten().tolist() for v in (x0, fake, real)), strict=True)
            # the other way to write it: (1 - alpha) (real - fake)^2 + (real - fake) (fake - x0)
            each = [(1 - alpha) * (r - f) ** 2 + (r - f) * (f - x) for x, f, r in terms]
            assert found == pytest.approx(sum(each) / 8, rel=1e-12)


def test_an_exact_critic_makes_both_estimates_the_divergence():
    """E (real - fake)(real - x0) is E (real - fake)^2, so the loss is 1 - alpha of it; with x0 in the place of fake, or with
    fake in that of x0, it would be another number."""
    objective, one, critic = gaussians()
    truth, count = objective.teacher.network.oracle, 40000
    z, noise = (torch.randn(count, 2, 2, 2, generator=torch.Generator().manual_seed(s)).double() for s in (1, 2))
    for t in (0.3, 0.7):
        level = objective.path(torch.full((count,), t, dtype=torch.float64))
        x0 = one(z, None, None).detach()
        x_t = level.mix(x0, noise)
        fake, real = critic(x_t, level.t, None).detach(), truth(x_t, level, None, Context()).x0
        divergence = (real - fake).square().mean().item()
        for alpha in (0.0, 0.5, 1.0, 1.2):
            found = identity_loss(x0, fake, real, alpha).mean().item()
            assert found == pytest.approx((1 - alpha) * divergence, abs=0.02 * divergence)
        assert ((real - x0) * (real - x0)).mean().item() > 1.05 * divergence


def test_the_gradient_passes_through_the_teacher_and_the_critic():
    """In the student's mean, by hand for denoisers that are a x + b; with scores that let nothing through it is another."""
    objective, one, _ = gaussians(alpha=1.2)
    truth, batch = objective.teacher.network.oracle, batch_of(16)
    draws = Draws(0, batch.index, "student")
    objective.loss(STUDENT, models_of(objective), batch, draws, 0)[0].backward()
    found = one.mean.grad
    level = objective.compared(draws, CPU)
    with torch.no_grad():
        x0 = objective.rollout(one, batch, draws)[0]
        x_t = level.mix(x0, draws.normal_like("noise", x0))
        a_fake, b_fake = linear(one.mean, one.log_std.exp(), level)
        a_real, b_real = linear(truth.mean, truth.std, level)
        gap, rest = (a_real - a_fake) * x_t + b_real - b_fake, a_real * x_t + b_real - x0
        far, alpha = rest.abs().mean((1, 2, 3), keepdim=True), level.alpha.view(-1, 1, 1, 1)
        slope = (a_real - a_fake) * alpha
        by_hand = (slope * (rest - 1.2 * gap) + gap * (a_real * alpha - 1 - 1.2 * slope)) / far / 8
        nothing_through = gap * -1 / far / 8
    torch.testing.assert_close(found, by_hand.mean(0), atol=1e-9, rtol=1e-5)
    assert (found - nothing_through.mean(0)).abs().max() > 0.1 * found.abs().max()


def test_a_critic_that_agrees_with_the_teacher_moves_nothing():
    objective, one, critic = gaussians()
    truth, batch = objective.teacher.network.oracle, batch_of(8)
    with torch.no_grad():
        critic.mean.copy_(truth.mean)
        critic.log_std.copy_(truth.std.log())
    loss, _ = objective.loss(STUDENT, models_of(objective), batch, Draws(0, batch.index, "student"), 0)
    loss.backward()
    assert loss.abs() < 1e-12 and max(p.grad.abs().max().item() for p in one.parameters()) < 1e-9


@pytest.mark.parametrize("alpha", [1.0, 1.2])
def test_the_student_comes_to_the_teacher(alpha):
    objective, one, critic = gaussians(alpha=alpha)
    models, truth = models_of(objective), objective.teacher.network.oracle
    networks, rates = {"student": one, "critic": critic}, {"student": 0.02, "critic": 0.05}
    optimizers = {name: torch.optim.Adam(networks[name].parameters(), betas=(0.5, 0.99)) for name in rates}
    for step in range(300):
        batch = batch_of(32, first=32 * step)
        for phase in (STUDENT, CRITIC, CRITIC):
            optimizer = optimizers[phase.role]
            optimizer.zero_grad()
            objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), step)[0].backward()
            optimizer.param_groups[0]["lr"] = rates[phase.role] * min(1.0, 2 - step / 150)
            optimizer.step()
    assert (truth.mean - 0.4).abs().max() > 0.5 and (truth.std - 1.5).abs().max() > 0.5  # it had somewhere to go
    torch.testing.assert_close(one.mean.detach(), truth.mean, atol=0.15, rtol=0)
    torch.testing.assert_close(one.log_std.detach().exp(), truth.std, atol=0.15, rtol=0)


@pytest.mark.parametrize("kappa", [0.0, -1.0, 1.5])
def test_the_critic_is_guided_as_configured_in_either_phase(kappa):
    """0 is the critic without its condition (Zero-CFG), below 0 it turns away from it (Anti-CFG)."""
    objective = sid(tiny_teacher(), student(), alpha=1.0, critic_guidance=kappa, training_guidance=kappa, drop_label=0.0)
    batch, models = latents(), models_of(objective)

    def critic_x0(x_t, level, condition):
        cond, null = (objective.judge(models["critic"], x_t, level, c, 3.0)[0].x0 for c in (condition, condition.null()))
        return null + kappa * (cond - null)

    with torch.no_grad():
        draws = Draws(0, batch.index, "student")
        loss, _ = objective.loss(STUDENT, models, batch, draws, 0)
        x0, _, condition, scale = objective.rollout(models["student"], batch, draws)
        level = objective.compared(draws, CPU)
        x_t = level.mix(x0, draws.normal_like("noise", x0))
        real = objective.teacher_predict(models, x_t, level, condition, scale).x0
        fake = critic_x0(x_t, level, condition)
        wanted = identity_loss(x0, fake, real, 1.0) / how_far(x0, real)
        torch.testing.assert_close(loss, wanted.mean(), atol=1e-6, rtol=1e-4)

        draws = Draws(0, batch.index, "critic")
        _, logged = objective.loss(CRITIC, models, batch, draws, 0)
        x0, _, condition, _ = objective.rollout(models["student"], batch, draws)
        level = objective.trained(draws, CPU)
        x_t = level.mix(x0, draws.normal_like("noise", x0))
        error = (critic_x0(x_t, level, condition) - x0).square().mean()
        torch.testing.assert_close(logged["error"], error, atol=1e-6, rtol=1e-4)


def test_the_critic_trains_at_levels_of_its_own():
    """EDM's, where the student's follow the density of its grid."""
    time = {"type": "karras", "low": 0.002, "high": 24.4}
    objective = sid(
        tiny_teacher("uvit", VP, "v"), student("uvit"), time=time, critic_time={"type": "log_normal", "mean": -1.2, "std": 1.2}
    )
    draws = Draws(0, torch.arange(2000), "student")
    ratio = {name: (-levels.logsnr).median().item() for name, levels in (
        ("student", objective.compared(draws, CPU)), ("critic", objective.trained(draws, CPU)),
    )}  # fmt: skip
    middle = ((0.002 ** (1 / 7) + 24.4 ** (1 / 7)) / 2) ** 7
    assert ratio["critic"] == pytest.approx(-1.2, abs=0.1)
    assert ratio["student"] == pytest.approx(torch.tensor(middle).log().item(), abs=0.2)
    assert sid(tiny_teacher(), student()).trained(draws, CPU).t.mean().item() == pytest.approx(0.5, abs=0.02)


def test_edms_weight_is_that_of_its_diffusion_loss():
    level = RectifiedFlow()(torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64))
    snr = (level.alpha / level.sigma) ** 2
    torch.testing.assert_close(level_weight("edm", level), EDM(type="edm", sigma_data=0.5).on_x0(snr, lambda: snr))


ADVERSARIAL = {"adversarial_weight": 0.3, "discriminator_weight": 0.2}


def test_the_critic_itself_is_the_discriminator():
    """The logits are the means over channels of the middle's tokens; the losses are counted as those beside them."""
    objective = sid(tiny_teacher(), student(), weight="edm", max_weight=30.0, drop_label=0.0, **ADVERSARIAL)
    critic, models, batch = objective.roles["critic"].network, models_of(objective), latents()
    assert isinstance(critic.heads, ChannelMean) and not list(critic.heads.parameters()) and critic.blocks == (1,)

    def logits_of(x, level, condition):
        denoiser = objective.teacher.denoiser(critic.network)
        return block_features(denoiser, x, level, condition, (1,))[0].mean(2)

    with torch.no_grad():
        draws = Draws(0, batch.index, "critic")
        loss, logged = objective.loss(CRITIC, models, batch, draws, 0)
        x0, data, condition, _ = objective.rollout(models["student"], batch, draws)
        level = objective.trained(draws, CPU)
        seen = [
            logits_of(level.mix(picture, draws.normal(name, (2, 4, 4))), level, condition)
            for picture, name in ((x0, "noise"), (data, "real noise"))
        ]
        assert seen[0].shape == (4, 4)
        weight = ((level.alpha / level.sigma) ** 2 + 4).clamp(max=30.0)
        bce = sum(
            F.binary_cross_entropy_with_logits(on, torch.full_like(on, float(real)), reduction="none").mean(1)
            for on, real in zip(seen, (False, True), strict=True)
        )
        expected = (weight * bce / 2).mean()
        torch.testing.assert_close(logged["loss_disc"].double(), expected, atol=1e-5, rtol=1e-4)
        fake = objective.judge(critic, level.mix(x0, draws.normal("noise", (2, 4, 4))), level, condition, 3.0)[0].x0
        denoising = (weight * (fake - x0).square().flatten(1).mean(1)).mean()
        torch.testing.assert_close(loss.double(), denoising + 0.2 * expected, atol=1e-4, rtol=1e-4)

        draws = Draws(0, batch.index, "student")
        _, logged = objective.loss(STUDENT, models, batch, draws, 0)
        x0, _, condition, scale = objective.rollout(models["student"], batch, draws)
        level = objective.compared(draws, CPU)
        x_t = level.mix(x0, draws.normal_like("noise", x0))
        far = how_far(x0, objective.teacher_predict(models, x_t, level, condition, scale).x0)
        wanted = (F.softplus(-logits_of(x_t, level, condition)).mean(1) / far).mean()
        torch.testing.assert_close(logged["adversarial"], wanted, atol=1e-5, rtol=1e-4)


def test_each_network_learns_in_its_own_phase_and_heads_may_be_had():
    objective = sid(tiny_teacher(), student(), judge="heads", critic_guidance=1.5, training_guidance=1.5, **ADVERSARIAL)
    assert isinstance(objective.roles["critic"].network.heads, PooledHeads)
    batch, models = latents(), models_of(objective)
    for phase, idle in ((STUDENT, "critic"), (CRITIC, "student")):
        for network in models.values():
            network.zero_grad(set_to_none=True)
        objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), 0)[0].backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in models[phase.role].parameters())
        assert all(p.grad is None for name in (idle, "teacher") for p in models[name].parameters())


def test_a_lora_of_each_on_the_teachers_weights():
    objective = sid(tiny_teacher(), nn.Identity(), start="teacher", lora={"rank": 2}, **ADVERSARIAL)
    critic = objective.roles["critic"].network
    assert isinstance(critic.network, LoraNetwork) and critic.network.base is objective.teacher.network
    batch, models = Source().batch(range(4)), models_of(objective)
    for phase in (STUDENT, CRITIC):
        objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), 0)[0].backward()
        assert all(p.grad is not None for p in models[phase.role].parameters())
    assert all(p.grad is None for p in objective.teacher.network.parameters())
