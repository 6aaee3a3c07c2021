"""Forms of distribution matching: in two halves (decoupled DMD), in any f-divergence (f-distill)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.objectives.decoupled_dmd import DecoupledMatchingConfig, DecoupledMatchingObjective
from distill.objectives.dmd2 import DistributionMatchingConfig, DistributionMatchingObjective, how_far
from distill.objectives.f_distill import DivergenceConfig, DivergenceObjective, density_ratio, mean_by_level, weight_of
from distill.types import Draws
from samplers.denoiser import Context
from tests.distill.students import STUDENT, latents, models_of, tiny_teacher
from tests.distill.test_distribution_matching import CPU, CRITIC, student
from tests.gen.conftest import randomise

FORMS = {
    "decoupled": (DecoupledMatchingConfig, DecoupledMatchingObjective),
    "divergence": (DivergenceConfig, DivergenceObjective),
    "dmd": (DistributionMatchingConfig, DistributionMatchingObjective),
}


def form(kind: str, **changes):
    config, objective = FORMS[kind]
    own = {"start": "network", "steps": 4, "teacher": {"guidance_scale": 3.0}, "drop_label": 0.0, **changes}
    made = objective(config(**own), student(), None, tiny_teacher())
    critic = made.roles["critic"].network
    randomise(critic.network, 9)  # not the teacher any more
    if critic.heads is not None:
        randomise(critic.heads, 3)
    return made


def gradients(objective, seed: int = 0, count: int = 4) -> list[Tensor]:
    batch, models = latents(count), models_of(objective)
    loss, _ = objective.loss(STUDENT, models, batch, Draws(seed, batch.index, "student"), 0)
    loss.backward()
    return [p.grad for p in models["student"].parameters() if p.grad is not None]


# ---- decoupled DMD ----

NO_JUDGE = {"adversarial_weight": 0.0, "discriminator_weight": 0.0}


def test_one_level_for_both_halves_is_dmd():
    for decoupled, plain in zip(gradients(form("decoupled", levels="shared")), gradients(form("dmd", **NO_JUDGE)), strict=True):
        torch.testing.assert_close(decoupled, plain, atol=1e-6 * plain.abs().max().item() + 1e-9, rtol=1e-3)


def test_without_guidance_there_is_only_matching_whatever_the_levels():
    options = {"teacher": {"guidance_scale": 1.0}}
    plain = gradients(form("dmd", **options, **NO_JUDGE))
    for levels in ("full", "hybrid"):
        for found, wanted in zip(gradients(form("decoupled", levels=levels, **options)), plain, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-6 * wanted.abs().max().item() + 1e-9, rtol=1e-3)


@pytest.mark.parametrize("levels", ["full", "constrained", "hybrid"])
def test_each_half_is_taken_at_its_own_level(levels):
    """The direction in which each picture is moved, from separate calls of the networks."""
    objective = form("decoupled", levels=levels)
    models, batch = models_of(objective), latents(6)
    draws = Draws(0, batch.index, "student")
    seen = []
    objective.matched, original = lambda m, s, d: seen.append((s, original(m, s, d))) or seen[-1][1], objective.matched
    objective.loss(STUDENT, models, batch, draws, 0)
    compared, error = seen[0]
    (found,) = torch.autograd.grad(error.sum(), compared.x0)
    x0, condition = compared.x0.detach(), objective.condition(batch, CPU)
    teacher = objective.teacher.denoiser(objective.teacher.network)
    level, own = objective.compared(draws, CPU), objective.guided_at(draws, CPU)
    assert (level.t != own.t).any()

    def guidance(noised, at):
        cond, null = (teacher(noised, at, c, Context()).x0 for c in (condition, condition.null()))
        return cond, null + 3 * (cond - null)

    with torch.no_grad():
        x_dm, x_ca = level.mix(x0, draws.normal_like("noise", x0)), own.mix(x0, draws.normal_like("guidance noise", x0))
        fake = objective.judge(models["critic"], x_dm, level, condition, 3.0)[0].x0
        cond, guided = guidance(x_dm, level)
        far = how_far(x0, guided)[:, None, None, None]
        cond_ca, guided_ca = guidance(x_ca, own)
        far_ca = how_far(x0, guided_ca)[:, None, None, None]
        direction = (fake - cond) / far - (guided_ca - cond_ca) / far_ca
    torch.testing.assert_close(found, direction / 32, atol=1e-6, rtol=1e-3)


def test_guidance_keeps_below_the_level_that_the_student_starts_from():
    draws = Draws(0, torch.arange(500), "student")
    within = {levels: form("decoupled", levels=levels) for levels in ("full", "constrained", "hybrid")}
    start = within["hybrid"].levels[within["hybrid"].start(draws, CPU)].t
    matching = {levels: made.compared(draws, CPU).t for levels, made in within.items()}
    guidance = {levels: made.guided_at(draws, CPU).t for levels, made in within.items()}
    for bounded in (matching["constrained"], guidance["constrained"], guidance["hybrid"]):
        assert (bounded <= start + 1e-12).all() and bounded.min() >= 0.02
        share = (bounded - 0.02) / (start - 0.02)
        assert share.mean().item() == pytest.approx(0.49, abs=0.04)  # of what is left, as the levels are distributed
    for free in (matching["full"], matching["hybrid"], guidance["full"]):
        assert (free > start).any() and free.mean().item() == pytest.approx(0.5, abs=0.04)
    for made in within.values():  # and the critic knows them all
        trained = made.trained(draws, CPU).t
        assert (trained > start).any()


# ---- f-distill ----

# f with the divergence E_q f(p / q)
F_OF = {
    "reverse_kl": lambda r: -r.log(),
    "forward_kl": lambda r: r * r.log(),
    "js": lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
    "softened_rkl": lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
    "squared_hellinger": lambda r: 4 * (1 - r.sqrt()),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "neyman": lambda r: (1 / r + r - 2) / 2,
}


@pytest.mark.parametrize("name", F_OF)
def test_the_weight_is_the_second_derivative_of_f_times_the_ratio_squared(name):
    r = torch.linspace(0.1, 20, 50, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(F_OF[name](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r) if first.requires_grad else (torch.zeros_like(r),)
    torch.testing.assert_close(weight_of(name, r.detach()), second * r.detach() ** 2)
    assert F_OF[name](torch.ones(1).double()).abs() < 1e-12  # equal distributions are no distance apart


@pytest.mark.parametrize("name", F_OF)
def test_the_weighted_difference_of_scores_is_the_divergences_gradient(name):
    """Gaussians on a line, by integrals: d D_f / d (mean, deviation) of the student is E_q h(r) (s_q - s_p) dx / d(.)."""
    x = torch.linspace(-14, 14, 40001, dtype=torch.float64)
    step = x[1] - x[0]
    p_mean, p_std = 0.4, 1.2

    def density(mean, std):
        return torch.exp(-0.5 * ((x - mean) / std) ** 2) / (std * (2 * torch.pi) ** 0.5)

    q = torch.tensor([-0.3, 1.0], dtype=torch.float64, requires_grad=True)  # lighter tails, so that every integral exists
    if name in ("forward_kl", "jeffreys", "squared_hellinger", "js"):
        p_std = 0.9
    p = density(torch.tensor(p_mean).double(), torch.tensor(p_std).double())
    values = density(*q)
    inside = (values > 1e-280) & (p > 1e-280)
    (exact,) = torch.autograd.grad((values[inside] * F_OF[name](p[inside] / values[inside])).sum() * step, q)
    mean, std = q.detach()
    ratio = (p / values.detach())[inside]
    at = x[inside]
    gap = -(at - mean) / std**2 + (at - p_mean) / p_std**2  # s_q - s_p
    weighted = weight_of(name, ratio) * gap * values.detach()[inside] * step
    found = torch.stack([weighted.sum(), (weighted * (at - mean) / std).sum()])
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-5)
    if name != "reverse_kl":
        plain = gap * values.detach()[inside] * step
        assert (torch.stack([plain.sum(), (plain * (at - mean) / std).sum()]) - exact).abs().max() > 1e-2


def test_the_reverse_divergence_is_dmd2_to_the_bit():
    for found, wanted in zip(gradients(form("divergence", divergence="reverse_kl")), gradients(form("dmd")), strict=True):
        assert torch.equal(found, wanted)


def test_samples_count_by_the_discriminators_ratio():
    """Ratios within the bounds, over their mean of the same part of the clock, and weights of mean 1."""
    objective = form("divergence", divergence="js", bins=2, bounds=(0.5, 3.0))
    models, batch = models_of(objective), latents(8)
    with torch.no_grad():
        objective.roles["critic"].network.heads.heads[0][-1].weight.mul_(30)
    draws = Draws(0, batch.index, "student")
    seen = []
    objective.matched, original = lambda m, s, d: seen.append((s, original(m, s, d))) or seen[-1][1], objective.matched
    with torch.no_grad():
        objective.loss(STUDENT, models, batch, draws, 0)
    compared, weighted = seen[0]
    far = how_far(compared.x0, compared.real.x0)[:, None, None, None]
    plain = 0.5 * ((compared.fake - compared.real.x0) / far).square().flatten(1).mean(1).double()
    ratio = compared.logits.mean(1).double().exp().clamp(0.5, 3.0)
    assert ratio.min() < 0.9 * ratio.max()
    late = compared.level.t >= 0.5
    assert 0 < late.sum() < 8
    for part in (late, ~late):
        ratio[part] /= ratio[part].mean()
    weight = ratio / (ratio + 1)
    torch.testing.assert_close(weighted.double(), weight / weight.mean() * plain, atol=1e-6, rtol=1e-4)


def test_ratios_and_their_means():
    logits = torch.tensor([[0.0, 2.0], [-90.0, -90.0], [50.0, 50.0]])
    torch.testing.assert_close(density_ratio(logits, (0.1, 20.0)), torch.tensor([1.0, -1e9, 1e9]).double().exp().clamp(0.1, 20))
    ratio, share = torch.tensor([1.0, 3.0, 5.0]).double(), torch.tensor([0.05, 0.09, 1.0]).double()
    assert mean_by_level(ratio, share, 10).tolist() == [2.0, 2.0, 5.0]


def test_a_divergence_needs_its_ratio():
    with pytest.raises(ValueError, match="adversarial_weight"):
        DivergenceConfig(divergence="js", adversarial_weight=0, discriminator_weight=0)
    with pytest.raises(ValueError, match="must be above 0 and rise"):
        DivergenceConfig(bounds=(2.0, 1.0))
    assert DivergenceConfig(divergence="reverse_kl", adversarial_weight=0, discriminator_weight=0).bins == 10
    assert form("divergence").phases(0)[1] == CRITIC
