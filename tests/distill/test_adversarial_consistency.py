"""Latent consistency with a judge beside it: what the judge sees, who learns from whom, and where samples start."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill.networks.discriminator import block_features
from distill.objectives.adversarial_consistency import AdversarialConsistencyConfig, AdversarialConsistencyObjective
from distill.objectives.latent_consistency import LatentConsistencyConfig, LatentConsistencyObjective
from distill.objectives.sana_sprint import AdversarialContinuousConfig, AdversarialContinuousObjective
from distill.objectives.scm import ContinuousConsistencyConfig, ContinuousConsistencyObjective
from distill.types import Draws, Phase
from gen.nn.registry import build
from samplers.denoiser import Context
from tests.distill.students import FLOW, SIZES, STUDENT, VP, latents, loss_of, models_of, tiny_teacher

JUDGE = Phase("discriminator", "discriminator")
CPU = torch.device("cpu")
CASES = pytest.mark.parametrize(("network", "path", "kind"), [("dit", FLOW, "flow"), ("uvit", VP, "v")])


def adversarial(teacher, network, **changes):
    options = {"start": "teacher", "teacher": {"steps": 8, "guidance_scale": 3.0}, **changes}
    return AdversarialConsistencyObjective(AdversarialConsistencyConfig(**options), network, None, teacher)


def student(kind: str) -> nn.Module:
    network = build({"type": kind, **SIZES}).requires_grad_(True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in network.parameters():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    return network


class Recorder(nn.Module):
    """Judges nothing and keeps what it was shown."""

    def __init__(self):
        super().__init__()
        self.seen: list[list[Tensor]] = []

    def forward(self, features):
        self.seen.append(list(features))
        return torch.cat([f.mean(-1) for f in features], 1)


@CASES
def test_without_its_own_parts_it_is_latent_consistency(network, path, kind):
    teacher, one = tiny_teacher(network, path, kind), student(network)
    batch = latents()
    mine = adversarial(teacher, one, start="network", adversarial_weight=0.0, noisiest_share=0.0)
    plain = LatentConsistencyConfig(start="network", teacher={"steps": 8, "guidance_scale": 3.0})
    expected = loss_of(LatentConsistencyObjective(plain, one, None, teacher), batch)
    assert expected > 1e-4
    assert torch.equal(loss_of(mine, batch), expected)
    assert not torch.equal(loss_of(adversarial(teacher, one, start="network", adversarial_weight=0.0), batch), expected)


def test_a_share_of_the_samples_starts_at_the_noisiest_level():
    teacher = tiny_teacher()
    draws = Draws(0, torch.arange(400), "student")
    for share, low, high in ((0.0, 20, 90), (0.5, 180, 280), (1.0, 400, 400)):
        objective = adversarial(teacher, student("dit"), start="network", noisiest_share=share)
        i = objective.start(draws, CPU)
        assert low <= (i == 7).sum() <= high and i.min() >= 0 and i.max() == 7
    z, i, *_ = objective.noised(latents(), Draws(0, torch.arange(4), "student"))
    torch.testing.assert_close(z, Draws(0, torch.arange(4), "student").normal("eps", (2, 4, 4)))  # nothing else at t = 1


@CASES
def test_the_judge_sees_the_data_and_the_students_pictures_at_one_level_with_noise_of_their_own(network, path, kind):
    teacher, one = tiny_teacher(network, path, kind), student(network)
    objective = adversarial(teacher, one, start="network", blocks=(0, 2))
    batch, models, recorder = latents(), models_of(objective), Recorder()
    models["discriminator"] = recorder
    draws = Draws(0, batch.index, "discriminator")
    loss, logged = objective.loss(JUDGE, models, batch, draws, 0)
    (seen,) = recorder.seen
    assert [len(f) for f in seen] == [8, 8]

    z, i, condition, _ = objective.noised(batch, draws)
    level = objective.judged(draws, CPU)
    drawn = objective.teacher.denoiser(one)(z, objective.teacher_levels[i + 1], condition, Context()).x0
    for rows, x0, name in ((slice(0, 4), batch.latents, "real"), (slice(4, 8), drawn, "fake")):
        x = level.mix(x0, draws.normal(name, (2, 4, 4)))
        expected = block_features(objective.teacher.denoiser(teacher.network), x, level, condition, (0, 2))
        for found, wanted in zip(seen, expected, strict=True):
            torch.testing.assert_close(found[rows], wanted, atol=1e-5, rtol=1e-4)
    real, fake = recorder([f[:4] for f in seen]), recorder([f[4:] for f in seen])
    torch.testing.assert_close(loss, (1 - real).relu().mean() + (1 + fake).relu().mean())
    torch.testing.assert_close(logged["real"], real.mean())


def test_the_judged_levels_are_log_normal():
    objective = adversarial(tiny_teacher(), student("dit"), start="network", judged=(-0.6, 0.5))
    level = objective.judged(Draws(0, torch.arange(2000), "student"), CPU)
    ratio = (level.sigma / level.alpha).log()
    assert ratio.mean().item() == pytest.approx(-0.6, abs=0.05) and ratio.std().item() == pytest.approx(0.5, abs=0.05)


@CASES
def test_each_network_learns_in_its_own_phase_only(network, path, kind):
    teacher, one = tiny_teacher(network, path, kind), student(network)
    objective = adversarial(teacher, one, start="network", adversarial_weight=0.5, target_ema=0.9)
    batch, models = latents(), models_of(objective)
    assert [phase.role for phase in objective.phases(0)] == ["student", "discriminator"]

    def gradients(weight: float) -> list[Tensor]:
        one.zero_grad(set_to_none=True)
        objective.config = objective.config.model_copy(update={"adversarial_weight": weight})
        loss, logged = objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)
        loss.backward()
        kept.append((loss.detach(), logged["adversarial"]))
        return [p.grad.clone() for p in one.parameters() if p.grad is not None]

    kept: list[tuple[Tensor, Tensor]] = []
    plain, half, whole = (gradients(weight) for weight in (0.0, 0.5, 1.0))
    torch.testing.assert_close(kept[1][0] - kept[0][0], 0.5 * kept[0][1])
    for a, b, c in zip(plain, half, whole, strict=True):
        torch.testing.assert_close(c - a, 2 * (b - a), atol=1e-5, rtol=1e-3)
    assert max((b - a).abs().max().item() for a, b in zip(plain, half, strict=True)) > 1e-6
    assert all(p.grad is None for name in ("discriminator", "teacher", "target") for p in models[name].parameters())

    one.zero_grad(set_to_none=True)
    objective.loss(JUDGE, models, batch, Draws(0, batch.index, "discriminator"), 0)[0].backward()
    assert all(p.grad is not None for p in models["discriminator"].parameters())
    assert all(p.grad is None for name in ("student", "teacher", "target") for p in models[name].parameters())


def test_the_student_is_moved_towards_what_the_judge_takes_for_real():
    """A small step along the judge's share of the gradient raises its verdict by the step times the gradient's square."""
    teacher, one = tiny_teacher(), student("dit")
    objective = adversarial(teacher, one, start="network", consistency_weight=0.0, adversarial_weight=1.0, blocks=(2,))
    batch, models, recorder = latents(), models_of(objective), Recorder()
    models["discriminator"] = recorder

    def learn() -> Tensor:
        return objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)[0]

    def judged() -> float:
        with torch.no_grad():
            learn()
        return torch.cat([f.mean(-1) for f in recorder.seen[-1]], 1).double().mean().item()

    before = judged()
    learn().backward()
    gradients = [p.grad for p in one.parameters() if p.grad is not None]
    square = sum(g.double().square().sum().item() for g in gradients)
    step = 3e-3 / square
    with torch.no_grad():
        for p in one.parameters():
            if p.grad is not None:
                p -= step * p.grad
    assert judged() - before == pytest.approx(step * square, rel=0.1)


# ---- beside the continuous-time loss, and alone ----


def pair(teacher, network, **changes):
    options = {"start": "network", "teacher": {"guidance_scale": 3.0}, "warmup": 0, "sigma_max": 50.0, **changes}
    return AdversarialContinuousObjective(AdversarialContinuousConfig(**options), network, None, teacher)


def test_the_pair_is_the_continuous_loss_and_half_the_judges():
    """The judge sees cos(t) x_t - sin(t) sd F, noised to its own levels; half of the samples start at the noisiest."""
    teacher, one, batch = tiny_teacher("dit", FLOW, "flow"), student("dit"), latents(32)
    draws = Draws(0, batch.index, "student")
    mine = pair(teacher, one, adversarial_weight=0.25)
    recorder = Recorder()
    total = mine.loss(STUDENT, {**models_of(mine), "discriminator": recorder}, batch, draws, 0)[0]
    config = ContinuousConsistencyConfig(start="network", teacher={"guidance_scale": 3.0}, warmup=0, sigma_max=50.0)
    plain = ContinuousConsistencyObjective(config, one, None, teacher)
    plain.angles = mine.angles
    expected = plain.loss(STUDENT, models_of(plain), batch, draws, 0)[0]
    judged = torch.cat([f.mean(-1) for f in recorder.seen[0]], 1).mean()
    torch.testing.assert_close(total, expected - 0.25 * judged, rtol=1e-5, atol=1e-6)

    ratio = mine.angles(draws, CPU).tan() * mine.sd
    noisiest = (ratio - 50.0).abs() < 1e-6
    assert 8 <= noisiest.sum() <= 24 and (ratio <= 50.0 + 1e-6).all()
    points = mine.points(batch, draws)
    level = mine.path.at_logsnr(-(points.angle.tan() * mine.sd).log())
    x = level.mix(points.x0, points.z)  # the same point, on the path's own scale
    x0 = mine.predict(one, x, level, points.condition, points.scale).x0
    drawn = mine.drawn_from(points, mine.velocity(models_of(mine), points))
    torch.testing.assert_close(drawn, x0.float(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("make", [adversarial, pair])
def test_a_judge_can_teach_alone(make, monkeypatch):
    """Then the teacher is asked for features and for nothing else, and nothing but the student and the judge trains."""
    objective = make(tiny_teacher("dit", FLOW, "flow"), student("dit"), consistency_weight=0.0, adversarial_weight=1.0)
    assert {name for name, role in objective.roles.items() if role.trains} == {"student", "discriminator"}
    monkeypatch.setattr(objective, "teacher_predict", lambda *_: pytest.fail("the teacher was asked for a prediction"))
    batch = latents()
    models = models_of(objective)
    for phase in (STUDENT, JUDGE):
        loss, logged = objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), 0)
        loss.backward()
        if phase is STUDENT:
            assert loss == logged["adversarial"] and all(p.grad is not None for p in models["student"].parameters())
    with pytest.raises(ValueError, match="nothing is learned"):
        make(tiny_teacher(), student("dit"), consistency_weight=0.0, adversarial_weight=0.0)
