"""Adapters on networks: the applied network against one whose weights are W + w D, per sample, fused, and at what cost."""

from __future__ import annotations

import copy
import gc
import sys
import weakref

import pytest
import torch
from torch import nn

from gen.adapters import Adapter, AdapterError, Adapters, Delta
from gen.adapters.apply import blocks_of
from gen.nn.registry import build
from samplers.denoiser import Condition, Context, adapters_key
from tests.gen.conftest import UVIT, randomise

RANDOM = torch.Generator().manual_seed(0)
DIT = {"type": "dit", "size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 2, "heads": 2, "text_tokens": 4, "text_dim": 8}


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=RANDOM, dtype=torch.float64)


def lora(shape: tuple[int, ...], rank: int = 2, scale: float = 0.5, **more: torch.Tensor) -> Delta:
    out, width, *kernel = shape
    return Delta({"down": rand(rank, width, *kernel) * 0.5, "up": rand(out, rank, *[1] * len(kernel)) * 0.5, **more}, scale)


class Layers(nn.Module):
    """Every kind of layer that an adapter may change, called with a batch of 3."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 8)
        self.plain = nn.Linear(6, 8, bias=False)
        self.conv1d = nn.Conv1d(6, 8, 3, padding=2, dilation=2)
        self.conv2d = nn.Conv2d(6, 8, 3, stride=2, padding=1, padding_mode="circular")
        self.conv3d = nn.Conv3d(6, 8, (1, 3, 3), padding=(0, 1, 1))
        self.layer_norm = nn.LayerNorm(6)
        self.group_norm = nn.GroupNorm(2, 6)
        self.embedding = nn.Embedding(5, 7)

    def forward(self, x):
        inputs = {"conv1d": x[:, :, 0, 0], "conv2d": x[:, :, 0], "conv3d": x, "group_norm": x[:, :, 0]}
        indices = (x[:, 0, 0, 0, :3].abs() * 4).long().clamp_max(4)
        tokens = x.flatten(2).transpose(1, 2)
        return [m(indices if name == "embedding" else inputs.get(name, tokens)) for name, m in self.named_children()]


def changes(kind: str) -> dict[str, Delta]:
    """Layers by module for `Layers`."""
    kernels = {"linear": (8, 6), "plain": (8, 6), "conv1d": (8, 6, 3), "conv2d": (8, 6, 3, 3), "conv3d": (8, 6, 1, 3, 3)}
    if kind == "full":
        own = {"layer_norm": (6,), "group_norm": (6,), "embedding": (5, 7), **kernels}
        return {
            n: Delta({"weight": rand(*s)} | ({"bias": rand(s[0])} if n not in ("embedding", "plain") else {}))
            for n, s in own.items()
        }
    if kind == "bias":
        return {name: Delta({"bias": rand(6 if "norm" in name else 8)}) for name in (*kernels, "layer_norm") if name != "plain"}
    if kind == "core":
        sizes = {"down": (2, 6), "mid": (2, 2), "up": (8, 2)}
        return {name: Delta({f: rand(*n, *(s[2:] if f == "mid" else [1] * len(s[2:]))) for f, n in sizes.items()}, 0.7)
                for name, s in kernels.items() if len(s) > 2}  # fmt: skip
    if kind == "loha":
        return {n: Delta({f"hada_w{i}_{s}": rand(*((8, 2) if s == "a" else (2, 6))) for i in (1, 2) for s in "ab"}, 0.7)
                for n in ("linear", "plain")}  # fmt: skip
    if kind == "lokr":
        return {n: Delta({"lokr_w1": rand(2, 3), "lokr_w2": rand(4, 2, *s[2:])}, 0.7) for n, s in kernels.items()}
    more = {"dora": lambda: {"magnitude": rand(8).abs()}, "lora_bias": lambda: {"up_bias": rand(8)}, "lora": dict}
    if kind == "dora_in":
        return {n: Delta({**lora(s).factors, "magnitude": rand(6).abs()}, 0.7, 1) for n, s in kernels.items()}
    return {name: lora(shape, **more[kind]()) for name, shape in kernels.items() if kind != "lora_bias" or name != "plain"}


KINDS = ["lora", "dora", "dora_in", "lora_bias", "core", "loha", "lokr", "full", "bias"]


def make(name: str, layers: dict[str, Delta], part: str = "denoiser") -> Adapter:
    return Adapter(name, {f"{part}.{layer}": delta for layer, delta in layers.items()})


def changed(network: nn.Module, *adapters: tuple[Adapter, float]) -> nn.Module:
    """The network with W + sum w D for weights, by the formulas alone."""
    new = copy.deepcopy(network)
    old = dict(network.named_modules())
    with torch.no_grad():
        for adapter, w in adapters:
            for layer, delta in adapter.layers.items():
                module = new.get_submodule(layer.partition(".")[2])
                original = old[layer.partition(".")[2]]
                module.weight += w * delta.delta(original.weight)
                if delta.bias() is not None:
                    module.bias += w * delta.bias(torch.float64)
    return new


def close(a, b, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_applied_is_the_network_with_changed_weights(kind):
    torch.manual_seed(0)
    network, x = Layers().double(), rand(3, 6, 2, 5, 5)
    adapter, other = make("a", changes(kind)), make("b", changes("lora"))
    expected = [changed(network, (adapter, 0.6))(x), changed(network, (adapter, 0.6), (other, -1.3))(x)]
    plain = network(x)
    adapters = Adapters(network)
    adapters.load(adapter)
    adapters.load(other)
    close(network(x), plain, 0)
    with adapters.using({"a": 0.6, "b": 0.0}):
        close(network(x), expected[0])
    with adapters.using({"a": 0.6, "b": -1.3}):
        close(network(x), expected[1])
    assert max((e - p).abs().max() for e, p in zip(expected[0], plain, strict=True)) > 0.1
    close(network(x), plain, 0)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_each_sample_its_own(kind):
    torch.manual_seed(0)
    network, x = Layers().double(), rand(4, 6, 2, 5, 5)
    adapters = Adapters(network)
    for name, one in (("a", changes(kind)), ("b", changes("lora")), ("c", {"linear": lora((8, 6), rank=5)})):
        adapters.load(make(name, one))
    choices = [{"a": 1.0}, {}, {"b": 0.5, "a": -0.7, "c": 0.0}, {"c": 2.0, "b": 1.0}]
    rows = []
    for i, choice in enumerate(choices):
        with adapters.using(choice):
            rows.append(network(x[i : i + 1]))
    expected = [torch.cat(parts) for parts in zip(*rows, strict=True)]
    with adapters.using(choices):
        close(network(x), expected)
        close(network(torch.cat([x, x])), [torch.cat([e, e]) for e in expected])  # as guidance stacks its branches
    with adapters.using({name: torch.tensor([choice.get(name, 0.0) for choice in choices]).double() for name in "abc"}):
        close(network(x), expected)


def test_blocks_of_samples():
    """Which batches are read as blocks: those in which neighbours, as many each time, have one adapter each."""
    rows = {"a": ([0, 1, 4, 5], [1.0, 1.0, 0.5, 0.5]), "b": ([2, 3], [2.0, 2.0])}
    assert blocks_of(rows, 6) == (("a", "b", "a"), (1.0, 2.0, 0.5), slice(0, 6))
    assert blocks_of(rows, 8) == (("a", "b", "a"), (1.0, 2.0, 0.5), slice(0, 6))  # two without any
    assert blocks_of({"a": ([1, 2, 3], [1.0] * 3)}, 4) == (("a",), (1.0,), slice(1, 4))
    assert blocks_of({"a": ([0, 1], [1.0] * 2), "b": ([2], [1.0])}, 3) == (("a", "a", "b"), (1.0,) * 3, slice(0, 3))
    assert blocks_of({"a": ([0, 1], [1.0] * 2), "b": ([1], [1.0])}, 2) is None  # one sample has both
    assert blocks_of({"a": ([0], [1.0]), "b": ([2], [1.0])}, 3) is None  # a gap
    assert blocks_of({}, 2) is None


@torch.no_grad()
def test_blocks_are_what_each_sample_is_by_itself(monkeypatch):
    """A composite's batch: as each sample alone, whichever adapters were there before, and whatever they are made of."""
    network = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6)).double()
    adapters, taken = Adapters(network), []
    plain = Adapters.stacked
    monkeypatch.setattr(Adapters, "stacked", lambda self, *given: taken.append(given[0]) or plain(self, *given))
    for name in "abc":
        adapters.load(make(name, {"0": lora((8, 6)), "1": lora((6, 8), scale=1.5)}))
    adapters.load(make("wide", {"0": lora((8, 6), rank=3)}))
    x, strengths = rand(6, 5, 6), {"a": 0.5, "b": -1.5, "c": 2.0, "wide": 1.0}

    def check(*owners: str, fast: int) -> None:
        weights = [{name: strengths[name] for name in own} for own in owners]
        wanted = torch.cat([_one(adapters, network, x[i : i + 1], own) for i, own in enumerate(weights)])
        taken.clear()
        with adapters.using(weights):
            close(network(x), wanted, 1e-12)
        assert len(taken) == fast

    check(*"aabbcc", fast=2)
    check(*"ccaabb", fast=2)
    check("", "", *"aabb", fast=2)  # as under `Contrast`
    check(*"abcabc", fast=2)
    check("a", "a", "b", "b", ["wide"], ["wide"], fast=0)
    check("a", "", "b", "a", "b", "c", fast=0)
    check("ab", *"bcabc", fast=0)
    adapters.remove("b")
    adapters.load(make("b", {"0": lora((8, 6)), "1": lora((6, 8))}))
    check(*"aabbcc", fast=2)  # the new b
    own = [{name: 1.0} for name in "aabbcc"]
    with torch.inference_mode(), adapters.using(own):
        network(x)
    with torch.enable_grad(), adapters.using(own):
        leaf = x.clone().requires_grad_(True)
        network(leaf).square().sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().sum() > 0


def _one(adapters: Adapters, network: nn.Module, x: torch.Tensor, weights: dict[str, float]) -> torch.Tensor:
    with adapters.using(weights):
        return network(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_fused_and_unfused(kind, dtype):
    torch.manual_seed(0)
    network, x, dora = Layers().to(dtype), rand(3, 6, 2, 5, 5).to(dtype), changes("dora")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    adapters = Adapters(network)
    adapters.load(make("a", changes(kind)))
    adapters.load(make("b", changes("lora")))
    with adapters.using({"a": 0.8, "b": 0.5}):
        applied = network(x)
    with adapters.fusing({"a": 0.8, "b": 0.5}):
        tolerance = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 0.3}[dtype]
        close(network(x), applied, tolerance)
        if dtype == torch.float64:
            adapters.load(make("c", dora))  # of the original weights, also now
            with adapters.using({"c": 1.0}):
                both = network(x)
        with pytest.raises(AdapterError, match="'a' is fused"), adapters.using({"a": 1.0}):
            network(x)
        with pytest.raises(AdapterError, match="fused into the weights already"):
            adapters.fuse({"a": 1.0})
        with pytest.raises(AdapterError, match="unfuse it before"):
            adapters.remove("a")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    if dtype == torch.float64:
        adapters.load(make("d", dora))
        with adapters.using({"a": 0.8, "b": 0.5, "d": 1.0}):
            close(network(x), both)


def test_a_bias_that_is_not_there_cannot_be_fused():
    network = Layers().double()
    adapters = Adapters(network)
    adapters.load(make("a", {"plain": lora((8, 6), up_bias=rand(8)), "linear": lora((8, 6))}))
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(AdapterError, match="plain has no bias"):
        adapters.fuse({"a": 1.0})
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()) and not adapters.fused


def backbone(config: dict, seed: int = 1) -> nn.Module:
    return randomise(build(config), seed).double().eval()


def run(network: nn.Module, context: Context | None = None, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    x, text = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((batch, 4, 8, 8), (batch, 4, 8)))
    condition = Condition(tokens=text, mask=torch.ones(batch, 4, dtype=torch.bool)) if network.config.text_dim else Condition()
    time = torch.linspace(0.2, 0.8, batch, dtype=torch.float64)
    with torch.no_grad():
        return network(x, time, condition, context)


@pytest.mark.parametrize("config", [DIT, UVIT], ids=["dit", "uvit"])
def test_layers_for_q_k_and_v_are_rows_of_the_fused_projection(config):
    network = backbone(config)
    site = "blocks.1" if config is DIT else "in_blocks.0"
    parts = {"to_q": lora((32, 32)), "to_k": lora((32, 32), rank=3), "v": lora((32, 32), magnitude=rand(32).abs())}
    adapters = Adapters(network)
    report = adapters.load(make("a", {f"{site}.attn.{name}": delta for name, delta in parts.items()}))
    assert report.complete and set(report.matched.values()) == {(f"{site}.attn.qkv",)}
    expected = backbone(config)
    expected.load_state_dict(network.state_dict())
    weight = expected.get_submodule(f"{site}.attn.qkv").weight
    with torch.no_grad():
        for i, delta in enumerate(parts.values()):
            rows = slice(32 * i, 32 * (i + 1))
            weight[rows] += 0.7 * delta.delta(weight[rows].clone())
    wanted = run(expected)
    assert (wanted - run(network)).abs().max() > 1e-3
    close(run(network, Context(adapters={"a": 0.7})), wanted)
    close(run(network, Context(adapters=[{}, {"a": 0.7}])), torch.stack([run(network)[0], wanted[1]]))
    with adapters.fusing({"a": 0.7}):
        close(run(network), wanted)

    other = lora((32, 32), magnitude=rand(32).abs())  # on rows that "a" changes: of the original weight, not of a's result
    adapters.load(make("b", {f"{site}.attn.to_v": other}))
    with torch.no_grad():
        weight[64:] += 0.9 * other.delta(network.get_submodule(f"{site}.attn.qkv").weight[64:])
    wanted = run(expected)
    close(run(network, Context(adapters={"a": 0.7, "b": 0.9})), wanted)
    close(run(network, Context(adapters=[{"b": 0.9, "a": 0.7}] * 2)), wanted)


def test_a_layer_for_the_fused_projection_is_cut_for_three_modules():
    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = nn.ModuleDict({"to_q": nn.Linear(6, 8), "to_k": nn.Linear(6, 4), "to_v": nn.Linear(6, 4, bias=False)})

        def forward(self, x):
            return torch.cat([part(x) for part in self.attn.values()], -1)

    network, x, delta = Split().double(), rand(2, 6), lora((16, 6), rank=3)
    adapters = Adapters(network)
    report = adapters.load(make("a", {"attn_qkv": delta}))
    assert report.matched == {"denoiser.attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v")}
    with torch.no_grad(), adapters.using({"a": 1.0}):
        close(
            network(x),
            Split.forward(network, x) if False else x @ delta.delta(torch.zeros(16, 6).double()).T + plain(network, x),
        )


def plain(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([nn.functional.linear(x, part.weight, part.bias) for part in network.attn.values()], -1)


def test_names_that_diffusers_has_for_a_dit():
    network = backbone(DIT)
    names = {
        "transformer_blocks.0.attn1.to_q": ("blocks.0.attn.qkv", (32, 32)),
        "transformer_blocks.0.attn1.to_out.0": ("blocks.0.attn.proj", (32, 32)),
        "transformer_blocks_1_attn2_to_q": ("blocks.1.cross.q", (32, 32)),
        "transformer_blocks_1_attn2_to_v": ("blocks.1.cross.kv", (32, 32)),
        "transformer_blocks.1.ff.net.0.proj": ("blocks.1.mlp.fc1", (128, 32)),
        "transformer_blocks_1_ff_net_2": ("blocks.1.mlp.fc2", (32, 128)),
    }
    adapters = Adapters(network)
    report = adapters.load(make("a", {name: lora(shape) for name, (_, shape) in names.items()}))
    assert report.matched == {f"denoiser.{name}": (module,) for name, (module, _) in names.items()}
    assert adapters.index.find("transformer_blocks.1.attn2.to_v")[0].rows == (32, 64)


def test_a_run_is_told_by_its_context_and_leaves_nothing():
    network = backbone(DIT)
    before = run(network)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    adapters = Adapters(network)
    adapters.load(make("a", {"blocks.0.mlp.fc1": lora((128, 32)), "blocks.1.cross.kv": lora((64, 32))}))
    context = Context(adapters={"a": 1.0})
    acted = run(network, context)
    assert (acted - before).abs().max() > 1e-3
    close(run(network, context), acted, 0)
    close(run(network, Context(store=context.store)), before, 0)  # the text's keys and values are kept apart
    with pytest.raises(AdapterError, match=r"No adapter named 'b' is loaded; loaded: a"):
        run(network, Context(adapters={"b": 1.0}))
    with pytest.raises(ValueError, match="multiples of 2"):
        network(torch.zeros(1, 4, 7, 8).double(), torch.zeros(1).double(), Condition(), Context(adapters={"a": 1.0}))
    close(run(network), before, 0)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    with pytest.raises(AdapterError, match="3 samples, and the network was given 2"):
        run(network, Context(adapters=[{}, {"a": 1.0}, {}]))


def test_unloading_leaves_the_network_as_it_was():
    network = backbone(DIT)
    adapters = Adapters(network)
    hooks = sum(len(m._forward_hooks) for m in network.modules())
    tensor = lora((128, 32))
    adapters.load(make("a", {"blocks.0.mlp.fc1": tensor}))
    adapters.load(make("b", {"blocks.0.mlp.fc1": lora((128, 32))}))
    gone = weakref.ref(tensor)
    adapters.remove("a")
    del tensor
    gc.collect()
    assert gone() is None and sum(len(m._forward_hooks) for m in network.modules()) == hooks + 1
    adapters.remove("b")
    assert sum(len(m._forward_hooks) for m in network.modules()) == hooks
    with pytest.raises(AdapterError, match="No adapter named 'a'"):
        adapters.remove("a")


def calls(function) -> int:
    """Function calls, of Python and of C, that a function makes."""
    count = 0

    def see(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def test_switching_costs_the_same_among_fifty_as_among_two(monkeypatch):
    network = backbone(DIT)
    adapters = Adapters(network)
    layers = ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]

    def switch() -> list[int]:
        counts = []
        for weights in ({"0": 1.0}, {"1": 0.5, "0": 0.2}, {"1": 1.0}, {}):
            run(network, Context(adapters=weights))
            counts.append(calls(lambda w=weights: run(network, Context(adapters=w))))
        return counts

    for i in range(2):
        adapters.load(make(str(i), {name: lora((128, 32)) for name in layers}))
    among_two = switch()
    for i in range(2, 50):
        adapters.load(make(str(i), {name: lora((128, 32)) for name in layers}))
    for walk in ("modules", "named_modules", "children", "named_children", "parameters", "named_parameters", "get_submodule"):
        monkeypatch.setattr(nn.Module, walk, lambda *_, **__: pytest.fail("the model was walked"))
    assert switch() == among_two


def test_keys_of_choices():
    assert adapters_key({"b": 1.0, "a": 0.5}) == adapters_key({"a": 0.5, "b": 1.0}) != adapters_key({"a": 0.5})
    assert adapters_key([{"a": 1.0}, {}]) != adapters_key([{}, {"a": 1.0}])
    assert adapters_key({"a": torch.tensor([1.0, 0.0])}) == adapters_key({"a": [1.0, 0.0]}) != adapters_key({"a": 1.0})
    assert len({adapters_key({"a": [1.0, 0.0]}), adapters_key([{"a": 1.0}]), adapters_key({})}) == 3


def test_factors_may_be_trained():
    """Gradients reach the factors through the applied network, rows of a fused projection included."""
    network = backbone(DIT).requires_grad_(False)
    factors = {"down": rand(2, 32).requires_grad_(), "up": rand(32, 2).requires_grad_()}
    adapters = Adapters(network)
    adapters.load(make("a", {"blocks.0.attn.to_k": Delta(factors, 0.5)}))
    x = rand(2, 4, 8, 8)

    def loss():
        return network(x, torch.tensor([0.3, 0.5]).double(), Condition(), Context(adapters={"a": 1.0})).square().sum()

    loss().backward()
    with torch.no_grad():
        step = rand(2, 32)
        high = (factors["down"].add_(1e-5 * step), loss())[1]
        low = (factors["down"].add_(-2e-5 * step), loss())[1]
    assert (factors["down"].grad * step).sum().item() == pytest.approx(((high - low) / 2e-5).item(), rel=1e-4)
    assert factors["up"].grad.abs().max() > 0
