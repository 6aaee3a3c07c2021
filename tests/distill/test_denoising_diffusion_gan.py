"""Denoising diffusion GANs: pairs of the noising process, the saddle at the exact posterior, how the generator is sampled."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses import transitions
from distill.networks.transition_discriminator import TransitionDiscriminator
from distill.objectives.denoising_diffusion_gan import DenoisingDiffusionGanConfig, DenoisingDiffusionGanObjective
from distill.types import Draws, Phase
from gen.nn.registry import build
from samplers.denoiser import Condition
from tests.distill.gaussian_generators import MEAN, STD, Family, gaussian_batch, gaussian_teacher, log_ratio, wide
from tests.distill.students import FLOW, SIZES, STUDENT, VP, latents, models_of, tiny_teacher
from tests.gen.conftest import randomise

JUDGE = Phase("discriminator", "discriminator")


def gan(teacher, network: nn.Module, **changes) -> DenoisingDiffusionGanObjective:
    own = {"start": "network", "steps": 3, "widths": (4, 8), **changes}
    return DenoisingDiffusionGanObjective(DenoisingDiffusionGanConfig(**own), network, None, teacher)


class BestJudge(nn.Module):
    """log p(x_t | x_s) of the noising process less that of a generator, by hand on a rectified flow; of three steps."""

    def __init__(self, family: Family, steps: int = 3):
        super().__init__()
        self.family, self.steps = family, steps

    def forward(self, x_t: Tensor, x_s: Tensor, clock: Tensor, condition) -> Tensor:
        path = self.family.path
        s, t = path(clock.double()), path((clock.double() - 1 / self.steps).clamp(min=0))
        alpha_s, sigma_s, alpha_t, sigma_t = (wide(v) for v in (s.alpha, s.sigma, t.alpha, t.sigma))
        ratio = alpha_s / alpha_t
        # q(x_t | x_s, x0) = N(c0 x0 + c1 x_s, variance), of the product of two normal distributions
        added = sigma_s**2 - ratio**2 * sigma_t**2
        c0, c1, variance = alpha_t * added / sigma_s**2, ratio * sigma_t**2 / sigma_s**2, added * sigma_t**2 / sigma_s**2
        with torch.no_grad():
            pairs = [
                (c0 * mean + c1 * x_s, (c0**2 * deviation**2 + variance) ** 0.5)
                for mean, deviation in (part.parts(x_s, s) for part in (Family(path), self.family))
            ]
        return log_ratio(x_t, *pairs)[:, None]


def slopes(family: Family, judge: nn.Module) -> dict[str, float]:
    """The gradient of the generator's loss."""
    teacher = gaussian_teacher()
    objective = gan(teacher, family)
    models = {**models_of(objective), "discriminator": judge}
    batch = gaussian_batch(600)
    loss, _ = objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 1)
    family.zero_grad()
    loss.backward()
    return {name: float(value.grad) for name, value in family.named_parameters()}


def test_at_the_best_discriminator_the_exact_posterior_alone_is_a_saddle():
    path = gaussian_teacher().path
    exact = Family(path)
    assert max(map(abs, slopes(exact, BestJudge(exact)).values())) < 1e-9
    for wrong, name, sign in (
        ({"scale": 0.5}, "scale", -1),  # too sure: nearer to the mean of a denoiser
        ({"scale": 1.5}, "scale", 1),
        ({"moved": 0.2}, "moved", 1),
        # x0 is distributed as the data's, and has too little to do with x_s: a discriminator of x0 alone would be content
        ({"share": 0.5}, "share", -1),
    ):
        family = Family(path, **wrong)
        assert sign * slopes(family, BestJudge(family))[name] > 0.01, wrong


def test_a_discriminator_of_x0_alone_is_content_with_a_generator_that_does_not_look_at_x_s():
    """Why pairs are judged."""
    path = gaussian_teacher().path
    family, level = Family(path, share=0.0), path(torch.full((4000,), 0.5).double())
    x0 = gaussian_batch(4000).latents
    latent = torch.randn(4000, 100, generator=torch.Generator().manual_seed(1))
    drawn = family(level.mix(x0, torch.randn_like(x0)), level.t, Condition(extra={"latent": latent}))
    assert abs(drawn.mean() - MEAN) < 0.02 and abs(drawn.std() - STD) < 0.02


def test_pairs_are_those_of_the_noising_process_at_the_grids_levels():
    objective = gan(gaussian_teacher(), Family(gaussian_teacher().path))
    batch = gaussian_batch(2000)
    at = objective.transition(batch, Draws(0, batch.index, "student"))
    levels = torch.stack([at.s.t, at.t.t], 1)
    torch.testing.assert_close(levels.unique(dim=0), torch.tensor([[1, 0], [2, 1], [3, 2]]).double() / 3)
    last = at.t.t == 0
    assert torch.equal(at.x_t[last], batch.latents[last])
    middle = (at.s.t - 2 / 3).abs() < 1e-9
    drawn = objective.step(objective.roles["student"].network, at, Draws(1, batch.index, "student"))
    x_s = at.x_s[middle].flatten()
    variance = (2 / 3) ** 2 * STD**2 + (1 / 3) ** 2
    for x_t in (at.x_t[middle].flatten(), drawn[middle].detach().flatten()):  # and so are those of the exact generator
        # Cov(x_s, x_t) = (alpha_s / alpha_t) Var x_t, as they have the noise of x_t in common; with new noise it would be less
        covariance = ((x_t - x_t.mean()) * (x_s - x_s.mean())).mean()
        assert covariance.item() == pytest.approx(0.5 * variance, rel=0.06)
        assert x_t.var().item() == pytest.approx(variance, rel=0.06)
    assert x_s.var().item() == pytest.approx((1 / 3) ** 2 * STD**2 + (2 / 3) ** 2, rel=0.06)


@pytest.mark.parametrize(("network", "path", "kind"), [("dit", FLOW, "flow"), ("uvit", VP, "v")])
def test_losses_are_the_logistic_ones_of_steps(network, path, kind):
    teacher = tiny_teacher(network, path, kind)
    objective = gan(teacher, nn.Identity(), start="teacher", gradient_penalties=(0.5, 0.0), penalty_every=4)
    student = randomise(objective.roles["student"].network, 3)
    judge = randomise(objective.roles["discriminator"].network, 4)
    batch, models = latents(), models_of(objective)
    draws = Draws(0, batch.index, "discriminator")
    at = objective.transition(batch, draws)
    told = Condition(label=at.condition.label, extra={"latent": draws.normal("latent", (100,))})
    drawn = objective.predict(student, at.x_s, at.s, told).x0
    mean, deviation = transitions.ddim(drawn, at.x_s, at.s, at.t, 1.0)
    fake = mean + wide(deviation) * draws.normal("posterior", (2, 4, 4))
    clock = at.s.t / teacher.path.t_noise
    real_x = at.x_t.clone().requires_grad_()
    on_real = judge(real_x, at.x_s, clock.float(), at.condition)
    on_fake = judge(fake.float(), at.x_s, clock.float(), at.condition)
    (gradient,) = torch.autograd.grad(on_real.sum(), real_x)
    plain = F.softplus(-on_real).mean() + F.softplus(on_fake).mean()
    for step, penalty in ((3, 0.0), (4, 0.25 * gradient.square().flatten(1).sum(1).mean())):
        found, logged = objective.loss(JUDGE, models, batch, draws, step)
        torch.testing.assert_close(found, plain + penalty, rtol=1e-4, atol=1e-6)
        assert ("r1" in logged) == bool(penalty)
    found, _ = objective.loss(STUDENT, models, batch, draws, 0)
    torch.testing.assert_close(found, F.softplus(-on_fake).mean(), rtol=1e-4, atol=1e-6)


def test_the_exact_generator_draws_the_data_in_three_steps_and_one_without_noise_does_not():
    teacher, spreads = gaussian_teacher(), {}
    noise = torch.randn(300, 2, 2, 2, generator=torch.Generator().manual_seed(2)).double()
    for scale in (1.0, 0.0):
        family = Family(teacher.path, scale=scale)
        drawn = gan(teacher, family).draw(family, noise, Condition(), range(300))
        spreads[scale] = drawn.std().item()
        assert abs(drawn.mean().item() - MEAN) < 0.04
    assert spreads[1.0] == pytest.approx(STD, rel=0.05)
    assert spreads[0.0] < 0.9 * STD


def test_the_discriminator_is_told_level_label_and_prompt():
    judge = randomise(TransitionDiscriminator(2, (4, 8), classes=3, prompt=5), 1)
    x, y = torch.randn(2, 3, 2, 6, 5, generator=torch.Generator().manual_seed(0)).unbind(0)
    clock, label = torch.tensor([0.2, 0.5, 1.0]), torch.tensor([0, 2, -1])
    tokens = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1))
    base = judge(x, y, clock, Condition(label=label, tokens=tokens))
    assert base.shape == (3, 1)
    changed = (
        judge(x, y, clock + 0.1, Condition(label=label, tokens=tokens)),
        judge(x, y, clock, Condition(label=label.roll(1), tokens=tokens)),
        judge(x, y, clock, Condition(label=label, tokens=tokens.roll(1, 0))),
        judge(x, y.roll(1, 0), clock, Condition(label=label, tokens=tokens)),
        judge(x.roll(1, 0), y, clock, Condition(label=label, tokens=tokens)),
    )
    for other in changed:
        assert ((other - base).abs() > 1e-5).all()
    for row in range(3):  # a sample is judged by itself
        one = slice(row, row + 1)
        alone = judge(x[one], y[one], clock[one], Condition(label=label, tokens=tokens)[one])
        torch.testing.assert_close(alone, base[one], rtol=1e-4, atol=1e-6)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="a LoRA has no input for the generator's noise"):
        DenoisingDiffusionGanConfig(lora={"rank": 2})
    with pytest.raises(ValueError, match="asks no guided teacher"):
        DenoisingDiffusionGanConfig(teacher={"guidance_scale": 3.0})
    with pytest.raises(ValueError, match=r"set network.scalars to \[latent\]"):
        gan(tiny_teacher(), build({"type": "dit", **SIZES}))
