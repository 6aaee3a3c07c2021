"""NitroFusion: what the heads of a pool compute, which of them a step asks, and which begin anew."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks.discriminator import block_features
from distill.networks.head_pool import KINDS, HeadPool
from distill.objectives.bases.student_sampling import sample_as_teacher
from distill.objectives.denoising_diffusion_gan import DenoisingDiffusionGanConfig
from distill.objectives.nitro_fusion import NitroFusionConfig, NitroFusionObjective
from distill.objectives.ufogen import UfogenConfig
from distill.types import Draws, Phase
from samplers.noise import fold
from tests.distill.students import FLOW, STUDENT, VP, latents, models_of, tiny_teacher
from tests.gen.conftest import randomise

JUDGE = Phase("discriminator", "discriminator")
CASES = pytest.mark.parametrize(("network", "path", "kind"), [("dit", FLOW, "flow"), ("uvit", VP, "v")])


def nitro(teacher, **changes) -> NitroFusionObjective:
    own = {"teacher": {"steps": 3, "guidance_scale": 2.0}, "members": 3, "asked": 2, "hidden": 5, **changes}
    objective = NitroFusionObjective(NitroFusionConfig(**own), nn.Identity(), None, teacher)
    randomise(objective.roles["student"].network, 3)
    randomise(objective.pool, 4)
    return objective


def judged_one_by_one(pool: HeadPool, told: list[Tensor], untold: list[Tensor], asked: Tensor) -> list[list[Tensor]]:
    """For every head that is asked its logits, one number for whole pictures, as a small network each."""
    found = []
    for block, weights in enumerate(pool.blocks):
        for (whole, conditional), numbers in zip(KINDS, asked.tolist(), strict=True):
            for number in numbers:
                x = (told if conditional else untold)[block]
                x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
                x = x.mean(1) if whole else x
                h = F.silu(x @ weights["first"][number] + weights["bias"][number])
                found.append((h @ weights["last"][number] + weights["shift"][number]).unsqueeze(-1).flatten(1))
    return found


@CASES
@pytest.mark.parametrize("real", ["teacher", "data"])
def test_losses_are_the_hinge_of_every_head_alike(network, path, kind, real):
    teacher = tiny_teacher(network, path, kind)
    objective = nitro(teacher, real=real)
    batch, models = latents(), models_of(objective)
    draws, step = Draws(0, batch.index, "discriminator"), 7
    level, asked = objective.pool.asked(fold(0, "asked", step), 2)
    at = teacher.path(torch.full((4,), objective.config.judged[level] * teacher.path.t_noise).double())
    x0, data, condition, _ = objective.rollout(models["student"], batch, draws)
    if real == "teacher":

        def predict(x, level, condition):
            return objective.teacher_predict(models, x, level, condition, 2.0)

        noise = draws.normal("teacher's eps", (2, 4, 4))
        data = sample_as_teacher(predict, teacher.path, objective.config.teacher, noise, condition, 3)
    logits = {}
    for name, clean in (("real", data), ("fake", x0)):
        x_t = at.mix(clean, draws.normal(name, (2, 4, 4)))
        denoiser = teacher.denoiser(teacher.network)
        features = [block_features(denoiser, x_t, at, c, objective.blocks) for c in (condition, condition.null())]
        logits[name] = judged_one_by_one(objective.pool, *features, asked)
    count = len(logits["real"])
    assert count == len(objective.blocks) * len(KINDS) * 2
    hinge = sum(F.relu(1 - a).mean() + F.relu(1 + b).mean() for a, b in zip(*logits.values(), strict=True)) / count
    torch.testing.assert_close(objective.loss(JUDGE, models, batch, draws, step)[0], hinge, rtol=1e-4, atol=1e-5)
    fooling = -sum(b.mean() for b in logits["fake"]) / count
    torch.testing.assert_close(objective.loss(STUDENT, models, batch, draws, step)[0], fooling, rtol=1e-4, atol=1e-5)


def test_a_step_teaches_the_heads_of_one_level_that_it_asks_and_no_others():
    objective = nitro(tiny_teacher())
    batch, models = latents(), models_of(objective)
    levels = set()
    for step in range(30):
        level, asked = objective.pool.asked(fold(0, "asked", step), 2)
        levels.add(level)
        kinds = asked // 3  # members
        assert torch.equal(kinds, (level * 3 + torch.arange(3))[:, None].expand(-1, 2))
        assert (asked[:, 0] != asked[:, 1]).all()
    assert levels == {0, 1, 2, 3}
    loss, _ = objective.loss(JUDGE, models, batch, Draws(0, batch.index, "discriminator"), 29)
    loss.backward()
    for block in objective.pool.blocks:
        taught = {row for row in range(len(block["last"])) if block["last"].grad[row].abs().sum() > 0}
        assert taught and taught <= set(asked.flatten().tolist())


def test_so_many_heads_begin_anew_as_their_share_says_and_the_others_stay_to_the_bit():
    pool = randomise(HeadPool((4, 6), 4, 3, 5), 1)
    assert pool.size == 2 * 4 * 3 * 3
    total, ever = 0, set()
    for step in range(100):
        before = [{name: value.detach().clone() for name, value in block.items()} for block in pool.blocks]
        chosen = pool.refresh(step, 0.05)
        total += len(chosen)
        ever |= set(chosen.tolist())
        assert len(chosen) in (3, 4)  # 3.6 on average
        for number, (block, old) in enumerate(zip(pool.blocks, before, strict=True)):
            for name, value in block.items():
                for row in range(pool.each):
                    same = torch.equal(value[row], old[name][row])
                    anew = number * pool.each + row in chosen
                    assert same != anew or (anew and name in ("bias", "shift")), (step, name, row)
                    if anew and name in ("bias", "shift"):
                        assert not value[row].any()
    assert total == 360 and len(ever) == pool.size
    first, again = (HeadPool((4, 6), 4, 3, 5) for _ in range(2))
    assert torch.equal(first.refresh(3, 0.3), again.refresh(3, 0.3))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


def test_a_new_head_is_no_copy_of_an_earlier_one():
    pool = HeadPool((4,), 1, 1, 5)
    seen = [pool.blocks[0]["first"].detach().clone()]
    for step in range(3):
        pool.refresh(step, 1.0)
        seen.append(pool.blocks[0]["first"].detach().clone())
    assert all(not torch.equal(a, b) for n, a in enumerate(seen) for b in seen[:n])


def test_the_pool_of_a_run_is_refreshed_after_each_step():
    objective = nitro(tiny_teacher(), refresh=0.1)
    old = [value.detach().clone() for value in objective.pool.parameters()]
    objective.after_step(0)
    assert any(not torch.equal(a, b) for a, b in zip(old, objective.pool.parameters(), strict=True))
    still = nitro(tiny_teacher(), refresh=0.0)
    old = [value.detach().clone() for value in still.pool.parameters()]
    still.after_step(0)
    assert all(torch.equal(a, b) for a, b in zip(old, still.pool.parameters(), strict=True))


@pytest.mark.parametrize("config", [NitroFusionConfig, UfogenConfig, DenoisingDiffusionGanConfig])
def test_an_average_that_no_target_would_be_made_of_is_refused(config):
    with pytest.raises(ValueError, match="target_ema"):
        config(target_ema=0.9)


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="asked 5 is more than the 4 members"):
        NitroFusionConfig(asked=5)
    with pytest.raises(ValueError, match="must be shares of the clock"):
        NitroFusionConfig(judged=(0.0, 0.5))
