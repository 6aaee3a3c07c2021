"""Single trajectory distillation: what its bank holds, where its steps begin and end, and who learns from what."""

from __future__ import annotations

import pytest
import torch

from distill.losses.solver_steps import ddim
from distill.objectives.bases.trajectory_bank import TrajectoryBank
from distill.objectives.single_trajectory import SingleTrajectoryConfig, SingleTrajectoryObjective
from distill.types import Draws, Phase
from samplers.denoiser import Condition
from tests.distill.students import SIZES, STUDENT, Source, loss_of, models_of, tiny_teacher
from tests.distill.test_objective_continuous import tiny

BATCH, CPU = 4, torch.device("cpu")


def single(network=None, given=None, source=None, **config) -> SingleTrajectoryObjective:
    settings = {"start": "network", "teacher": {"steps": 8}, "slots": BATCH, "adversarial_weight": 0.0, **config}
    network = tiny().float() if network is None else network
    return SingleTrajectoryObjective(SingleTrajectoryConfig(**settings), network, source or Source(), given or tiny_teacher())


def train(objective, steps: int, first: int = 0, parts: int = 1) -> None:
    """Steps of the student's phase, without updates: what they leave in the bank. parts: micro-batches of a step."""
    for step in range(first, first + steps):
        for part in range(parts):
            size = BATCH // parts
            batch = Source().batch(range(step * BATCH + part * size, step * BATCH + (part + 1) * size))
            objective.loss(STUDENT, models_of(objective), batch, Draws(0, batch.index, "student"), step)
        objective.after_step(step)


def test_every_stored_point_is_on_the_teachers_trajectory_of_its_sample():
    """From that sample's own start, recomputed, after any number of steps; and some have come far."""
    objective, far = single(bank_share=0.8), 0
    ladder, teacher = objective.teacher_levels, {"teacher": objective.teacher.network}
    for step in range(10):
        train(objective, 1, step)
        bank = objective.bank
        for slot in range(BATCH):
            counter, number = bank.counter[slot : slot + 1], int(bank.number[slot])
            batch = Source().batch(counter.tolist())
            draws = Draws(0, counter, "student")
            start = int(draws.uniform("step").double() * 6) + 1  # of the cleanest three quarters of eight levels
            condition = objective.condition(batch, CPU, draws)
            x = ladder[torch.tensor([start])].mix(batch.latents, draws.normal_like("eps", batch.latents))
            for level in range(start, number, -1):
                t, s = ladder[torch.tensor([level])], ladder[torch.tensor([level - 1])]
                x = ddim(objective.teacher_predict(teacher, x, t, condition, 1.0).x0, x, t, s)
            torch.testing.assert_close(bank.latent[slot], x[0].float(), atol=1e-5, rtol=1e-5)
            far = max(far, start - number)
    assert far >= 3


def test_a_trajectory_goes_on_to_its_end_and_then_makes_room():
    objective = single(bank_share=1 - 1e-9)
    before = None
    for step in range(20):
        train(objective, 1, step)
        counter, number = objective.bank.counter.clone(), objective.bank.number.clone()
        if before is not None:
            went_on = before[1] > 0
            assert torch.equal(counter[went_on], before[0][went_on]) and torch.equal(number[went_on], before[1][went_on] - 1)
            fresh = torch.arange(step * BATCH, (step + 1) * BATCH)
            assert torch.equal(counter[~went_on], fresh[~went_on])
        before = counter, number
    assert (number >= 0).all() and (number < 6).all()


def test_it_begins_anew_as_often_as_it_does_not_go_on():
    objective, went_on, held = single(bank_share=0.6, teacher={"steps": 40}), 0, 0
    for step in range(100):
        before = objective.bank.counter.clone(), objective.bank.number.clone()
        train(objective, 1, step)
        went_on += int(((objective.bank.counter == before[0]) & (before[1] > 0)).sum())
        held += int((before[1] > 0).sum())
    assert went_on / held == pytest.approx(0.6, abs=0.08)


def test_parts_of_a_step_and_a_run_that_goes_on_come_to_the_same_bank():
    whole, parts, resumed = (single(bank_share=0.8) for _ in range(3))
    for other in (parts, resumed):
        other.teacher.network.load_state_dict(whole.teacher.network.state_dict())
    train(whole, 8)
    train(parts, 8, parts=2)
    train(resumed, 4)
    state, again = resumed.state_dict(), single(bank_share=0.8, given=whole.teacher)
    again.load_state_dict({name: value.clone() for name, value in state.items()})
    train(again, 4, 4)
    for other in (parts, again):
        for name, value in whole.bank.state_dict().items():
            torch.testing.assert_close(other.bank.state_dict()[name], value, atol=1e-5, rtol=1e-5)


def test_measuring_leaves_the_bank():
    objective = single(bank_share=0.8)
    train(objective, 2)
    before = {name: value.clone() for name, value in objective.bank.state_dict().items()}
    with torch.no_grad():
        train(objective, 1, 2)
    assert all(torch.equal(value, before[name]) for name, value in objective.bank.state_dict().items())


def test_a_measurement_is_of_its_own_samples():
    objective = single(bank_share=1 - 1e-9, drop_label=0.0)
    objective.bank.number[:], objective.bank.counter[:] = 3, torch.tensor([100, 101, 102, 103])
    batch = Source().batch(range(4))
    with torch.no_grad():
        at = objective.jump(batch, Draws(0, batch.index, "student"))
    assert torch.equal(at.counter, batch.index) and torch.equal(at.condition.label, batch.labels % 3)


def test_too_few_slots_are_said():
    bank = TrajectoryBank(2, (1,))
    bank.remember(torch.arange(4), torch.arange(4), torch.ones(4).long(), torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"4 samples of a step share 2 slots"):
        bank.learn()
    with pytest.raises(ValueError, match="asks the data for earlier samples"):
        SingleTrajectoryObjective(SingleTrajectoryConfig(start="network"), tiny().float(), None, tiny_teacher())


def test_steps_begin_and_end_where_they_may():
    objective = single(bank_share=0.0, start_at=0.5, reach=0.25, teacher={"steps": 40})
    batch = Source().batch(range(400))
    at = objective.jump(batch, Draws(0, batch.index, "student"))
    assert (at.t.min(), at.t.max()) == (1, 20)
    assert (at.end >= (at.t - 10).clamp(min=0)).all() and (at.end < at.t).all() and len((at.t - at.end).unique()) == 10


def test_a_student_that_is_the_teacher_has_no_loss_over_one_level_and_one_over_more():
    teacher = tiny_teacher()
    batch = Source().batch(range(8))
    near, far = (single(teacher.network, teacher, reach=reach, bank_share=0.0, drop_label=0.0) for reach in (0.125, 1.0))
    assert loss_of(near, batch).item() < 1e-6 < 1e-4 < loss_of(far, batch).item()
    other = single(tiny().float(), teacher, reach=0.125, bank_share=0.0, drop_label=0.0)
    assert loss_of(other, batch).item() > 1e-2


def test_the_judge_sees_data_at_less_noise_than_the_students_points():
    objective = single(adversarial_weight=0.3, asymmetry=0.5, bank_share=0.0)
    batch = Source().batch(range(8))
    models, draws = models_of(objective), Draws(0, batch.index, "discriminator")
    seen: list = []
    shown = objective.shown
    objective.shown = lambda x, number, *rest: seen.append((x, number)) or shown(x, number, *rest)
    loss, _ = objective.loss(Phase("discriminator", "discriminator"), models, batch, draws, 0)
    loss.backward()
    assert all(p.grad is not None for p in models["discriminator"].parameters())
    assert all(p.grad is None for role in ("student", "teacher") for p in models[role].parameters())
    at = objective.jump(batch, Draws(0, batch.index, "student"))
    assert torch.equal(seen[0][1], at.end) and torch.equal(seen[1][1], at.end // 2)
    level = objective.teacher_levels[at.end // 2]
    torch.testing.assert_close(seen[1][0], level.mix(batch.latents, draws.normal_like("real eps", batch.latents)))
    models["discriminator"].zero_grad(set_to_none=True)
    loss_of(objective, batch).backward()
    assert all(p.grad is not None for p in models["student"].parameters())
    assert all(p.grad is None for role in ("discriminator", "teacher") for p in models[role].parameters())


def test_an_earlier_samples_condition_is_its_own():
    """A slot's point goes on under the label of the sample that it came from, not of the one that it replaces."""
    objective = single(bank_share=1 - 1e-9, drop_label=0.0)
    objective.bank.number[:], objective.bank.counter[:] = 3, torch.tensor([100, 101, 102, 103])
    batch = Source().batch(range(4))
    at = objective.jump(batch, Draws(0, batch.index, "student"))
    assert torch.equal(at.condition.label, torch.arange(100, 104) % 3) and torch.equal(at.counter, torch.arange(100, 104))
    assert not torch.equal(at.condition.label, Condition(label=batch.labels).label)
    assert SIZES["num_classes"] == 3
