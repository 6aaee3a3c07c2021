"""YOSO: what stands for real, what each loss counts, and the fixed point of a generator that cooperates with itself."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.losses.levels import first_clock
from distill.networks.discriminator import block_features
from distill.objectives.yoso import YosoConfig, YosoObjective
from distill.types import Draws, Phase, Role
from tests.distill.gaussian_generators import MEAN, STD, Deterministic, gaussian_batch, gaussian_teacher, log_ratio
from tests.distill.students import FLOW, STUDENT, VP, latents, models_of, tiny_teacher
from tests.gen.conftest import randomise

JUDGE = Phase("discriminator", "discriminator")
CASES = pytest.mark.parametrize(("network", "path", "kind"), [("dit", FLOW, "flow"), ("uvit", VP, "v")])


class Waning(Deterministic):
    """As `Deterministic`, with another share above t = 0.5 than below."""

    def __init__(self, path, above: float, below: float):
        super().__init__(path, above)
        self.below = Deterministic(path, below)

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        above = (time > 0.5).view(-1, 1, 1, 1)
        return torch.where(above, super().forward(x, time, condition), self.below(x, time, condition))


class BestJudge(nn.Module):
    """For samples all of which are at pure noise: log p of what stands for real less that of what is drawn."""

    def __init__(self, real: float, fake: float):
        super().__init__()
        self.real, self.fake = real, fake

    def forward(self, x: Tensor, time: Tensor, condition, context=None) -> Tensor:
        assert (time == 1).all()  # it is told t for both
        return log_ratio(x, (MEAN, abs(self.real) * STD), (MEAN, abs(self.fake) * STD))[:, None]


class OnGaussians(YosoObjective):
    def add_discriminator(self) -> None:
        student = self.roles["student"].network
        real, fake = (float(part.share.detach()) for part in (student.below, student))
        self.roles["discriminator"] = Role(BestJudge(real, fake), ema=False)


def slopes(above: float, below: float) -> tuple[float, float | None]:
    """The gradient in the generator's share above t = 0.5 and, where it has any, below."""
    teacher = gaussian_teacher()
    student = Waning(teacher.path, above, below)
    alone = {"consistency_weight": 0.0, "data_weight": 0.0, "timestep_scaling": 1e6}
    config = YosoConfig(start="network", noisiest_share=1.0, cooperation=0.6, **alone)
    objective = OnGaussians(config, student, None, teacher)
    batch = gaussian_batch(500)
    loss, _ = objective.loss(STUDENT, models_of(objective), batch, Draws(0, batch.index, "student"), 0)
    loss.backward()
    there = student.below.share.grad
    return float(student.share.grad), None if there is None else float(there)


def test_the_harder_image_is_drawn_to_the_easier_one_and_not_the_other_way_round():
    for above, sign in ((0.6, -1), (1.0, 0), (1.4, 1)):
        found, below = slopes(above, 1.0)
        assert sign * found > 0.01 if sign else abs(found) < 1e-9
        assert not below  # what stands for real has no gradient
    # the easier one is not the data: by itself this loss has what it draws there for a fixed point
    assert abs(slopes(0.8, 0.8)[0]) < 1e-9


@CASES
def test_at_clean_data_what_stands_for_real_is_the_data(network, path, kind):
    teacher = tiny_teacher(network, path, kind)
    objective = YosoObjective(YosoConfig(cooperation=1.0), nn.Identity(), None, teacher)
    randomise(objective.roles["student"].network, 3)
    batch = latents()
    at = objective.ladder(batch, Draws(0, batch.index, "student"))
    assert torch.equal(objective.drawn(models_of(objective), at, at.cooperating), batch.latents)


@CASES
def test_losses_are_their_formulas(network, path, kind):
    teacher = tiny_teacher(network, path, kind)
    objective = YosoObjective(YosoConfig(adversarial_weight=0.9), nn.Identity(), None, teacher)
    student = randomise(objective.roles["student"].network, 3)
    judge = randomise(objective.roles["discriminator"].network, 4)
    batch, models = latents(), models_of(objective)
    draws = Draws(0, batch.index, "student")
    end = teacher.path.t_noise
    t = (1 - draws.uniform("level").double()) * end
    eps, condition = draws.normal("eps", (2, 4, 4)), objective.condition(batch, batch.latents.device, draws)

    def image(clock: Tensor) -> Tensor:
        level = teacher.path(clock.clamp(min=0))
        prediction = objective.predict(student, level.mix(batch.latents, eps), level, condition)
        return objective.consistent(prediction)

    drawn, real, target = image(t), image(t - 0.25 * end).detach(), image(t - 0.025 * end).detach()
    level = teacher.path(t)
    logits = {}
    for name, x in (("real", real), ("fake", drawn)):
        heads = objective.judge(judge, condition, 4)
        logits[name] = heads([x, t])
    told = F.softplus(-logits["real"]).mean() + F.softplus(logits["fake"]).mean()
    torch.testing.assert_close(objective.loss(JUDGE, models, batch, draws, 0)[0], told, rtol=1e-4, atol=1e-6)
    denoiser, first = teacher.denoiser(teacher.network), teacher.path(first_clock(teacher.path).expand(4))
    a, b = (block_features(denoiser, x, first, condition, (1,))[0] for x in (drawn, target))  # the middle of three blocks
    r_t, r_s = (v.sigma / v.alpha for v in (level, teacher.path((t - 0.025 * end).clamp(min=0))))
    consistency = (1 / (r_t - r_s)).clamp(max=5).float() * (a - b).square().mean((1, 2))
    to_data = (1 / r_t**2).clamp(max=5).float() * (drawn - batch.latents).square().mean((1, 2, 3))
    expected = 0.9 * F.softplus(-logits["fake"]).mean() + 2 * consistency.mean() + 0.5 * to_data.mean()
    found, logged = objective.loss(STUDENT, models, batch, draws, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert logged["consistency"] > 1e-6 and logged["to_data"] > 1e-6


@CASES
def test_other_distances_than_that_of_features_are_those_of_latent_consistency(network, path, kind):
    teacher = tiny_teacher(network, path, kind)
    objective = YosoObjective(YosoConfig(distance="l2"), nn.Identity(), None, teacher)
    a, b = latents().latents, latents(8).latents[4:]
    torch.testing.assert_close(objective.between(a, b, None), (a - b).square().mean((1, 2, 3)))
    assert objective.blocks == ()


def test_a_weight_of_levels_that_nothing_reads_is_refused():
    with pytest.raises(ValueError, match="weight"):
        YosoConfig(weight="snr")
