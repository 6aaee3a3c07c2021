"""Merges by data against their own definitions: constraints and optimality, normal equations, known weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from customization.merge import constrained_merge, fuse_by_inputs, hub_merge, lorahub_factors, record_inputs, search_weights
from customization.merge.fusion import pseudo_inverse
from customization.merge.hub import evolve
from gen.adapters import Adapter, AdapterError, Delta
from tests.customization.adapters import KINDS, adapter, change, changes, lora, normal

K, V = "denoiser.k", "denoiser.v"


def concepts():
    """Two concepts with keys and values of 12 inputs, three and two tokens, 40 rows of ordinary captions."""
    one, two = adapter("one", k=lora(1), v=lora(3, 9)), adapter("two", k=KINDS_FULL, v=lora(7, 9))
    return [one, two], [normal(20, 3, 12), normal(21, 2, 12)], normal(22, 40, 12)


KINDS_FULL = Delta({"weight": normal(30, 10, 12)})


def test_the_constrained_merge_meets_its_constraints_and_is_optimal():
    adapters, targets, regular = concepts()
    made, reports = constrained_merge(adapters, targets, regular)
    rows = torch.cat(targets)
    for layer, report in zip((K, V), reports, strict=True):
        assert made.layers[layer].rank == 5 and report.error < 1e-10
        new = changes(made)[layer]
        for one, tokens in zip(adapters, targets, strict=True):
            torch.testing.assert_close(new @ tokens.T, changes(one)[layer] @ tokens.T, rtol=1e-10, atol=1e-10)
        # every other feasible change is one more, whose rows the tokens do not see: the objective must not fall along it
        free = normal(40, len(new), 12)
        free -= free @ torch.linalg.pinv(rows) @ rows
        slope = float(((new @ regular.T) * (free @ regular.T)).sum())
        assert abs(slope) < 1e-10 * float((new @ regular.T).norm() * (free @ regular.T).norm())
        assert ((new + 1e-3 * free) @ regular.T).norm() > (new @ regular.T).norm()


def test_the_constrained_merge_is_the_published_formula_on_whole_weights():
    adapters, targets, regular = concepts()
    base = normal(50, 10, 12)
    rows = torch.cat(targets)
    values = torch.cat([t @ (base + changes(one)[K]).T for one, t in zip(adapters, targets, strict=True)])
    d = rows @ torch.linalg.inv(regular.T @ regular)
    whole = base + (values.T - base @ rows.T) @ torch.linalg.inv(d @ rows.T) @ d
    made, _ = constrained_merge(adapters, targets, regular)
    torch.testing.assert_close(base + changes(made)[K], whole, rtol=1e-9, atol=1e-9)


def test_tokens_that_depend_on_one_another():
    adapters, targets, regular = concepts()
    shared = [targets[0], torch.cat([targets[1], targets[0][:1]])]
    with pytest.raises(AdapterError, match=r"denoiser\.k: .* depend on one another \(condition number .*e\+1\d, missed by"):
        constrained_merge(adapters, shared, regular)
    twice = [torch.cat([targets[0], targets[0][:1]]), targets[1]]  # one concept, the same token twice: no contradiction
    made, reports = constrained_merge(adapters, twice, regular)
    plain, _ = constrained_merge(adapters, targets, regular)
    torch.testing.assert_close(changes(made)[K], changes(plain)[K], rtol=1e-7, atol=1e-7)
    assert max(report.error for report in reports) < 1e-8


def test_constraints_that_cannot_be_set_up():
    adapters, targets, regular = concepts()
    with pytest.raises(AdapterError, match="span 8 of 12 directions; give at least 12 rows that are independent, or a ridge"):
        constrained_merge(adapters, targets, regular[:8])
    _, reports = constrained_merge(adapters, targets, regular[:8], ridge=1e-4)
    assert max(report.error for report in reports) < 1e-9
    with pytest.raises(AdapterError, match="2 adapters and 1 sets"):
        constrained_merge(adapters, targets[:1], regular)
    with pytest.raises(AdapterError, match=r"12 and 13 values|13 and 12 values"):
        constrained_merge(adapters, targets, normal(1, 40, 13))
    with pytest.raises(AdapterError, match=r"denoiser\.w has 7 inputs and the tokens 12 values"):
        constrained_merge([adapter("x", w=lora(1, width=7)), adapters[1]], targets, regular)
    with pytest.raises(AdapterError, match="changes a bias"):
        constrained_merge([adapter("x", k=Delta({**lora(1).factors, "bias": normal(1, 10)})), adapters[1]], targets, regular)


def moments(seed: int, rows: int = 30, width: int = 12) -> torch.Tensor:
    x = normal(seed, rows, width)
    return x.T @ x


def objective(new, parts, tables, layer):
    """sum_i |(D - D_i) X_i|^2 as the trace of (D - D_i) G_i (D - D_i)^T."""
    zero = torch.zeros_like(new)
    rest = [(new - changes(part).get(layer, zero), table[layer]) for part, table in zip(parts, tables, strict=True)]
    return sum(torch.trace(d @ g @ d.T) for d, g in rest)


@pytest.mark.parametrize("second", [lora(5), KINDS_FULL, None])
def test_fusion_is_at_the_minimum(second):
    two = adapter("two", z=lora(9)) if second is None else adapter("two", k=second, z=lora(9))
    parts, tables = [adapter("one", k=lora(1)), two], [{K: moments(1)}, {K: moments(2), "denoiser.z": moments(3)}]
    made, reports = fuse_by_inputs(parts, tables)
    new = changes(made)[K].requires_grad_()
    value = objective(new, parts, tables, K)
    (gradient,) = torch.autograd.grad(value, new)
    value = value.detach()
    scale = objective(torch.zeros_like(new), parts, tables, K)
    assert float(gradient.norm()) < 1e-10 * float(scale) and 0 < float(value) < float(scale)
    assert reports[0].error == pytest.approx(float(value / scale) ** 0.5, rel=1e-8)
    assert made.layers[K].kind == ("full" if second is KINDS_FULL else "lora")
    torch.testing.assert_close(changes(made)["denoiser.z"], changes(two)["denoiser.z"], rtol=1e-9, atol=1e-9)


def test_fusion_with_few_inputs_keeps_each_concept_exactly():
    """Fewer rows than inputs: all concepts can be had at once, and unseen directions stay as they are."""
    parts = [adapter("one", k=lora(1)), adapter("two", k=lora(5))]
    rows = [normal(1, 4, 12), normal(2, 5, 12)]
    made, [report] = fuse_by_inputs(parts, [{K: x.T @ x} for x in rows])
    new = changes(made)[K]
    for part, x in zip(parts, rows, strict=True):
        torch.testing.assert_close(new @ x.T, changes(part)[K] @ x.T, rtol=1e-7, atol=1e-7)
    unseen = torch.linalg.svd(torch.cat(rows)).Vh[9:]
    assert report.error < 1e-6 and (new @ unseen.T).abs().max() < 1e-8


def test_norms_and_biases_are_averaged():
    norm = {"weight": normal(3, 7), "bias": normal(4, 7)}
    parts = [adapter("one", k=lora(1), n=Delta(norm)), adapter("two", k=lora(5), n=Delta({"weight": normal(5, 7)}))]
    made, _ = fuse_by_inputs(parts, [{K: moments(1)}, {K: moments(2)}])
    torch.testing.assert_close(made.layers["denoiser.n"].factors["weight"], (normal(3, 7) + normal(5, 7)) / 2)
    torch.testing.assert_close(made.layers["denoiser.n"].factors["bias"], normal(4, 7) / 2)


def test_a_ridge_pulls_to_the_base():
    parts, tables = [adapter("one", k=lora(1)), adapter("two", k=lora(5))], [{K: moments(1)}, {K: moments(2)}]
    made, _ = fuse_by_inputs(parts, tables, ridge=0.1)
    g = sum(table[K] for table in tables)
    right = sum(changes(p)[K] @ t[K] for p, t in zip(parts, tables, strict=True))
    torch.testing.assert_close(changes(made)[K] @ (g + 0.1 * g.trace() / 12 * torch.eye(12, dtype=g.dtype)), right)
    torch.testing.assert_close(pseudo_inverse(moments(1, 4)), torch.linalg.pinv(moments(1, 4), rcond=1e-9, hermitian=True))
    for bad, reason in (([{K: moments(1)}], "1 tables"), ([{K: moments(1)}, {}], "were not recorded for two"),
                        ([{K: moments(1)}, {K: moments(1, width=5)}], r"are \(5, 5\), and its inputs have 12")):  # fmt: skip
        with pytest.raises(AdapterError, match=reason):
            fuse_by_inputs(parts, bad)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_inputs_are_what_the_weight_is_multiplied_with(mode):
    conv = nn.Conv2d(3, 4, 3, 2, (1, 2), padding_mode=mode, bias=False).double()
    net = nn.Sequential(conv, nn.Flatten(2), nn.Linear(16, 2, bias=False).double())
    x = normal(1, 2, 3, 8, 6)
    with torch.no_grad(), record_inputs(net, ["0", "2"]) as found:
        hidden, out = conv(x), net(x)
        net(normal(2, 1, 3, 8, 6))
    hidden = torch.cat([hidden, conv(normal(2, 1, 3, 8, 6)).detach()])
    for layer, y in (("denoiser.2", hidden.flatten(2).reshape(-1, 16)),):
        torch.testing.assert_close(found[layer], y.T @ y)
    # |W X|^2 from the moments is the sum of squares of what comes out: of hidden itself, of both calls and the first again
    w = conv.weight.detach().flatten(1)
    expected = hidden.square().sum() + conv(x).detach().square().sum()
    assert float((w @ found["denoiser.0"] * w).sum()) == pytest.approx(float(expected)) and out.shape == (2, 4, 2)
    with pytest.raises(AdapterError, match="no module '3'"), record_inputs(net, ["3"]):
        pass
    assert not conv._forward_pre_hooks


def test_the_search_finds_known_weights():
    best = torch.tensor([0.8, -0.4, 0.1], dtype=torch.float64)
    bowl = torch.tensor([[3.0, 1, 0], [1, 2, -0.5], [0, -0.5, 1]], dtype=torch.float64)

    def loss(weights: dict[str, float]) -> float:
        off = torch.tensor([weights[name] for name in "abc"], dtype=torch.float64) - best
        return float(off @ bowl @ off)

    found = search_weights(loss, "abc", evaluations=600, l1=0.0, seed=1)
    assert torch.tensor(list(found.weights.values())).sub(best).abs().max() < 1e-4 and found.loss < 1e-7
    assert len(found.history) <= 600 and found.start == found.history[0][1] == pytest.approx(float(best @ bowl @ best))
    assert (
        search_weights(loss, "abc", evaluations=50, seed=1).history
        == search_weights(loss, "abc", evaluations=50, seed=1).history
    )
    priced = search_weights(loss, "abc", evaluations=600, l1=2.0, seed=1)
    assert sum(map(abs, priced.weights.values())) < 0.9 * float(best.abs().sum())


@pytest.mark.parametrize("evaluations", [1, 5, 40])
def test_the_search_is_never_worse_than_no_adapter(evaluations):
    found = search_weights(lambda w: abs(w["a"]) + math.sin(99 * w["b"]) ** 2, ["a", "b"], evaluations=evaluations)
    assert found.weights == {"a": 0.0, "b": 0.0} and found.loss == found.start == 0.0
    found = search_weights(lambda w: math.nan if w["a"] else 3.0, ["a"], evaluations=evaluations)
    assert found.weights == {"a": 0.0} and found.loss == 3.0
    edge = search_weights(lambda w: -w["a"], ["a"], evaluations=evaluations, l1=0.0)
    assert -1.5 <= edge.loss <= edge.start and (evaluations < 40 or edge.loss == pytest.approx(-1.5))
    for names in ([], ["a", "a"]):
        with pytest.raises(AdapterError, match="names"):
            search_weights(lambda w: 0.0, names)


def test_the_evolution_follows_a_narrow_valley():
    """A bowl whose axes differ by a factor of 1000 needs the covariance; a step size alone does not get there in this time."""
    turn = torch.linalg.qr(normal(3, 4, 4)).Q
    bowl = turn @ torch.diag(torch.tensor([1.0, 10, 100, 1000], dtype=torch.float64)) @ turn.T
    best = torch.tensor([0.5, -0.3, 0.2, 0.4], dtype=torch.float64)
    found = evolve(lambda x: float((x - best) @ bowl @ (x - best)), torch.zeros(4, dtype=torch.float64), 1.5, 1200, 0)
    torch.testing.assert_close(found, best, rtol=0, atol=1e-4)


def test_merges_by_searched_weights_exact_and_as_published():
    one, two = adapter("one", k=lora(1)), adapter("two", k=lora(5))
    weights = {"two": -0.5, "one": 0.9}
    made, _ = hub_merge([one, two], weights)
    torch.testing.assert_close(changes(made)[K], 0.9 * changes(one)[K] - 0.5 * changes(two)[K], rtol=1e-12, atol=1e-12)
    (b1, a1), (b2, a2) = ((p.layers[K].factors["up"], p.layers[K].factors["down"]) for p in (one, two))
    published = change(lorahub_factors([one, two], weights).layers[K])
    torch.testing.assert_close(published, 0.5 * (0.9 * b1 - 0.5 * b2) @ (0.9 * a1 - 0.5 * a2), rtol=1e-12, atol=1e-12)
    single = change(lorahub_factors([one], {"one": 0.5}).layers[K])
    torch.testing.assert_close(single, 0.25 * changes(one)[K], rtol=1e-12, atol=1e-12)
    for other in (lora(5, rank=4), lora(5, scale=1.0), KINDS["loha"]()):
        with pytest.raises(AdapterError, match=r"same rank and scale in all|different models"):
            lorahub_factors([one, adapter("two", k=other)], weights)
    with pytest.raises(AdapterError, match="The weights are for one, three, and the adapters are one, two"):
        hub_merge([one, two], {"one": 1.0, "three": 1.0})
    with pytest.raises(AdapterError, match="no adapters"):
        hub_merge([], {})
    assert isinstance(made, Adapter)
