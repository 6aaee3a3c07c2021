"""Methods that move drawn pictures among the data's: sliced MMD flows and drifting models."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from distill.losses.sliced import line_gradient, slice_constant, sliced_gradient
from distill.objectives.drifting import DriftingConfig, DriftingObjective, drift, drifting_loss
from distill.objectives.sliced_mmd_flow import SlicedFlowConfig, SlicedFlowObjective
from distill.types import Draws
from samplers.denoiser import Condition
from tests.distill.students import STUDENT, batch_of, exact_teacher, latents, models_of, tiny_teacher
from tests.distill.test_distribution_matching import Spread, student


def points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


# ---- sliced MMD ----


def energy(x: Tensor, y: Tensor) -> Tensor:
    """F by its double sums, for points (N, d) and (M, d)."""
    between = torch.stack([(a - b).norm() for a in x for b in y]).sum() / (len(x) * len(y))
    within = sum((a - b).norm() for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / (2 * len(x) ** 2)
    return between - within


def test_the_gradient_on_a_line_is_that_of_the_double_sum():
    x, y = points(3, 7, seed=1), points(3, 5, seed=2)
    x[0, 1], x[1, 2], y[2, 0] = x[0, 3].clone(), y[1, 1].clone(), y[2, 4].clone()  # equal points take no side
    found = line_gradient(x, y)
    for line in range(3):
        for i, at in enumerate(x[line].tolist()):
            signs = [(at > b) - (at < b) for b in y[line].tolist()], [(at > b) - (at < b) for b in x[line].tolist()]
            assert found[line, i].item() == pytest.approx(sum(signs[0]) / 5 - sum(signs[1]) / 7, abs=1e-12)
    own = x[:, [6, 2, 0, 4, 1, 3, 5]]
    assert line_gradient(x, own).abs().max() < 1e-12  # nothing moves a set onto itself


def test_slices_give_the_gradient_in_any_dimension():
    assert slice_constant(1) == pytest.approx(1) and slice_constant(2) == pytest.approx(math.pi / 2)
    x, y = points(6, 3, seed=1).requires_grad_(), points(8, 3, seed=2) + 0.5
    (exact,) = torch.autograd.grad(energy(x, y), x)
    found = sliced_gradient(x.detach(), y, 5 * points(40000, 3, seed=3))
    torch.testing.assert_close(found, 6 * exact, atol=0.02, rtol=0)
    assert (found.norm(dim=1) > 0.1).all()
    line_x, line_y = x.detach()[:, :1], y[:, :1]
    torch.testing.assert_close(sliced_gradient(line_x, line_y, -torch.ones(1, 1).double()), line_gradient(line_x.T, line_y.T).T)


def flow(network=None, /, **changes) -> SlicedFlowObjective:
    own = {"start": "network", "teacher": {}, "drop_label": 0.0, **changes}
    teacher = tiny_teacher() if network is None else exact_teacher(gaussian=True)
    return SlicedFlowObjective(SlicedFlowConfig(**own), network or student(), None, teacher)


def test_the_student_is_drawn_to_where_the_flow_ends():
    """Two steps with momentum, by hand; labels are appended, weighted, and stay."""
    objective = flow(flow_steps=2, momentum=0.5, flow_rate=0.3, slices=3, condition_weight=2.0)
    batch, models = latents(5), models_of(objective)
    draws = Draws(0, batch.index, "student")
    x0, real, _, _ = objective.rollout(models["student"], batch, draws)
    told = torch.zeros(5, 4).double()
    for row, label in enumerate(batch.labels.tolist()):
        told[row, label] = 2.0
    at, data = torch.cat([x0.detach().flatten(1), told], 1), torch.cat([real.flatten(1), told], 1)
    speed = torch.zeros_like(at)
    for number in range(2):
        gradient = sliced_gradient(at, data, draws.normal(f"slices {number}", (3, 36)).flatten(0, 1).double())
        speed = 0.5 * speed + torch.cat([gradient[:, :32], torch.zeros(5, 4)], 1)
        at = at - 0.3 * speed
    loss, _ = objective.loss(STUDENT, models, batch, draws, 0)
    target = at[:, :32].view_as(x0).float()
    torch.testing.assert_close(loss.detach(), 0.5 * (x0 - target).square().mean().detach(), atol=1e-7, rtol=1e-4)
    loss.backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in models["student"].parameters())


def test_conditions_say_whose_data_a_picture_goes_to():
    """All drawings are at 0, data of label 0 at 1 and of label 1 at -1: only who is told its label knows where to go."""
    drawn, real = torch.zeros(40, 2, 2, 2), torch.ones(40, 2, 2, 2)
    label = torch.arange(40) % 2
    real[label == 1] *= -1
    draws = Draws(0, torch.arange(40), "student")
    for weight in (0.0, 3.0):
        objective = flow(condition_weight=weight, slices=40)
        direction = objective.flowed(drawn, real, Condition(label=label), draws).mean((1, 2, 3))
        apart = direction[label == 1].mean() - direction[label == 0].mean()
        assert abs(apart) < 1e-6 if weight == 0 else apart > 0.05
    text = Condition(tokens=points(2, 3, 4), mask=torch.tensor([[True, True, False], [True, False, False]]))
    told = flow(condition_weight=1.0).told(text, 2)
    torch.testing.assert_close(told, torch.stack([text.tokens[0, :2].mean(0), text.tokens[1, 0]]))


@pytest.mark.parametrize("method", ["sliced", "drifting"])
def test_a_student_comes_to_the_data(method):
    """From a narrow heap beside it to the mean 0 and deviation 1 of the data."""
    like = torch.full((2, 2, 2), 1.0).double()
    one = Spread(like, torch.full_like(like, 0.4))
    if method == "sliced":
        objective = flow(one, slices=8)
    else:
        config = {"start": "network", "teacher": {}, "representations": ["latents"], "temperatures": [0.3]}
        objective = DriftingObjective(DriftingConfig(**config), one, None, exact_teacher(gaussian=True))
    optimizer = torch.optim.Adam(one.parameters(), lr=0.03, betas=(0.5, 0.99))
    for step in range(150):
        optimizer.param_groups[0]["lr"] = 0.03 * min(1.0, 2 - step / 75)
        batch = batch_of(64, first=64 * step, labels=1)
        optimizer.zero_grad()
        objective.loss(STUDENT, models_of(objective), batch, Draws(0, batch.index, "student"), step)[0].backward()
        optimizer.step()
    assert one.mean.detach().abs().max() < 0.25
    assert (one.log_std.detach().exp() - 1).abs().max() < 0.3


# ---- drifting ----


def by_hand(x: Tensor, data: Tensor, same: Tensor, temperature: float, guidance: float = 1.0) -> Tensor:
    """The field, as a sum over pairs of a positive and a negative sample."""
    count = len(x)
    field = torch.zeros_like(x)
    table: dict[tuple[int, str, int], float] = {}
    for i in range(count):
        others = [j for j in range(count) if not same[i, j]]
        near = sum(1 for j in range(count) if same[i, j] and j != i)
        for j in range(count):
            k = math.exp(-(x[i] - data[j]).norm().item() / temperature)
            if same[i, j]:
                table[i, "data", j] = k
                if i != j:
                    table[i, "drawn", j] = math.exp(-(x[i] - x[j]).norm().item() / temperature)
            elif guidance > 1:
                table[i, "other", j] = k * (guidance - 1) * near / len(others)
    rows = {i: sum(k for (a, _, _), k in table.items() if a == i) for i in range(count)}
    columns: dict[tuple[str, int], float] = {}
    for (_, which, j), k in table.items():
        columns[which, j] = columns.get((which, j), 0.0) + k
    a = {key: k / math.sqrt(rows[key[0]] * columns[key[1], key[2]]) for key, k in table.items()}
    for i in range(count):
        for (one, which, j), positive in a.items():
            if one != i or which != "data":
                continue
            for (two, kind, m), negative in a.items():
                if two == i and kind != "data":
                    field[i] += positive * negative * (data[j] - (x if kind == "drawn" else data)[m])
    return field


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_the_field_is_its_sum_over_pairs(guidance):
    x, data = points(5, 3, seed=1), points(5, 3, seed=2)
    labels = torch.tensor([0, 0, 1, 1, 0])
    same = labels[:, None] == labels
    torch.testing.assert_close(
        drift(x, data, same, 0.7, guidance), by_hand(x, data, same, 0.7, guidance), atol=1e-12, rtol=1e-9
    )
    assert not torch.allclose(drift(x, data, same, 0.7, 1.0), drift(x, data, same, 0.7, 2.5))


def test_conditions_are_fields_of_their_own_and_a_sample_alone_stays():
    x, data = points(6, 3, seed=1), points(6, 3, seed=2)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    found = drift(x, data, labels[:, None] == labels, 0.7)
    for rows in (slice(0, 3), slice(3, 5)):
        part = x[rows], data[rows]
        torch.testing.assert_close(found[rows], drift(*part, torch.ones(len(part[0]), len(part[0])).bool(), 0.7))
    assert torch.equal(found[5], torch.zeros(3).double())


def test_the_field_vanishes_where_drawings_are_distributed_as_the_data():
    everyone = torch.ones(400, 400, dtype=torch.bool)
    alike, moved = (drift(points(400, 2, seed=1) + shift, points(400, 2, seed=2), everyone, 1.0) for shift in (0.0, 1.0))
    assert alike.norm(dim=1).mean() < 0.2 * moved.norm(dim=1).mean()
    assert (moved.mean(0) < -0.05).all()  # back to the data


def test_the_loss_follows_the_normalised_fields_in_features_of_any_scale():
    x, data = points(8, 4, seed=1), points(8, 4, seed=2) + 1
    same = torch.ones(8, 8, dtype=torch.bool)
    given = x.clone().requires_grad_()
    loss, _ = drifting_loss(given, data, same, (0.05, 0.2))
    loss.backward()
    size = torch.cdist(x, data).mean() / 2
    fields = [drift(x / size, data / size, same, temperature * 2) for temperature in (0.05, 0.2)]
    total = sum(field / field.square().mean().sqrt() for field in fields)
    torch.testing.assert_close(given.grad, -2 * total / size / 32, atol=1e-9, rtol=1e-6)
    assert loss.item() == pytest.approx(total.square().mean().item(), rel=1e-9)
    assert drifting_loss(100 * x, 100 * data, same, (0.05, 0.2))[0].item() == pytest.approx(loss.item(), rel=1e-6)


def test_both_of_two_places_are_found():
    """Drawings that begin at one of two heaps of data come to both; attraction alone would leave them there."""
    data = torch.cat([points(64, 2, seed=1) * 0.1 - 1, points(64, 2, seed=2) * 0.1 + 1])
    x = (points(128, 2, seed=3) * 0.3 - 0.5).requires_grad_()
    assert (x.mean(1) > 0).double().mean() < 0.1
    everyone = torch.ones(128, 128, dtype=torch.bool)
    optimizer = torch.optim.Adam([x], lr=0.03)
    for _ in range(200):
        optimizer.zero_grad()
        drifting_loss(x, data, everyone, (0.1, 0.3))[0].backward()
        optimizer.step()
    assert 0.3 < (x.mean(1) > 0).double().mean() < 0.6


def test_features_of_the_teacher_and_plain_latents_are_summed():
    config = {"start": "network", "teacher": {}, "drop_label": 0.0}
    losses = {}
    for names in (("teacher",), ("latents",), ("teacher", "latents")):
        objective = DriftingObjective(DriftingConfig(**config, representations=names), student(), None, tiny_teacher())
        batch = replace(latents(6), labels=torch.tensor([0, 0, 1, 1, 2, 2]))
        models = models_of(objective)
        loss, logged = objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)
        loss.backward()
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in models["student"].parameters())
        assert all(p.grad is None for p in models["teacher"].parameters())
        losses[names] = loss.item()
        assert logged["compared"].item() == pytest.approx(1 / 3)
    assert losses["teacher", "latents"] == pytest.approx(losses["teacher",] + losses["latents",], rel=1e-5)
