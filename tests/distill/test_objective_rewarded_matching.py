"""Distribution matching with a reward beside it: SwiftBrush and DMDR."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from distill.networks.lora.overlay import LoraNetwork
from distill.objectives.dmdr import RewardedMatchingConfig, RewardedMatchingObjective, beta_quantile
from distill.objectives.swiftbrush import SwiftBrushConfig, SwiftBrushObjective
from distill.types import Batch, Draws
from gen.nn.registry import build
from samplers.denoiser import Context
from tests.distill.cases import AUTOENCODER
from tests.distill.students import STUDENT, latents, models_of, tiny_teacher
from tests.distill.test_distribution_matching import CPU, CRITIC, student
from tests.gen.conftest import randomise

BRIGHT = {"type": "brightness", "weight": 0.5}
KINDS = {"swiftbrush": (SwiftBrushConfig, SwiftBrushObjective), "dmdr": (RewardedMatchingConfig, RewardedMatchingObjective)}


def method(kind: str, **changes):
    config, objective = KINDS[kind]
    teacher = tiny_teacher()
    torch.manual_seed(3)
    teacher.autoencoder = build({**AUTOENCODER, "channels": 2}).requires_grad_(False)
    own = {"start": "network", "teacher": {"guidance_scale": 3.0}, "critic_lora": {"rank": 2}, "drop_label": 0.0, **changes}
    made = objective(config(**own), student(), None, teacher)
    randomise(made.roles["critic"].network.network.up, 9)  # not the teacher any more
    return made


def test_swiftbrush_moves_by_the_difference_of_noises_times_the_variance():
    objective = method("swiftbrush")
    models, batch = models_of(objective), latents(4)
    draws = Draws(0, batch.index, "student")
    seen = []
    objective.matched, original = lambda m, s, d: seen.append((s, original(m, s, d))) or seen[-1][1], objective.matched
    objective.loss(STUDENT, models, batch, draws, 0)
    compared, error = seen[0]
    (found,) = torch.autograd.grad(error.sum(), compared.x0)
    level, condition = compared.level, objective.condition(batch, CPU)
    x = compared.noised.detach()
    teacher = objective.teacher.denoiser(objective.teacher.network)
    with torch.no_grad():
        cond, null = (teacher(x, level, c, Context()).eps for c in (condition, condition.null()))
        critic = objective.teacher.denoiser(models["critic"].network)(x, level, condition, Context()).eps
    variance = (level.sigma**2).view(-1, 1, 1, 1)
    expected = variance * (null + 3 * (cond - null) - critic) / 32
    torch.testing.assert_close(found.double(), expected.double(), atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_critic_is_a_lora_on_the_teacher_beside_a_student_of_full_weights(kind):
    objective = method(kind)
    critic, models, batch = objective.roles["critic"].network, models_of(objective), latents(4)
    assert isinstance(critic.network, LoraNetwork) and critic.network.base is objective.teacher.network
    assert critic.heads is None and not isinstance(models["student"], LoraNetwork)
    for phase in (STUDENT, CRITIC):
        objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), 0)[0].backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in models[phase.role].parameters())
    assert all(p.grad is None for p in objective.teacher.network.parameters())
    with pytest.raises(ValueError, match="no input for the guidance scale"):
        KINDS[kind][0](embed_guidance=True)


def reward_gradient(objective, batch: Batch, step: int = 0):
    x0 = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss, logged = objective.beside(x0, batch, step)
    return (torch.autograd.grad(loss, x0)[0] if loss.requires_grad else torch.zeros_like(x0)), loss.detach(), logged


def test_only_pictures_with_too_little_of_the_reward_are_asked_for_more():
    """Each on its own; a reward that was cut off from the picture would give no gradient to any."""
    objective, batch = method("swiftbrush", reward=BRIGHT, enough=0.4), latents(4)
    x0 = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = objective.reward(x0, batch)
        pictures = (objective.decode(x0) / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, pictures.mean((1, 2, 3)), atol=0.05, rtol=0)  # of what would be saved
    gradient, loss, logged = reward_gradient(objective, batch)
    lacking = found < objective.config.enough
    assert 0 < lacking.sum() < 4
    assert torch.equal(gradient.flatten(1).abs().amax(1) > 0, lacking)
    expected = (objective.config.enough - found).clamp(min=0).mean()
    torch.testing.assert_close(loss, 0.5 * expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(logged["lacking"], expected, atol=1e-6, rtol=1e-4)


def test_the_clamped_rewards_weight_falls_in_a_line():
    objective, batch = method("swiftbrush", reward=BRIGHT, enough=2.0, reward_steps=10), latents(4)
    losses = [reward_gradient(objective, batch, step)[1].item() for step in (0, 5, 10, 20)]
    assert losses[0] > 0 and losses[1] == pytest.approx(losses[0] / 2) and losses[2:] == [0, 0]


def test_pictures_without_a_prompt_are_not_judged_by_how_they_fit_it():
    objective = method("swiftbrush", reward={"type": "brightness"}, enough=2.0)
    batch = latents(4)
    batch.captions = ["a cat", "", "a dog", ""]
    object.__setattr__(objective.reward, "info", type("Info", (), {"reads_prompts": True, "name": "fit"})())
    gradient, *_ = reward_gradient(objective, batch)
    assert (gradient.flatten(1).abs().amax(1) > 0).tolist() == [True, False, True, False]
    batch.captions = None
    with pytest.raises(ValueError, match="the data have none"):
        objective.beside(torch.zeros(4, 2, 4, 4), batch, 0)


def test_dmdr_raises_the_reward_from_its_step_on():
    objective, batch = method("dmdr", reward=BRIGHT, reward_from=3), latents(4)
    assert reward_gradient(objective, batch, 2)[1] == 0
    gradient, loss, logged = reward_gradient(objective, batch, 3)
    x0 = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loss, -0.5 * objective.reward(x0, batch).mean(), atol=1e-6, rtol=1e-4)
        assert objective.reward(x0 - 0.5 * gradient / gradient.abs().max(), batch).mean() > logged["reward"]


def test_the_teacher_has_a_falling_share_of_the_critics_changes():
    objective = method("dmdr", dynamic_steps=10, critic_share=0.5)
    models, batch = models_of(objective), latents(4)
    lora, condition = models["critic"].network, objective.condition(batch, CPU)
    x, level = batch.latents, objective.path(torch.full((4,), 0.4, dtype=torch.float64))
    assert [round(objective.left(step), 6) for step in (0, 5, 10, 99)] == [1.0, 0.5, 0.0, 0.0]
    found = [objective.judged_real(models, x, level, condition, 3.0, step).x0 for step in (0, 5, 10)]
    for x0, share in zip(found, (0.5, 0.25, 0.0), strict=True):
        network = copy.deepcopy(objective.teacher.network)
        for name in lora.names:
            key = name.replace(".", "/")
            network.get_parameter(f"{name}.weight").data += share * lora.scale * lora.up[key] @ lora.down[key]
        denoiser = objective.teacher.denoiser(network)
        with torch.no_grad():
            cond, null = (denoiser(x, level, c, Context()).x0 for c in (condition, condition.null()))
        torch.testing.assert_close(x0, null + 3 * (cond - null), atol=1e-5, rtol=1e-4)
    assert (found[0] - found[2]).abs().max() > 1e-3
    with pytest.raises(RuntimeError), lora.weakened(0.1):
        raise RuntimeError
    assert lora.scale == 1.0


def test_a_share_of_the_critics_changes_keeps_the_interval_of_guidance():
    guided = {"guidance_scale": 3.0, "guidance_interval": (100.0, 101.0)}  # log-SNR that no level has
    objective = method("dmdr", dynamic_steps=10, critic_share=0.5, teacher=guided)
    models, batch = models_of(objective), latents(4)
    level = objective.path(torch.full((4,), 0.4, dtype=torch.float64))
    real = objective.judged_real(models, batch.latents, level, objective.condition(batch, CPU), 3.0, 0)
    torch.testing.assert_close(real.x0, real.cond.x0)


def test_levels_are_noisy_at_first_and_uniform_at_last():
    u = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    torch.testing.assert_close(beta_quantile(u, 4.0, 1.0), u**0.25, atol=1e-5, rtol=0)
    torch.testing.assert_close(beta_quantile(u, 1.0, 1.5), 1 - (1 - u) ** (1 / 1.5), atol=1e-5, rtol=0)
    torch.testing.assert_close(beta_quantile(u, 1.0, 1.0), u, atol=1e-12, rtol=0)
    objective, draws = method("dmdr", dynamic_steps=10), Draws(0, torch.arange(2000), "student")
    means = [objective.compared(draws, CPU, step).t.mean().item() for step in (0, 5, 10)]
    assert means[0] == pytest.approx(4 / 5.5, abs=0.02) and means[2] == pytest.approx(0.5, abs=0.02)
    assert means[0] > means[1] > means[2]
    with pytest.raises(ValueError, match="at least 1"):
        RewardedMatchingConfig(beta=(0.5, 1.0))


def test_a_lora_student_has_a_critic_of_its_own_size():
    config, made = KINDS["swiftbrush"]
    given = {"lora": {"rank": 4}, "critic_lora": {"rank": 2}, "drop_label": 0.0}
    objective = made(config(**given), nn.Identity(), None, tiny_teacher())
    ranks = [next(iter(objective.roles[role].network.parameters())).shape[0] for role in ("student",)]
    assert ranks == [4] and next(iter(objective.roles["critic"].network.network.down.values())).shape[0] == 2


class Words:
    """A reward that says which words stand before the prompt: brightness for "bright", redness else, times lengths."""

    def __call__(self, images, prompts):
        return torch.stack(
            [len(p) * (one.mean() if p.startswith("bright") else one[0].mean()) for one, p in zip(images, prompts, strict=True)]
        )


def test_dmdr_raises_what_better_words_gain_beyond_worse_ones():
    """(1 + k) r(better. prompt) - r(worse. prompt) by hand, one word each for a whole step; then its hinge."""
    words = {"better": ["bright", "bright light"], "worse": ["dull"], "emphasis": 0.2}
    reward = {"type": "evaluator", "weight": 2.0}
    objective, batch = method("dmdr", reward=reward, **words), latents(4)
    batch.captions = ["a", "bb", "ccc", "dddd"]
    objective.reward.reward = Words()
    x0 = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    pictures = (objective.decode(x0) / 2 + 0.5).clamp(0, 1)
    seen = set()
    for step in range(6):
        found = objective.rewarded(x0, batch, step)
        rows = list(zip(pictures, map(len, batch.captions), found, strict=True))
        sums = [
            sum((1.2 * (len(word) + 2 + n) * p.mean() - (6 + n) * p[0].mean() - one).abs() for p, n, one in rows)
            for word in words["better"]
        ]
        assert min(sums) < 1e-3
        seen.add(int(torch.stack(sums).argmin()))
    assert seen == {0, 1}
    loss, logged = objective.beside(x0, batch, 0)
    found = objective.rewarded(x0, batch, 0)
    torch.testing.assert_close(loss, -2.0 * found.mean())
    torch.testing.assert_close(logged["reward"], found.mean())
    enough = float(found.median())
    hinged = method("dmdr", reward=reward, enough=enough, **words)
    hinged.reward.reward, hinged.teacher = Words(), objective.teacher
    torch.testing.assert_close(hinged.beside(x0, batch, 0)[0], 2.0 * (enough - found).clamp(min=0).mean())
    with pytest.raises(ValueError, match="give both better and worse"):
        method("dmdr", reward=reward, better=["x"])
    with pytest.raises(ValueError, match="a reward that reads them"):
        method("dmdr", reward=BRIGHT, better=["x"], worse=["y"])
