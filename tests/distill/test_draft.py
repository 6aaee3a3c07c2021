"""DRaFT (arXiv 2309.17400): its gradient against finite differences of the reward of what is sampled."""

from __future__ import annotations

import pytest
import torch

from distill.losses.solver_steps import ddim
from distill.objectives.draft import DraftConfig, DraftObjective
from distill.types import Draws
from samplers.denoiser import Condition
from tests.distill.policies import affine_teacher, differences, gradients, policy, quadratic
from tests.distill.students import VP, batch_of, loss_of


def draft(path=None, **config) -> DraftObjective:
    of = None if path is None else affine_teacher(path)
    objective = policy(DraftObjective, DraftConfig, of, **{"steps": 4, **config})
    objective.rewards = [(1.0, quadratic)]
    return objective


@pytest.mark.parametrize("path", [None, VP])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_the_gradient_through_all_steps_is_that_of_the_sampled_reward(path, scale):
    objective = draft(path, through=None, teacher={"guidance_scale": scale})
    batch = batch_of(3)
    found = gradients(objective, loss_of(objective, batch))
    expected = differences(objective, lambda: loss_of(objective, batch))
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert abs(found[0]) > 1e-3 and abs(found[1]) > 1e-3
    last = draft(path, through=1)
    assert gradients(last, loss_of(last, batch)) != pytest.approx(expected, rel=1e-2)  # a part is not the whole


@pytest.mark.parametrize("last", [1, 2, 4])
def test_k_steps_are_those_from_where_the_sampler_was(last):
    """The graph by hand: everything up to step K is a constant."""
    objective, batch = draft(through=last), batch_of(3)
    student, draws = objective.roles["student"].network, Draws(0, batch.index, "student")
    x = objective.start(draws.normal_like("eps", batch.latents))
    for number in range(4, 0, -1):
        x = x.detach() if number == last else x
        s, t = objective.level(number, x), objective.level(number - 1, x)
        x = ddim(student.a + student.b * x, x, s, t)
    by_hand = -quadratic((x / 2 + 0.5).clamp(0, 1), ()).mean()
    loss = loss_of(objective, batch)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-12)
    assert gradients(objective, loss) == pytest.approx(gradients(objective, by_hand), rel=1e-12)


def test_all_steps_are_as_many_as_there_are():
    batch, (all_of_them, four) = batch_of(3), (draft(through=None), draft(through=4))
    assert gradients(four, loss_of(four, batch)) == gradients(all_of_them, loss_of(all_of_them, batch))


def test_low_variance_averages_over_noise_of_its_own():
    """The mean over seeds is that of one draw; the variance over them falls as 1 / n; and the picture's own noise is not it."""
    batch, found = batch_of(64), {}
    for count in (1, 4):
        objective = draft(through=1, renoised=count)
        rows = []
        for seed in range(60):
            loss, _ = objective.loss(None, {"student": objective.roles["student"].network}, batch, Draws(seed, batch.index), 0)
            rows.append(gradients(objective, loss))
        found[count] = torch.tensor(rows)
    # what differs between seeds beside the new noise is the start, the same for both
    means = [found[count].mean(0) for count in (1, 4)]
    torch.testing.assert_close(means[0], means[1], rtol=0.1, atol=0.01)
    objective, draws = draft(through=1, renoised=2), Draws(0, batch.index, "student")
    network = objective.roles["student"].network
    x0 = objective.descend(
        network, objective.start(draws.normal_like("eps", batch.latents)), Condition(label=batch.labels), 1.0
    ).detach()
    level, total = objective.level(1, x0), 0.0
    for number in range(2):
        x = level.mix(x0, draws.normal_like(f"renoised {number}", x0))
        s0 = network.a + network.b * x  # the last step ends in clean data: x0 itself
        total = total - quadratic((s0 / 2 + 0.5).clamp(0, 1), ()).mean() / 2
    assert loss_of(objective, batch).item() == pytest.approx(total.item(), rel=1e-9)
    assert gradients(objective, loss_of(objective, batch)) == pytest.approx(gradients(objective, total), rel=1e-9)


def test_the_variance_of_the_renoised_gradient_falls_with_its_number():
    batch, spread = batch_of(1), {}
    for count in (1, 4):
        objective = draft(through=1, renoised=count)
        network, x0 = objective.roles["student"].network, torch.full((1, 2, 2, 2), 0.2, dtype=torch.float64)
        rows = [
            gradients(
                objective,
                objective.renoised(network, x0, batch, Condition(label=batch.labels), 1.0, Draws(seed, batch.index)).sum(),
            )
            for seed in range(300)
        ]
        spread[count] = torch.tensor(rows).var(0)
    torch.testing.assert_close(spread[1] / spread[4], torch.full((2,), 4.0), rtol=0.35, atol=0)


def test_what_does_not_fit_is_a_sentence():
    with pytest.raises(ValueError, match="through is 9, and there are 4 steps"):
        DraftConfig(steps=4, through=9)
    with pytest.raises(ValueError, match="give through: 1 with it"):
        DraftConfig(renoised=2, through=2)
    with pytest.raises(ValueError, match="rewards is empty"):
        DraftConfig(rewards=())
    with pytest.raises(ValueError, match="did you mean 'pickscore'"):
        DraftConfig(rewards=({"type": "pickscor"},))
