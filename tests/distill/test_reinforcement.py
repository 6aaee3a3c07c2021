"""Online reinforcement: Flow-GRPO (arXiv 2505.05470), MixGRPO's window (2507.21802), DiffusionNFT (2509.16117).

Advantages within groups: arXiv 2402.03300. Policies have two parameters, in float64.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from distill.losses.transitions import drawn
from distill.objectives.bases.advantages import advantages
from distill.objectives.diffusion_nft import DiffusionNftConfig, DiffusionNftObjective
from distill.objectives.flow_grpo import FlowGrpoConfig, FlowGrpoObjective
from distill.types import Batch, Draws
from samplers.denoiser import Condition
from tests.distill.policies import gradients, policy, quadratic
from tests.distill.students import batch_of, loss_of, models_of

KINDS = [("flow", 0.7), ("ddim", 1.0), ("renoise", 1.0)]


def grpo(**config) -> FlowGrpoObjective:
    settings = {"steps": 3, "group": 4, "kl": 0.0, "clip": 0.2, "normalise": False, **config}
    objective = policy(FlowGrpoObjective, FlowGrpoConfig, **settings)
    objective.rewards = [(1.0, quadratic)]
    return objective


def moved(objective, role: str = "student"):
    with torch.no_grad():
        objective.roles[role].network.a += 0.05
        objective.roles[role].network.b -= 0.03
    return objective


class Enumerated(Draws):
    """Unit normal numbers replaced by -1 and 1, which have the same moments up to the third: row i has the i-th of `rows`."""

    def __init__(self, rows: list[tuple[float, float]]):
        super().__init__(0, torch.arange(len(rows)))
        object.__setattr__(self, "noise", {f"noise {3 - k}": torch.tensor(v) for k, v in enumerate(zip(*rows, strict=True))})

    def normal_like(self, purpose: str, x: Tensor) -> Tensor:
        if purpose == "eps":
            return torch.full_like(x, 0.4)
        return self.noise[purpose].to(x).view(-1, 1, 1, 1).expand_as(x)  # type: ignore[attr-defined]


def value(x0: Tensor, batch=None) -> Tensor:
    """A reward that is quadratic in what is drawn."""
    return (1.5 * x0 - x0.square()).flatten(1).sum(1)


def exact_gradient(objective, rows) -> list[float]:
    """Of the expected reward in the chain's two steps with noise, by differentiating through them; every outcome counts alike.
    The last step, without noise, has no probability, and is a part of what is judged."""
    student, batch, draws = objective.roles["student"].network, batch_for(len(rows)), Enumerated(rows)
    x = objective.start(torch.full((len(rows), 1, 1, 1), 0.4, dtype=torch.float64))
    for number in (3, 2):
        mean, deviation = objective.transition(student, x, number, Condition(label=batch.labels), 1.0)
        x = mean + deviation.view(-1, 1, 1, 1) * draws.normal_like(f"noise {number}", x)
    return gradients(objective, value(student.a.detach() + student.b.detach() * x).mean())


def batch_for(count: int) -> Batch:
    zeros = torch.zeros(count, 1, 1, 1, dtype=torch.float64)
    return Batch(torch.arange(count), latents=zeros, labels=torch.zeros(count, dtype=torch.int64))


@pytest.mark.parametrize(("noise", "eta"), KINDS)
def test_the_policy_gradient_is_unbiased_on_a_chain_of_two_steps(noise, eta):
    """Over all four outcomes the mean of A grad log p is the gradient of the expected reward; the loss has half of it, as it is
    a mean over the two steps. The group is all outcomes, so its mean is the exact baseline."""
    objective = grpo(noise=noise, eta=eta)
    objective.score = value
    outcomes = list(itertools.product((-1.0, 1.0), repeat=2))
    exact = exact_gradient(objective, outcomes)
    loss, _ = objective.loss(None, models_of(objective), batch_for(4), Enumerated(outcomes), 0)
    assert [-2 * v for v in gradients(objective, loss)] == pytest.approx(exact, rel=1e-9)
    assert min(abs(v) for v in exact) > 1e-3


def test_the_mean_of_a_group_scales_the_gradient_and_no_more():
    """Over all groups of two outcomes, drawn with replacement, the expected gradient is (1 - 1 / G) times the exact one."""
    objective = grpo(group=2)
    objective.score = value
    outcomes = list(itertools.product((-1.0, 1.0), repeat=2))
    groups = [outcome for pair in itertools.product(outcomes, repeat=2) for outcome in pair]
    exact = exact_gradient(objective, outcomes)
    loss, _ = objective.loss(None, models_of(objective), batch_for(len(groups)), Enumerated(groups), 0)
    assert [-4 * v for v in gradients(objective, loss)] == pytest.approx(exact, rel=1e-9)


def test_advantages_are_within_groups():
    rewards = torch.tensor([1.0, 3.0, 10.0, 10.0])
    assert advantages(rewards, 2, normalise=False).tolist() == [-1, 1, 0, 0]
    assert advantages(rewards, 2).tolist() == pytest.approx([-1, 1, 0, 0], abs=1e-3)
    assert advantages(torch.tensor([0.0, 0.0, 0.0, 100.0]), 4, normalise=False, largest=5.0).tolist() == [-5, -5, -5, 5]


def test_ratios_are_to_the_policy_that_drew_and_held_where_that_would_go_on():
    """Against normal distributions of torch's own, a student that has moved, and a clip that some ratios pass."""
    objective, batch = moved(grpo(refresh=2, clip=1e-3, kl=0.3)), batch_of(8)
    batch.labels = batch.labels[::4].repeat_interleave(4)
    roles, draws, condition = objective.roles, Draws(0, batch.index, "student"), Condition(label=batch.labels)
    student, old, teacher = (roles[name].network for name in ("student", "old", "teacher"))
    taken, x0 = objective.rollout(old, draws.normal_like("eps", batch.latents), condition, 1.0, draws, (3, 2))
    gain = advantages(quadratic((x0 / 2 + 0.5).clamp(0, 1), ()), 4, False)
    total, held = 0.0, 0
    for one in taken:
        (mean, deviation), (mean_old, _), (mean_ref, _) = (
            objective.transition(network, one.x, one.number, condition, 1.0) for network in (student, old, teacher)
        )
        wide = deviation.view(-1, 1, 1, 1)
        new, before, reference = (torch.distributions.Normal(m, wide.expand_as(m)) for m in (mean, mean_old, mean_ref))
        ratio = (new.log_prob(one.ahead) - before.log_prob(one.ahead)).flatten(1).mean(1).exp()
        worse = torch.where(gain > 0, ratio.clamp(max=1.001), ratio.clamp(min=0.999)) * gain
        held += int((worse != ratio * gain).sum())
        total = total - worse.mean() / 2 + 0.3 / 2 * torch.distributions.kl_divergence(new, reference).flatten(1).mean(1).mean()
    loss = loss_of(objective, batch)
    assert held > 0 and loss.item() == pytest.approx(total.item(), rel=1e-9)
    assert gradients(objective, loss) == pytest.approx(gradients(objective, total), rel=1e-9)


def test_a_policy_draws_for_as_many_updates_as_it_is_to():
    objective = moved(grpo(refresh=2))
    student, old = (objective.roles[name].network for name in ("student", "old"))
    objective.after_step(0)
    assert old.a != student.a
    objective.after_step(1)
    assert old.a == student.a and "old" not in grpo().roles


def test_a_window_of_noise_moves_to_the_data():
    """Steps outside of it are the ODE's, and the picture of a window without noise is that of no noise at all."""
    objective = grpo(steps=6, window=2, window_every=10)
    assert [list(objective.trained(step)) for step in (0, 9, 10, 25, 30, 1000)] == [
        [6, 5], [6, 5], [5, 4], [4, 3], [3, 2], [3, 2],
    ]  # fmt: skip
    assert list(grpo(steps=6).trained(77)) == [6, 5, 4, 3, 2]
    batch = batch_of(4)
    noise, condition = batch.latents, Condition(label=batch.labels)
    student, draws = objective.roles["student"].network, Draws(0, batch.index)
    taken, x0 = objective.rollout(student, noise, condition, 1.0, draws, objective.trained(10))
    x = objective.descend(student, objective.start(noise), condition, 1.0, end=5)
    for number in (5, 4):
        mean, deviation = objective.transition(student, x, number, condition, 1.0)
        x = drawn(mean, deviation, draws.normal_like(f"noise {number}", x))
    torch.testing.assert_close(x0, objective.descend(student, x, condition, 1.0, start=3).detach())
    assert [one.number for one in taken] == [5, 4]
    with pytest.raises(ValueError, match="window is 6, and 5 steps may have noise"):
        FlowGrpoConfig(steps=6, window=6)


# ---- DiffusionNFT ----


def nft(**config) -> DiffusionNftObjective:
    settings = {"steps": 2, "group": 4, "beta": 0.5, "kl": 0.2, **config}
    objective = policy(DiffusionNftObjective, DiffusionNftConfig, **settings)
    objective.rewards = [(1.0, quadratic)]
    return objective


def nft_by_hand(objective, batch, good=None):
    """The loss from the old policy's pictures, made here."""
    draws = Draws(0, batch.index, "student")
    student, old, teacher = (objective.roles[name].network for name in ("student", "old", "teacher"))
    x = draws.normal("start", (2, 2, 2)).double()
    for s, t in ((1.0, 0.5), (0.5, 0.0)):
        x0 = old.a + old.b * x
        x = (1 - t) * x0 + t / s * (x - (1 - s) * x0)
    data = x
    if good is None:
        rewards = quadratic((data / 2 + 0.5).clamp(0, 1), ()).unflatten(0, (-1, 4))
        scaled = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True, correction=0) + 1e-4)
        good = (0.5 + scaled.clamp(-5, 5) / 10).flatten()
    time, eps = draws.uniform("time").double().view(-1, 1, 1, 1), draws.normal("eps", (2, 2, 2)).double()
    noisy = (1 - time) * data + time * eps
    own, before, reference = (network.a + network.b * noisy for network in (student, old, teacher))
    losses = []
    for mixed in (0.5 * own + 0.5 * before, 1.5 * before - 0.5 * own):
        size = (mixed - data).abs().flatten(1).mean(1).detach()
        losses.append((mixed - data).square().flatten(1).mean(1) / size)
    policy_loss = 5 / 0.5 * (good * losses[0] + (1 - good) * losses[1]).mean()
    return policy_loss + 0.2 * (own - reference).square().mean(), good


def test_nft_is_its_closed_form():
    objective, batch = moved(moved(nft()), "old"), batch_of(8)
    moved(objective)
    loss, (by_hand, good) = loss_of(objective, batch), nft_by_hand(objective, batch)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-9)
    assert gradients(objective, loss) == pytest.approx(gradients(objective, by_hand), rel=1e-9)
    assert good.min() < 0.5 < good.max()


def test_nft_without_a_preference_stays_where_it_is():
    """Pictures of equal rewards pull both ways alike where the student is the old policy; others do not."""
    objective, batch = nft(kl=0.0), batch_of(8)
    objective.rewards = [(1.0, lambda images, prompts: torch.zeros(len(images), dtype=images.dtype))]
    assert gradients(objective, loss_of(objective, batch)) == pytest.approx([0, 0], abs=1e-9)
    objective.rewards = [(1.0, quadratic)]
    assert max(abs(v) for v in gradients(objective, loss_of(objective, batch))) > 1e-2
    assert nft().goodness(torch.tensor([0.0, 1.0, 2.0, 3.0])).tolist() == pytest.approx([0.366, 0.455, 0.545, 0.634], abs=1e-3)


def test_the_old_policy_follows():
    objective = moved(nft(old_decay=(1, 0.25, 0.4)))
    student, old, start = (objective.roles[n].network.a.item() for n in ("student", "old", "teacher"))
    assert old == start != student
    decays = []
    for step in range(5):
        with torch.no_grad():
            objective.roles["old"].network.a.fill_(0.0)
        objective.after_step(step)
        decays.append(1 - objective.roles["old"].network.a.item() / student)
    assert decays == pytest.approx([0, 0.25, 0.4, 0.4, 0.4], abs=1e-9)
    with pytest.raises(ValueError, match="old_decay is"):
        DiffusionNftConfig(old_decay=(0, 0.1, 1.0))


@pytest.mark.parametrize("make", [
    lambda: nft(kl=0.0, group=8, steps=4),
    lambda: grpo(group=8, normalise=True, eta=0.7),
])  # fmt: skip
def test_what_is_drawn_gets_better(make):
    """Brighter pictures are better: over updates what is drawn gets brighter, on noise that never comes again."""
    objective = make()
    objective.rewards = [(1.0, lambda images, prompts: images.flatten(1).mean(1))]
    optimizer, found = torch.optim.SGD(objective.roles["student"].network.parameters(), lr=0.02), []
    for number in range(25):
        batch = batch_of(64, first=64 * number)
        draws = Draws(0, batch.index, "student")
        loss, logged = objective.loss(None, models_of(objective), batch, draws, number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.after_step(number)
        found.append(logged["reward"].item())
    assert sum(found[-5:]) / 5 > sum(found[:5]) / 5 + 0.02, found


@pytest.mark.parametrize(("noise", "sampler"), [("flow", "ddim"), ("ddim", "ddim"), ("renoise", "lcm")])
def test_a_finished_policy_is_sampled_as_it_was_tuned(noise, sampler):
    assert grpo(noise=noise).defaults().sampler == sampler
