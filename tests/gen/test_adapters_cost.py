"""What loaded adapters cost, counted: calls, modules, tensors, bytes. Nothing is timed."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gen.adapters import Adapter, Adapters, Delta, from_tensors
from samplers.denoiser import Context
from tests.gen.test_adapters_apply import calls

WIDTH, DEPTH = 16, 6


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))
        self.attn = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("to_q", "to_k", "to_v")})

    def forward(self, x: torch.Tensor, context: Context) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x + sum(layer(x) for layer in self.attn.values())


def adapter(name: str, only: range = range(DEPTH)) -> Adapter:
    random = torch.Generator().manual_seed(int(name))
    return Adapter(name, {
        f"denoiser.layers.{i}": Delta({"down": torch.randn(2, WIDTH, generator=random),
                                       "up": torch.randn(WIDTH, 2, generator=random)}, 0.5)
        for i in only})  # fmt: skip


def storages(one: Adapter) -> set[int]:
    return {factor.untyped_storage().data_ptr() for delta in one.layers.values() for factor in delta.factors.values()}


class Seen(TorchDispatchMode):
    """Every operation that runs, and the storages that it reads."""

    def __init__(self):
        super().__init__()
        self.operations: list[str] = []
        self.storages: set[int] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations.append(str(function))
        leaves = tree_leaves((args, kwargs or {}))
        self.storages |= {x.untyped_storage().data_ptr() for x in leaves if isinstance(x, torch.Tensor)}
        return function(*args, **(kwargs or {}))


@pytest.fixture
def network() -> Iterator[Network]:
    """Without the collector, whose callbacks would be counted where they fall."""
    torch.manual_seed(0)
    gc.collect()
    gc.disable()
    yield Network()
    gc.enable()


CHOICES = ({"0": 1.0}, {"1": 0.5, "0": 0.2}, {}, [{"0": 1.0}, {"1": 1.0}, {}], {"0": [1.0, 0.0, 0.5], "1": 1.0})


def measure(network: Network) -> list[tuple]:
    """Per choice: operations in their order, modules that run, calls of Python and C; switching from one to the next."""
    x, found = torch.ones(3, WIDTH), []
    for choice in CHOICES:
        visited: list[nn.Module] = []
        handles = [m.register_forward_pre_hook(lambda m, _, seen=visited: seen.append(m)) for m in network.modules()]
        with Seen() as seen, torch.no_grad():
            network(x, Context(adapters=choice))
        for handle in handles:
            handle.remove()
        count = calls(lambda c=choice: network(x, Context(adapters=c)))
        found.append((seen.operations, len(visited), count))
    return found


def test_a_run_costs_the_same_with_fifty_loaded_as_with_two(network):
    """Half of the other forty-eight change layers that these two leave alone."""
    adapters = Adapters(network)
    adapters.load(adapter("0"))
    adapters.load(adapter("1"))
    measure(network)
    with_two = measure(network)
    rest = [adapter(str(i), range(DEPTH) if i % 2 else range(2)) for i in range(2, 50)]
    for one in rest:
        adapters.load(one)
    assert measure(network) == with_two
    assert with_two[0][0] != with_two[2][0]
    strangers = set().union(*map(storages, rest))
    with Seen() as seen, torch.no_grad():
        for choice in CHOICES:
            network(torch.ones(3, WIDTH), Context(adapters=choice))
    assert not seen.storages & strangers and seen.storages & storages(adapters.adapters["0"])


def test_a_run_without_adapters_does_no_more_operations_than_a_network_that_has_none(network):
    with Seen() as seen, torch.no_grad():
        network(torch.ones(3, WIDTH), Context())
    adapters = Adapters(network)
    for i in range(20):
        adapters.load(adapter(str(i)))
    with Seen() as loaded, torch.no_grad():
        network(torch.ones(3, WIDTH), Context())
    assert loaded.operations == seen.operations


def terms(adapters: Adapters, name: str) -> list:
    return [term for of_module in adapters._terms.values() for term in of_module.get(name, ())]


def test_factors_are_the_files_own_memory(network):
    """Loaded under two names and on two networks, an adapter is in memory once; so is the A that q, k and v share."""
    one, other = Adapters(network), Adapters(Network())
    first = adapter("0")
    for owner, name in ((one, "0"), (one, "again"), (other, "0")):
        owner.load(replace(first, name=name))
        for term in terms(owner, name):
            assert {side.untyped_storage().data_ptr() for side in (term.down, term.up)} <= storages(first)
    fused = from_tensors(
        {"unet.attn.qkv.lora_A.weight": torch.ones(2, WIDTH), "unet.attn.qkv.lora_B.weight": torch.ones(3 * WIDTH, 2)}, name="f"
    )
    one.load(fused)
    assert len(terms(one, "f")) == 3 and len({term.down.data_ptr() for term in terms(one, "f")}) == 1
    assert {side.untyped_storage().data_ptr() for term in terms(one, "f") for side in (term.down, term.up)} <= storages(fused)
