"""Sparse updates of small weights, and forgetting in one layer."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from customization.methods.sara import SparseUpdate, apply_sparse, learning_rate
from customization.methods.slug import LayerScore, layer_scores, pareto_front, unlearn
from gen.adapters import AdapterError, Adapters
from gen.io.weights import CheckpointError
from tests.customization.adapters import normal


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(1), nn.Linear(48, 6), nn.Tanh(), nn.Linear(6, 2)).double()


X, Y = normal(1, 5, 2, 4, 4), normal(2, 5, 2)


def step(update: SparseUpdate, times: int = 20, rate: float = 0.05) -> None:
    optimizer = torch.optim.Adam(update.parameters(), rate)
    for _ in range(times):
        optimizer.zero_grad()
        (((update(X) - Y) ** 2).mean() + 1e-3 * update.nuclear_norm()).backward()
        optimizer.step()


def test_without_a_step_every_bit_is_the_networks():
    net = network()
    net[2].weight.data[0, :3] = torch.tensor([-0.0, 0.0, 5e-324])
    update = SparseUpdate(net, 0.05)
    for name, weight in update.weights().items():
        assert torch.equal(weight.view(torch.int64), net.get_parameter(name).view(torch.int64))
    with torch.no_grad():
        assert torch.equal(update(X), net(X))
    assert update.nuclear_norm() == 0
    update.nuclear_norm().backward()
    assert all(p.grad.abs().max() == 0 for p in update.parameters())


def test_only_small_weights_train_and_the_network_is_not_written_to():
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    update = SparseUpdate(net, 0.05)
    with torch.no_grad():
        start = float(((update(X) - Y) ** 2).mean())
    step(update)
    with torch.no_grad():
        assert float(((update(X) - Y) ** 2).mean()) < 0.7 * start
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    trained = {name for name, value in before.items() if value.ndim > 1 and bool((value.abs() < 0.05).any())}
    assert update.weights().keys() == trained and len(trained) > 1
    for name, weight in update.weights().items():
        small = before[name].abs() < 0.05
        assert torch.equal(weight[~small], before[name][~small]) and (weight[small] != before[name][small]).any()


def test_the_nuclear_norm_and_its_gradient():
    update = SparseUpdate(network(), 0.05, ["2"])
    step(update, 3)
    new, old = update.weights()["2.weight"].detach(), update.network[2].weight.detach()
    assert float(update.nuclear_norm().detach()) == pytest.approx(float(torch.linalg.svdvals(new - old).sum()))
    update.zero_grad()
    update.nuclear_norm().backward()
    values = update.values["2_weight"]
    for i in (0, len(values) - 1):
        both = []
        for sign in (1, -1):
            moved = new.flatten().clone()
            moved[update.index["2.weight"][i]] += sign * 1e-6
            both.append(float(torch.linalg.svdvals(moved.reshape(new.shape) - old).sum()))
        assert float(values.grad[i]) == pytest.approx((both[0] - both[1]) / 2e-6, abs=1e-5)


def test_reselection_settles_what_has_grown():
    update = SparseUpdate(network(), 0.05)
    step(update)
    again = update.reselected()
    for name, weight in update.weights().items():
        assert torch.equal(again.weights()[name], weight)
        grown = (weight.flatten()[update.index[name]].abs() >= 0.05).sum()
        assert len(again.index[name]) == len(update.index[name]) - int(grown)
    kept = {name: weight.detach().flatten()[update.index[name]].abs() >= 0.05 for name, weight in update.weights().items()}
    assert any(mask.any() for mask in kept.values())
    before = {name: weight.detach() for name, weight in again.weights().items()}
    step(again, 2)
    for name, mask in kept.items():
        settled = update.index[name][mask]
        assert torch.equal(again.weights()[name].flatten()[settled], before[name].flatten()[settled])
    assert learning_rate(2e-3) == pytest.approx(1e-3 * 0.49658, rel=1e-4)


def test_a_saved_update_comes_back_to_the_last_bit(tmp_path):
    update = SparseUpdate(network(), 0.05)
    step(update)
    file = tmp_path / "s.safetensors"
    for one in (update, update.reselected()):
        one.save(file)
        other = network()
        apply_sparse(other, file)
        for name, weight in update.weights().items():
            assert torch.equal(other.get_parameter(name), weight)
    adapters = Adapters(base := network())
    adapters.load(update.adapter())
    adapters.fuse({"sara": 1.0})
    torch.testing.assert_close(base[2].weight, update.weights()["2.weight"], rtol=1e-12, atol=1e-12)
    good, plain = load_file(file), network()
    for bad in ({"2.weight.index": good["2.weight.index"] + 10**6}, {"9.weight.index": good["2.weight.index"].clone()}):
        save_file({**good, **bad}, file)
        with pytest.raises(CheckpointError, match=r"does not fit 2\.weight|is not a sparse update"):
            apply_sparse(plain, file)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), network().parameters(), strict=True))
    with pytest.raises(AdapterError, match="No weight is smaller than 1e-12"):
        SparseUpdate(network(), 1e-12)
    with pytest.raises(AdapterError, match="named 7"):
        SparseUpdate(network(), 0.05, ["7"])


def test_the_front_by_brute_force():
    numbers = (normal(3, 40, 2) * 3).round() / 3  # with ties
    scores = [LayerScore(str(i), torch.ones(1), float(a), float(b)) for i, (a, b) in enumerate(numbers)]
    expected = []
    for one in numbers:
        better = (numbers[:, 0] >= one[0]) & (numbers[:, 1] <= one[1]) & ((numbers != one).any(1))
        expected.append(not bool(better.any()))
    assert [score in pareto_front(scores) for score in scores] == expected and 0 < sum(expected) < 20


def losses(net: nn.Module):
    """One input is to give 0 from now on, another what it gives now."""
    kept = net(X[1:2]).detach()
    return lambda: net(X[:1]).square().sum(), lambda: (net(X[1:2]) - 0.9 * kept).square().sum()


def test_scores_are_those_of_the_gradients():
    net = network()
    forget, retain = losses(net)
    scores = {score.layer: score for score in layer_scores(net, forget, retain)}
    assert scores.keys() == {"0", "2", "4"}
    (f,), (r,) = (torch.autograd.grad(loss(), [net[2].weight]) for loss in (forget, retain))
    own = scores["2"]
    assert own.importance == pytest.approx(float(f.norm() / net[2].weight.detach().norm()))
    cosine = torch.nn.functional.cosine_similarity(f.flatten(), r.flatten(), 0)
    assert own.alignment == pytest.approx(abs(float(cosine))) and torch.equal(own.gradient, f)
    assert [score.layer for score in layer_scores(net, forget, retain, ["4"])] == ["4"]


def test_forgetting_changes_one_layer_by_the_smallest_step_that_does():
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    forget, retain = losses(net)
    start, kept = float(forget()), float(retain())
    score = next(score for score in layer_scores(net, forget, retain) if score.layer == "4")
    asked = []

    def forgotten() -> bool:
        asked.append(float(forget()))
        return asked[-1] < start / 2

    adapter, strength = unlearn(net, score, forgotten, rounds=14)
    assert len(asked) == 14 and list(adapter.layers) == ["denoiser.4"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    adapters = Adapters(net)
    adapters.load(adapter)
    with adapters.fusing({"unlearned": 1.0}):
        assert float(forget()) < start / 2
        changed = [name for name, value in net.state_dict().items() if not torch.equal(value, before[name])]
        torch.testing.assert_close(net[4].weight, before["4.weight"] - strength * score.gradient)
    assert changed == ["4.weight"]
    with adapters.fusing({"unlearned": 0.97}):
        assert float(forget()) > start / 2  # a little less is not enough
    with adapters.fusing({"unlearned": 0.0}):
        assert float(forget()) == start and float(retain()) == kept
    with pytest.raises(AdapterError, match=r"No step in 4 up to .* forgets it"):
        unlearn(net, score, lambda: False, rounds=3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
