"""Inductive moment matching: the discrepancy by brute force, the levels, the induction's first step, exact maps."""

from __future__ import annotations

import math

import pytest
import torch

from distill.losses import solver_steps as steps
from distill.losses.alike import alike
from distill.objectives.inductive_moment_matching import MomentMatchingConfig, MomentMatchingObjective, mmd
from distill.types import Batch, Draws
from gen.nn.registry import build
from samplers.denoiser import Condition
from tests.distill.students import FLOW, SIZES, batch_of, loss_of, model, tiny_teacher
from tests.gen.conftest import randomise

CPU = torch.device("cpu")
TOLD = {**SIZES, "scalars": ["target_time"]}


def objective_of(seed: int = 3, **config) -> MomentMatchingObjective:
    torch.manual_seed(seed)
    network = randomise(build({"type": "dit", **TOLD}), seed).double()
    return MomentMatchingObjective(MomentMatchingConfig(**{"start": "network", **config}), network, None, tiny_teacher())


@pytest.mark.parametrize("kind", ["laplace", "rbf", "energy"])
def test_the_discrepancy_is_its_double_sum(kind):
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 5, generator=g).double() for _ in range(2))
    width = torch.tensor([0.3, 0.8]).double()
    compared = torch.ones(2, 3, 3, dtype=torch.bool)
    compared[1, 0, 2] = compared[1, 2, 0] = False
    got = mmd(a, b, width, compared, kind)
    of = {"laplace": lambda d: math.exp(-d), "rbf": lambda d: math.exp(-d * d / 2), "energy": lambda d: -d}[kind]
    for group in range(2):

        def k(x, y, group=group):
            return of(max((x - y).norm().item(), 1e-8) / (width[group].item() * 5))

        pairs = [(j, i) for j in range(3) for i in range(3) if compared[group, j, i]]
        total = sum(k(x[j], x[i]) + k(y[j], y[i]) - 2 * k(x[j], y[i]) for j, i in pairs for x, y in [(a[group], b[group])])
        assert got[group].item() == pytest.approx(total / len(pairs), rel=1e-10)


def test_the_discrepancy_is_zero_for_equal_sets_and_positive_for_others():
    g = torch.Generator().manual_seed(1)
    a = torch.randn(50, 4, 6, generator=g).double()
    everything = torch.ones(50, 4, 4, dtype=torch.bool)
    shuffled = a[:, torch.tensor([2, 0, 3, 1])]
    torch.testing.assert_close(mmd(a, shuffled, torch.ones(50), everything), torch.zeros(50).double(), atol=1e-12, rtol=0)
    other = mmd(a, torch.randn(50, 4, 6, generator=g).double(), torch.ones(50), everything)
    assert (other > 1e-3).all()
    equal = a.clone().requires_grad_()
    mmd(equal, a, torch.ones(50), everything).sum().backward()
    assert torch.isfinite(equal.grad).all()


def test_levels_are_shared_by_a_group_and_ordered():
    objective = objective_of(particles=4, gap=6)
    s, r, t = objective.times(Draws(0, torch.arange(2000)), CPU)
    for value in (s, r, t):
        assert (value.unflatten(0, (-1, 4)) == value[::4, None]).all()
    assert (s <= r).all() and (r < t).all() and (t <= 0.994).all() and (s >= 0.001).all()
    ratio = {name: v / (1 - v) for name, v in {"r": r, "t": t}.items()}
    free = r > s
    step = (0.994 / 0.006 - 0.001 / 0.999) / 64
    torch.testing.assert_close((ratio["t"] - ratio["r"])[free], torch.full_like(t[free], step))
    assert 0.05 < free.float().mean() < 0.95
    assert t.mean().item() == pytest.approx(0.4975, abs=0.05)


def test_a_jump_to_the_same_level_is_no_jump():
    """The base of the induction: f_{s,s} is the identity exactly, whatever the network says."""
    objective = objective_of()
    x = batch_of(3, shape=(2, 4, 4)).latents
    level = objective.path(torch.tensor([0.3, 0.5, 0.9]).double())
    out = objective.jump(objective.roles["student"].network, x, level, level, Condition(label=torch.tensor([0, 1, 2])), 1.0)
    torch.testing.assert_close(out, x, atol=1e-12, rtol=0)


def test_the_loss_is_its_formula():
    objective = objective_of(particles=2, gap=5)
    batch = batch_of(6, shape=(2, 4, 4), labels=1)
    draws, network = Draws(0, batch.index, "student"), objective.roles["student"].network
    s, r, t = (v[::2] for v in objective.times(draws, CPU))
    eps, total = draws.normal("eps", (2, 4, 4)).double(), 0.0
    for group in range(3):
        sets = []
        for start in (t[group], r[group]):
            ends = []
            for i in (2 * group, 2 * group + 1):
                x = ((1 - start) * batch.latents[i] + start * eps[i])[None]
                condition = Condition(label=batch.labels[i : i + 1], extra={"target_time": s[group][None]})
                x0 = network(x, start[None], condition)
                ends.append((x - (start - s[group]) * (x - x0) / start)[0])  # Euler with the velocity
            sets.append(ends)

        def k(a, b, group=group):
            return torch.exp(-(a - b).norm() / ((t[group] - s[group]) * 32))

        (a, b), T = sets, t[group]
        pairs = [(j, i) for j in range(2) for i in range(2)]
        value = sum(k(a[j], a[i]) + k(b[j], b[i]) - 2 * k(a[j], b[i]) for j, i in pairs) / 4
        slope = 2 / (T * (1 - T))  # -d lambda / dt of 2 log((1 - t) / t)
        weight = 0.5 * torch.sigmoid(5 - 2 * torch.log((1 - T) / T)) * slope * (1 - T) / ((1 - T) ** 2 + T**2)
        total += (weight * value).item() / 3
    assert loss_of(objective, batch).item() == pytest.approx(total, rel=1e-6)


def test_the_cleaner_start_makes_no_gradient():
    objective = objective_of(particles=2)
    loss = loss_of(objective, batch_of(4, shape=(2, 4, 4)))
    loss.backward()
    assert all(p.grad is None for p in objective.roles["teacher"].network.parameters())
    path = model(FLOW).path.build()
    x0, x = batch_of(2).latents, batch_of(2, 5).latents
    level = path(torch.tensor([0.4, 0.8]).double())
    torch.testing.assert_close(steps.ddim(x0, x, level, level), x)


def test_other_conditions_are_not_compared():
    batch = Batch(index=torch.arange(4), captions=["a", "b", "a", "a"])
    assert alike(batch, 4, CPU)[0].tolist() == [
        [True, False, True, True], [False, True, False, False], [True, False, True, True], [True, False, True, True],
    ]  # fmt: skip
    assert alike(Batch(index=torch.arange(4), labels=torch.tensor([0, 0, 1, 2])), 2, CPU).tolist() == [
        [[True, True], [True, True]], [[True, False], [False, True]],
    ]  # fmt: skip
    assert alike(Batch(index=torch.arange(2)), 2, CPU).all()


def test_groups_must_fit():
    with pytest.raises(ValueError, match="groups of 4"):
        loss_of(objective_of(), batch_of(6, shape=(2, 4, 4)))


def test_one_particle_with_the_energy_kernel_is_a_consistency_loss():
    """Twice the distance between the two jumps: there is nothing else to compare."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 1, 5, generator=g).double() for _ in range(2))
    width = torch.tensor([0.3, 0.8, 0.5]).double()
    got = mmd(a, b, width, torch.ones(3, 1, 1, dtype=torch.bool), "energy")
    torch.testing.assert_close(got, 2 * (a - b).norm(dim=2)[:, 0] / (5 * width), atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize("mapping", ["ratio", "time", "log_ratio", "inverse_ratio"])
def test_r_is_below_t_by_a_constant_of_its_mapping(mapping):
    """In the quantity that the mapping names, by the same for all t, and 2^-gap of its whole range."""
    objective = objective_of(mapping=mapping, gap=8, earliest=0.01, latest=0.9)
    of = {
        "ratio": lambda t: t / (1 - t),
        "time": lambda t: t,
        "log_ratio": lambda t: torch.log(t / (1 - t)),
        "inverse_ratio": lambda t: -(1 - t) / t,
    }[mapping]
    t = torch.linspace(0.1, 0.9, 20, dtype=torch.float64)
    first, last = (of(torch.tensor(v, dtype=torch.float64)) for v in (0.01, 0.9))
    torch.testing.assert_close(of(t) - of(objective.below(t)), ((last - first) / 256).expand(20), atol=1e-9, rtol=1e-9)
    s, r, drawn = objective.times(Draws(0, torch.arange(400)), CPU)
    assert (s <= r).all() and (r < drawn).all()


def test_the_finished_student_may_be_guided_and_may_restart():
    plain, other = objective_of().defaults(), objective_of(guidance_scale=1.5, restart=True).defaults()
    assert (plain.guidance_scale, dict(plain.sampler_options)) == (1.0, {})
    assert (other.guidance, other.guidance_scale, dict(other.sampler_options)) == ("cfg", 1.5, {"gamma": 1.0})
