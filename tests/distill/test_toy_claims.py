"""What distillation is for, measured: students of few steps against their teacher on a ring of Gaussians, over five seeds.

The distance is that of points to the exact ends of their own trajectories, which varies little from seed to seed; distances
between distributions have a floor that moves with the reference sample. Claims are made of every seed.

The long ones (`-m slow`) train some 9,500 steps of 4 to 10 ms, of all five seeds at once: about two minutes of one core's time.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch

from distill.objectives.consistency_distillation import ConsistencyDistillationConfig, ConsistencyDistillationObjective
from distill.objectives.consistency_training import ConsistencyTrainingConfig, ConsistencyTrainingObjective
from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective
from distill.objectives.multistep_consistency import MultistepConsistencyConfig, MultistepConsistencyObjective
from distill.objectives.progressive_distillation import ProgressiveConfig, ProgressiveObjective
from samplers.denoiser import Condition
from tests.distill.ensemble import (
    Corrected,
    Ensemble,
    exact_end,
    noise,
    ring_batch,
    ring_teacher,
    rmse,
    run,
    sliced_wasserstein,
    train,
)

TEACHER = ring_teacher()


def slow(test):
    """A long one: left out unless asked for, and with more time than others where the machine is busy."""
    return pytest.mark.slow(pytest.mark.timeout(7200)(test))


@cache
def start() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and where each point of it ends exactly."""
    x = noise()
    return x, exact_end(x)


def error(network: torch.nn.Module, steps: int) -> torch.Tensor:
    """(seeds,)"""
    x, exact = start()
    return rmse(run(network, TEACHER, x, steps), exact)


@cache
def progressive(first: int, last: int, stage: int, longer: int) -> dict[int, torch.nn.Module]:
    """The students by their number of steps; stages to 2 steps and to 1 take `longer` times as long."""
    lengths = {"stage_steps": stage, "last_stage_steps": longer * stage}
    config = ProgressiveConfig(teacher={"steps": first}, steps=last, start="network", stage_ema=0.98, **lengths)
    objective = ProgressiveObjective(config, Corrected(TEACHER), None, TEACHER)
    return dict(zip(config.counts, train(objective, objective.lengths(), TEACHER), strict=True))


@cache
def multistep(steps: int, length: int) -> torch.nn.Module:
    config = MultistepConsistencyConfig(steps=steps, substeps=(16, 128), anneal=length, start="network")
    return train(MultistepConsistencyObjective(config, Corrected(TEACHER), None, TEACHER), [length], TEACHER)[0]


def test_four_steps_of_a_student_halve_the_error_of_four_of_the_teacher():
    """Shortly trained, in every run of the tests."""
    teacher = error(TEACHER.network, 4)
    students = progressive(16, 4, 120, 1)
    four, eight = error(students[4], 4), error(students[8], 8)
    assert (four < 0.5 * teacher).all()
    assert (four < 1.5 * eight).all()  # halving the steps costs little
    consistent = error(multistep(4, 250), 4)
    assert (consistent < 0.5 * teacher).all()
    assert (1.4 * consistent < error(multistep(1, 100), 1)).all()  # more steps are better


SLOW = {"stage": 400, "longer": 3, "length": 1000}


@slow
def test_progressive_students_keep_what_their_teacher_knows():
    students = progressive(16, 1, SLOW["stage"], SLOW["longer"])
    errors = {steps: error(network, steps) for steps, network in students.items()}
    assert (errors[4] <= 0.5 * error(TEACHER.network, 4)).all()
    for many, few in ((8, 4), (4, 2), (2, 1)):
        assert (errors[few] <= 1.5 * errors[many]).all()


@slow
def test_a_progressive_student_of_4_steps_beats_a_trained_diffusion_model_of_50():
    """Both are networks of one size and training; the student's teacher is exact."""
    config = DiffusionConfig(clock="t", time={"type": "uniform"})
    network = Ensemble(64)
    train(DiffusionObjective(config, network), [SLOW["length"] + 500], TEACHER, "denoiser")
    diffusion = error(network, 50)
    student = error(progressive(16, 1, SLOW["stage"], SLOW["longer"])[4], 4)
    assert (student < diffusion).all()


@slow
def test_multistep_consistency_gets_better_with_every_step():
    errors = {steps: error(multistep(steps, SLOW["length"]), steps) for steps in (8, 4, 2, 1)}
    assert (errors[4] <= 0.6 * error(TEACHER.network, 4)).all()
    assert (1.4 * errors[4] <= errors[1]).all()
    means = [errors[steps].mean() for steps in (8, 4, 2, 1)]
    assert means == sorted(means)


def one_step_consistency(levels: int, length: int, decay: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(seeds,) errors of one step of consistency models: distilled, and trained from data with as many levels at the end.

    Sampled as such a model is: from the largest noise ratio that it was trained at, by its own sampler. With the usual decay of
    0.95 the targets of training from data would lag by hundreds of steps where levels are dense: it takes 0.5. decay: of the
    targets of distillation.
    """
    largest = 40.0
    grid = {"sigma_min": 0.5, "sigma_max": largest}
    common = {"sigma_max": largest, "boundary_width": 0.02, "steps": 1, "start": "network", "schedule_options": grid,
              "distance": "squared", "weighting": "inverse_step"}  # fmt: skip
    x = noise()
    exact = exact_end(x, largest / (1 + largest), 50)  # sigma / alpha = t / (1 - t)
    growing = {"total_steps": length, "last_levels": levels, "target_ema": 0.5}
    errors = []
    for kind, config in (
        (ConsistencyDistillationObjective, ConsistencyDistillationConfig(levels=levels, target_ema=decay, **common)),
        (ConsistencyTrainingObjective, ConsistencyTrainingConfig(**growing, **common)),
    ):
        objective = kind(config, Corrected(TEACHER), None, TEACHER)
        [network] = train(objective, [length], TEACHER)
        errors.append(rmse(objective.draw(network, x, Condition()).float(), exact))
    return errors[0], errors[1]


def test_a_consistency_model_of_one_step_learns_faster_from_a_teacher_than_from_data():
    """Shortly trained, in every run of the tests."""
    distilled, trained = one_step_consistency(levels=8, length=100, decay=0.5)
    teacher = error(TEACHER.network, 1)
    assert (distilled < 0.4 * teacher).all() and (trained < 0.8 * teacher).all()
    assert (distilled < 0.7 * trained).all()


@slow
def test_longer_trained_consistency_models_keep_that_order():
    distilled, trained = one_step_consistency(levels=24, length=1200, decay=0.95)
    teacher = error(TEACHER.network, 1)
    assert (distilled < 0.15 * teacher).all() and (trained < 0.3 * teacher).all()
    assert (distilled < 0.7 * trained).all()


def to_the_data(network: torch.nn.Module, rows: int) -> torch.Tensor:
    """(seeds,): the sliced distance between what one step gives and data."""
    data = ring_batch(10**6, rows, TEACHER).latents
    return sliced_wasserstein(run(network, TEACHER, noise(rows), 1), data)


def test_one_step_of_a_student_is_nearer_to_the_data_than_one_of_the_teacher():
    """Shortly trained, in every run of the tests."""
    assert (to_the_data(multistep(1, 100), 2000) < 0.7 * to_the_data(TEACHER.network, 2000)).all()


@slow
def test_one_step_of_a_student_is_eight_times_nearer_to_the_data_than_one_of_the_teacher():
    student = progressive(16, 1, SLOW["stage"], SLOW["longer"])[1]
    assert (8 * to_the_data(student, 10_000) <= to_the_data(TEACHER.network, 10_000)).all()
