"""Multistep latent consistency: its points are the teacher's own, its fixed points have no loss, no picture is read."""

from __future__ import annotations

import itertools

import pytest
import torch

from distill.losses.solver_steps import ddim
from distill.objectives.multistep_latent_consistency import MultistepLatentConfig, MultistepLatentObjective
from distill.types import Batch, Draws
from samplers.denoiser import Condition
from samplers.path import expand
from samplers.registry import get_grid
from tests.distill.flow_maps import gaussian_teacher
from tests.distill.students import Jump, batch_of, exact_teacher, latents, loss_of, models_of, tiny_teacher
from tests.distill.test_objective_continuous import tiny

CPU = torch.device("cpu")


def multistep(network, given=None, **config) -> MultistepLatentObjective:
    teacher = {"steps": 12, "guidance_scale": 1.0, **config.pop("teacher", {})}
    settings = {"start": "network", "drop_label": 0.0, "segments": (4,), "denoising_steps": 3, "teacher": teacher, **config}
    return MultistepLatentObjective(MultistepLatentConfig(**settings), network, None, given or tiny_teacher())


def jump(teacher, length: int, offset: int = 0) -> Jump:
    levels = get_grid("uniform", teacher.path, 12)
    return Jump(teacher.model, teacher.denoiser(teacher.network), levels, length, offset)


def test_the_student_that_goes_to_its_segments_start_has_no_loss_within_segments():
    teacher, batch = exact_teacher(), batch_of(12)
    assert loss_of(multistep(jump(teacher, 3), teacher), batch).item() < 1e-16
    assert loss_of(multistep(jump(teacher, 6), teacher), batch).item() > 1e-5
    assert loss_of(multistep(jump(teacher, 3), teacher, segments=(2,)), batch).item() > 1e-5


def test_the_student_that_goes_to_clean_data_has_no_loss_across_segments():
    """Where the teacher takes every level of a segment; in fewer steps than that, its own error is left."""
    teacher, batch = exact_teacher(), batch_of(6)
    config = {"segments": (4,), "milestones_from": 0, "simulate": 2}
    assert loss_of(multistep(jump(teacher, 12), teacher, bridge_steps=3, **config), batch).item() < 1e-16
    assert loss_of(multistep(jump(teacher, 12), teacher, bridge_steps=1, **config), batch).item() > 1e-7
    assert loss_of(multistep(jump(teacher, 3), teacher, bridge_steps=3, **config), batch).item() > 1e-5


def test_cleaner_points_are_made_in_more_steps():
    """DDIM on the coarse ladder from the same noise, and a last step to the very level."""
    objective, batch = multistep(tiny().float(), denoising_steps=3), latents(40)
    seen: list = []
    step = objective.teacher_step
    objective.teacher_step = lambda m, x, s, t, *rest: seen.append((x, s.t, t.t)) or step(m, x, s, t, *rest)
    loss_of(objective, batch)
    draws, ladder, teacher = Draws(0, batch.index, "student"), objective.teacher_levels, objective.teacher
    eps, counts = draws.normal_like("eps", batch.latents), {}
    z_t, t, _ = seen[-1]  # the step of the loss itself, from z_t
    for row in range(40):
        number = int((ladder.t - t[row]).abs().argmin())
        numbers = [12, *(stop for stop in (8, 4, 0) if stop > number), number]
        numbers = numbers[:1] if number == 12 else numbers
        x, label = (
            expand(ladder[torch.tensor([12])].sigma, eps[:1]) * eps[row : row + 1],
            Condition(label=batch.labels[row : row + 1]),
        )
        for high, low in itertools.pairwise(numbers):
            s, e = ladder[torch.tensor([high])], ladder[torch.tensor([low])]
            x = ddim(objective.teacher_predict({"teacher": teacher.network}, x, s, label).x0, x, s, e)
        torch.testing.assert_close(z_t[row], x[0].to(z_t), atol=1e-4, rtol=1e-4)
        counts[number] = len(numbers) - 1
    assert counts[12] == 0 and counts[9] == 1 and counts[1] == 3


def test_points_are_distributed_as_noised_data():
    """Means and deviations of what an exact teacher makes in many steps are those of q(z_t) of its Gaussian."""
    teacher, count = gaussian_teacher(), 4000
    objective = multistep(teacher.network, teacher, teacher={"steps": 64}, denoising_steps=64)
    ladder, oracle, g = objective.teacher_levels, teacher.network.oracle, torch.Generator().manual_seed(0)
    eps = torch.randn(count, 2, 2, 2, generator=g).double()
    for number in (48, 16):
        top, t = torch.full((count,), 64), torch.full((count,), number)
        stops = [torch.maximum(top * (64 - taken) // 64, t) for taken in range(1, 65)]
        z = objective.down(
            {"teacher": teacher.network}, eps, top, stops, ladder, Condition(label=torch.zeros(count).long()), 1.0
        )
        level = ladder[t[:1]]
        spread = (level.alpha**2 * oracle.std**2 + level.sigma**2).sqrt()
        torch.testing.assert_close(z.mean(0), (level.alpha * oracle.mean).squeeze(0), atol=0.1, rtol=0)
        torch.testing.assert_close(z.std(0), spread, atol=0, rtol=0.08)


def test_segments_get_fewer_and_then_are_joined():
    objective = multistep(tiny().float(), segments=(6, 3), segment_steps=10, milestones_from=15)
    assert [objective.length(step) for step in (0, 9, 10, 1000)] == [2, 2, 4, 4]
    assert objective.defaults().sampler == "lcm" and multistep(tiny().float()).defaults().sampler == "ddim"
    batch, drawn = latents(20), []
    simulated = objective.drawn
    objective.drawn = lambda *rest: drawn.append(True) or simulated(*rest)
    for step in (14, 15):
        loss_of(objective, batch, step)
        assert len(drawn) == (step == 15)


def test_no_picture_is_read():
    objective = multistep(tiny().float())
    with_pictures, without = latents(), Batch(index=torch.arange(4), labels=torch.arange(4) % 3)
    assert loss_of(objective, without).item() == pytest.approx(loss_of(objective, with_pictures).item(), rel=1e-6)


def test_only_the_student_learns():
    for milestones in (None, 0):
        objective = multistep(tiny().float(), milestones_from=milestones)
        models = models_of(objective)
        loss_of(objective, latents(6)).backward()
        assert all(p.grad is not None for p in models["student"].parameters())
        assert all(p.grad is None for p in models["teacher"].parameters())


def test_what_does_not_divide_is_said():
    with pytest.raises(ValueError, match=r"segments \[5\]: give numbers of which teacher.steps 12 is a multiple"):
        multistep(tiny().float(), segments=(5,))
    with pytest.raises(ValueError, match="points of trajectories are made with ddim"):
        multistep(tiny().float(), teacher={"solver": "heun"})
