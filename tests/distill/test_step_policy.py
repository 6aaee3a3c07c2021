"""AdaDiff's policy of steps: its gradient against all outcomes, a bandit of known answer, and the command."""

from __future__ import annotations

import pytest
import torch

from distill.objectives.step_policy import StepPolicyObjective, StepPolicyObjectiveConfig
from distill.types import Batch, Draws, Phase
from gen.nn.step_policy import StepPolicy, StepPolicyConfig
from samplers.denoiser import Condition
from tests.distill.policies import affine_teacher

CHOICES = (10, 20, 50)
PHASE = Phase("policy", "policy")
WORTH = {10: 0.2, 20: 0.5, 50: 1.0}  # of a hard prompt; an easy one is as good in ten steps


def bandit(seed: int = 0, **config) -> StepPolicyObjective:
    """Label 0 is easy, and label 1 hard; nothing is drawn."""
    torch.manual_seed(seed)
    network = StepPolicy(StepPolicyConfig(choices=CHOICES, num_classes=2, dim=16, heads=2)).double()
    torch.nn.init.normal_(network.head.weight, std=0.3)
    teacher = affine_teacher()
    teacher.check_draws_pictures = lambda instead: None  # two channels stand for three
    settings = {"rewards": [{"type": "brightness"}], "cost": 0.5, "entropy": 0.0, **config}
    objective = StepPolicyObjective(StepPolicyObjectiveConfig(**settings), network, None, teacher)

    def quality(models, batch, steps, noise):
        return torch.tensor(
            [1.0 if label == 0 else WORTH[n] for label, n in zip(batch.labels.tolist(), steps, strict=True)]
        ).double()

    objective.quality = quality
    return objective


class Chosen(Draws):
    """Draws a given choice for each row."""

    def __init__(self, rows: list[int]):
        super().__init__(0, torch.arange(len(rows)))
        object.__setattr__(self, "rows", rows)

    def uniform(self, purpose, shape=(), device=None):
        if purpose != "choice":
            return super().uniform(purpose, shape, device)
        return torch.nn.functional.one_hot(torch.tensor(self.rows), *shape).double()  # noise so large that it decides


def gradient(objective: StepPolicyObjective, value: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(value, list(objective.roles["policy"].network.parameters()), allow_unused=True))


@pytest.mark.parametrize("least", [None, 0.4])
@pytest.mark.parametrize("label", [0, 1])
def test_the_gradient_is_unbiased_over_all_choices(label, least):
    """Weighted by their probabilities, the estimates of all choices add up to the gradient of the expected reward."""
    objective = bandit(least=least, loss=0.3)
    network, labels = objective.roles["policy"].network, torch.tensor([label])
    batch = Batch(torch.arange(1), labels=labels)
    chances = network(Condition(label=labels), 1).softmax(1)[0]
    total = [torch.zeros_like(p) for p in network.parameters()]
    for i, chance in enumerate(chances.detach()):
        loss, logged = objective.loss(PHASE, {"policy": network, "teacher": None}, batch, Chosen([i]), 0)
        total = [t - chance * (0 if g is None else g) for t, g in zip(total, gradient(objective, loss), strict=True)]
    worth = objective.quality(None, Batch(torch.arange(3), labels=labels.expand(3)), CHOICES, None)
    expected = gradient(objective, (chances * objective.reward(worth, CHOICES)).sum())
    for found, exact in zip(total, expected, strict=True):
        torch.testing.assert_close(found, torch.zeros_like(found) if exact is None else exact, rtol=1e-9, atol=1e-12)
    assert max(t.abs().max() for t in total) > 1e-3
    assert int(logged["steps"]) == CHOICES[int(chances.argmax())]


def test_the_reward_is_quality_less_steps_and_a_loss_below_the_least():
    objective = bandit(cost=0.5, least=0.4, loss=0.3)
    found = objective.reward(torch.tensor([0.2, 0.5, 1.0]), CHOICES)
    torch.testing.assert_close(found, torch.tensor([-0.3, 0.5 - 0.2, 1.0 - 0.5]))


def test_easy_prompts_get_few_steps_and_hard_ones_many():
    objective = bandit(entropy=0.02)
    network = objective.roles["policy"].network
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    labels = torch.arange(16) % 2
    for step in range(120):
        index = torch.arange(16) + 16 * step
        loss, _ = objective.loss(
            PHASE, {"policy": network, "teacher": None}, Batch(index, labels=labels), Draws(0, index), step
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert network.choose(Condition(label=torch.tensor([0, 1])), 2) == [10, 50]


def test_pictures_are_drawn_in_the_steps_of_their_row():
    objective = bandit()
    del objective.quality
    objective.teacher.decode = lambda x0: x0[:, [0, 1, 0]]
    batch = Batch(torch.arange(4), labels=torch.tensor([0, 1, 2, 0]))
    noise = torch.randn(4, 2, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    models = {"teacher": objective.teacher.network}
    together = objective.quality(models, batch, [10, 50, 10, 20], noise)
    for i, count in enumerate([10, 50, 10, 20]):
        one = Batch(batch.index[i : i + 1], labels=batch.labels[i : i + 1])
        torch.testing.assert_close(objective.quality(models, one, [count], noise[i : i + 1]), together[i : i + 1])
