"""Score-regularised consistency: its parts as they are alone, what is judged, and the derivative of every backbone."""

from __future__ import annotations

import pytest
import torch

from distill.losses.jvp import jvp
from distill.objectives.dmd2 import matching
from distill.objectives.rcm import RegularizedConsistencyConfig, RegularizedConsistencyObjective
from distill.objectives.scm import ContinuousConsistencyConfig, ContinuousConsistencyObjective
from distill.types import Batch, Draws, Phase
from gen.nn.registry import build
from samplers.denoiser import Condition
from samplers.path import expand
from tests.distill.flow_maps import ExactEnd, gaussian_teacher
from tests.distill.students import Exact, batch_of, latents, loss_of, models_of, tiny_teacher
from tests.distill.test_every_network_in_parallel import NETWORKS
from tests.distill.test_objective_continuous import tiny
from tests.gen.conftest import randomise

CPU = torch.device("cpu")


def regularized(network, given=None, **config) -> RegularizedConsistencyObjective:
    settings = {"start": "network", "drop_label": 0.0, "regularize_from": 0, "warmup": 0, "normalisation": None, **config}
    return RegularizedConsistencyObjective(RegularizedConsistencyConfig(**settings), network, None, given or tiny_teacher())


def exact_critic(objective, teacher) -> None:
    objective.roles["critic"].network.network = Exact(teacher.model, teacher.network.oracle)


def test_the_exact_consistency_function_with_a_critic_that_knows_it_has_no_loss():
    """From the path's noisiest level but for what of the data is still in it there, 1/80 of its spread."""
    teacher, batch = gaussian_teacher(), batch_of(64)
    objective = regularized(ExactEnd(teacher), teacher)
    exact_critic(objective, teacher)
    assert loss_of(objective, batch).item() < 1e-12
    blurred = regularized(Exact(teacher.model, teacher.network.oracle), teacher)
    exact_critic(blurred, teacher)
    assert loss_of(blurred, batch).item() > 0.05


def test_the_loss_is_that_of_scm_and_a_share_of_distribution_matching():
    batch, network, teacher = latents(), tiny().float(), tiny_teacher()
    objective = regularized(network, teacher, distribution_weight=0.3, simulate=1, adaptive=False)
    settings = ContinuousConsistencyConfig(start="network", drop_label=0.0, warmup=0, normalisation=None, adaptive=False)
    alone = loss_of(ContinuousConsistencyObjective(settings, network, None, teacher), batch)
    models, draws = models_of(objective), Draws(0, batch.index, "student")
    randomise(models["critic"], 9)  # which begins as the teacher, without a difference
    condition = Condition(label=batch.labels)
    z = draws.normal_like("eps", batch.latents)
    top = objective.levels[torch.full((4,), objective.levels.steps)]
    x0 = objective.predict(network, expand(top.sigma, z) * z, top, condition).x0
    level = objective.compared(draws, CPU)
    x_t = level.mix(x0, draws.normal_like("noise", x0))
    fake = objective.judge(models["critic"], x_t, level, condition, 1.0)[0].x0.detach()
    real = objective.teacher_predict(models, x_t, level, condition).x0
    expected = alone + 0.3 * matching(x0, fake, real).mean()
    total = loss_of(objective, batch)
    assert total.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [torch.autograd.grad(loss, network.head.weight, retain_graph=True)[0] for loss in (total, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_what_is_judged_comes_down_from_noise_in_any_number_of_steps():
    objective, batch = regularized(tiny().float(), simulate=3), latents()
    condition, counts = Condition(label=batch.labels), []
    called = objective.predict
    for step in range(20):
        levels: list = []
        objective.predict = lambda n, x, level, *rest: levels.append(level.t) or called(n, x, level, *rest)  # noqa: B023
        draws = Draws(0, batch.index, "student")
        z, last = objective.noise_to(objective.roles["student"].network, batch.latents, condition, 1.0, draws, step)
        counts.append(len(levels))
        ladder = torch.stack([*levels, last.t.to(torch.float64)])
        assert (
            (ladder.diff(dim=0) <= 0).all()
            and (ladder[1:2] < 0.98).all()
            and (ladder[0] == objective.levels.t[-1]).all()
            and z.isfinite().all()
        )
        other = Draws(0, batch.index + 100, "student")  # another process's samples
        objective.predict = lambda *rest: levels.append(0) or called(*rest)  # noqa: B023
        levels.clear()
        objective.noise_to(objective.roles["student"].network, batch.latents, condition, 1.0, other, step)
        assert len(levels) == counts[-1]
    assert set(counts) == {0, 1, 2}


def test_a_shift_multiplies_the_noise_ratio():
    draws = Draws(0, torch.arange(50), "student")
    plain, shifted = (regularized(tiny().float(), shift=shift).compared(draws, CPU) for shift in (1.0, 5.0))
    torch.testing.assert_close(shifted.sigma / shifted.alpha, 5 * plain.sigma / plain.alpha)


def test_the_tangents_first_half_gives_way_to_the_second():
    objective, cos = regularized(tiny().float()), torch.tensor([0.1, 0.6, 1.0]).double()
    torch.testing.assert_close(objective.pull(cos, 0.0), cos)
    torch.testing.assert_close(objective.pull(cos, 1.0), cos**2)
    torch.testing.assert_close(objective.pull(cos, 0.5), cos * (1 - 0.25 * (1 - cos**2)) ** 0.5)


def test_the_critic_waits_and_then_learns_what_the_student_draws():
    objective, batch = regularized(tiny().float(), regularize_from=3), latents()
    assert [[p.name for p in objective.phases(step)] for step in (2, 3)] == [["student"], ["student", "critic"]]
    models = models_of(objective)
    loss, _ = objective.loss(Phase("critic", "critic"), models, batch, Draws(0, batch.index, "critic"), 3)
    loss.backward()
    assert all(p.grad is not None for p in models["critic"].parameters())
    assert all(p.grad is None for role in ("student", "teacher") for p in models[role].parameters())
    models["critic"].zero_grad(set_to_none=True)
    loss_of(objective, batch, step=3).backward()
    assert all(p.grad is not None for p in models["student"].parameters())
    assert all(p.grad is None for role in ("critic", "teacher") for p in models[role].parameters())


def test_the_critic_weighs_as_published():
    """(x0 - fake)^2 / sin^2 t."""
    objective = regularized(tiny().float())
    level, x0 = objective.path(torch.tensor([0.2, 0.7]).double()), torch.zeros(2, 2, 4, 4)
    loss, _ = objective.denoising(x0 + 1, x0, level)
    sin = torch.sin(torch.atan(level.sigma / level.alpha))
    torch.testing.assert_close(loss, (1 / sin**2).mean().to(loss))


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_backbone_has_a_forward_mode_derivative(kind):
    """Along x and the time at once, against a difference quotient, with the attention that derivatives are taken with. The time
    moves slowly, as those of 1,000 waves in its range curve too much for the quotient."""
    torch.manual_seed(0)
    network = randomise(build(NETWORKS[kind]), 3).double()
    network.attention_backend = "math"
    g = torch.Generator().manual_seed(1)
    x, direction = (torch.randn(2, 2, 4, 4, generator=g).double() for _ in range(2))
    time, slow = torch.tensor([0.3, 0.8]).double(), torch.full((2,), 1e-3).double()
    condition = Condition(label=torch.tensor([0, -1]))

    def function(x, time):
        return network(x, time, condition)

    value, exact = jvp(function, (x, time), (direction, slow))
    again, close = jvp(function, (x, time), (direction, slow), "difference", 1e-4)
    torch.testing.assert_close(value, again)
    torch.testing.assert_close(exact, close, atol=1e-5 * exact.abs().max().item(), rtol=0)
    assert exact.abs().max() > 1e-3


def test_prompts_alone_are_not_enough():
    """Distribution matching reads no pictures, but consistency is of theirs."""
    objective, prompts = regularized(tiny().float()), Batch(torch.arange(2), captions=["a cat", "a dog"])
    with pytest.raises(ValueError, match="neither latents nor pictures"):
        objective.clean(prompts)
    assert torch.equal(objective.clean(latents()), latents().latents)
