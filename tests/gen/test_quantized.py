"""Weights in fewer bits: their numbers against other implementations, as tensors, and in layers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gen.nn import quantized
from gen.nn.batch_invariance import BatchInvariantNetwork, batch_invariance
from gen.nn.quantized import (
    SCHEMES,
    QuantizedWeight,
    check_scheme,
    is_quantized,
    join,
    quantizable,
    quantize,
    quantize_network,
    stored_bytes,
)  # fmt: skip
from samplers.denoiser import Condition, Context

# packed codes of torch.randn(2, 64, generator=torch.Generator().manual_seed(0)) by bitsandbytes 0.50, blocks of 64
BITSANDBYTES = (
    "4466a96183887bb6329a936da568cca4575897997a679e325ab866966acf33d5"
    "5bcc2f5915553c6b7a47b5c96f17337ad2990168879994b36077b93745e58cbd"
)
# relative error of a normal weight: int8 by rows of 128, e4m3's 3 bits, 16 even and 16 normal levels in groups of 64
ERRORS = {"int8": 0.01, "fp8": 0.03, "int4": 0.095, "nf4": 0.1}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(128, 256), nn.Linear(256, 128)

    def forward(self, x):
        return x + self.second(F.silu(self.first(x)))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.blocks = nn.Linear(128, 128), nn.ModuleList([Block(), Block()])

    def forward(self, x, *_):
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def small() -> Small:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Small().requires_grad_(False)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values(scheme):
    """Rounded to the nearest level: the error is the scheme's, nothing is further off than half a step, and twice is once."""
    weight = normal(96, 128)
    coded = quantize(weight, scheme)
    assert (coded.dense() - weight).norm() / weight.norm() < ERRORS[scheme]
    assert torch.allclose(quantize(coded.dense(), scheme).dense(), coded.dense(), atol=0.02 if scheme == "int4" else 1e-6)
    bits = 8 * coded.stored_bytes / weight.numel()
    assert bits == pytest.approx({"int8": 8 + 32 / 128, "fp8": 8 + 32 / 128, "int4": 4.5, "nf4": 4.5}[scheme])


def test_int8_and_int4_are_no_further_than_half_a_step():
    weight = normal(8, 128)
    coded = quantize(weight, "int8")
    assert ((coded.dense() - weight).abs() <= coded.parts["scale"] / 2 * 1.0001).all()
    coded = quantize(weight, "int4")
    step = coded.parts["scale"].float().repeat_interleave(64, 1)
    assert ((coded.dense() - weight).abs() <= step * 0.55).all()  # least and step are bfloat16


def test_nf4_is_bitsandbytes():
    coded = quantize(normal(2, 64), "nf4")
    assert bytes(coded.parts["data"].flatten().tolist()).hex() == BITSANDBYTES
    bitsandbytes = pytest.importorskip("bitsandbytes")
    weight = normal(32, 256, seed=1)
    codes, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(codes.flatten(), quantize(weight, "nf4").parts["data"].flatten())
    assert torch.equal(bitsandbytes.functional.dequantize_4bit(codes, state), quantize(weight, "nf4").dense())


def test_products_that_overflow_are_not_used(monkeypatch):
    """Processors before VNNI keep sums of two products in 16 bits: there int8 is a way to store, not to multiply."""
    monkeypatch.setattr(quantized, "exact_int8_products", lambda: False)
    x, coded = normal(3, 5, 128, seed=1), quantize(normal(64, 128), "int8")
    torch.testing.assert_close(F.linear(x, coded), x @ coded.dense().T)


@pytest.mark.skipif(not quantized.exact_int8_products(), reason="int8 products overflow on this processor")
def test_int8_products_are_exact_sums():
    """Inputs by rows and weights by rows, in whole numbers: against the same in float64."""
    x, coded = normal(3, 5, 128, seed=1), quantize(normal(64, 128), "int8")
    step = x.abs().amax(-1, keepdim=True) / 127
    expected = ((x / step).round().double() @ coded.parts["data"].double().T) * step * coded.parts["scale"].T
    torch.testing.assert_close(F.linear(x, coded), expected.float())
    assert F.linear(x.bfloat16(), coded).dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", SCHEMES)
def test_in_a_network(scheme):
    """Linear layers of blocks, not the head; outputs near; half of the memory or less; casts, copies and states keep codes."""
    plain, x = small(), normal(4, 7, 128)
    network = copy.deepcopy(plain)
    assert quantize_network(network, scheme) == 4 and is_quantized(network)
    assert not isinstance(network.head.weight, QuantizedWeight)
    assert (network(x) - plain(x)).norm() / plain(x).norm() < 2 * ERRORS[scheme]
    assert stored_bytes(network) < 0.5 * stored_bytes(plain)
    other = copy.deepcopy(network).to(torch.bfloat16)
    weight = other.blocks[0].first.weight
    assert weight.dtype == torch.bfloat16 and torch.equal(
        weight.dense().float(), network.blocks[0].first.weight.dense().bfloat16().float()
    )
    assert stored_bytes(other) < stored_bytes(network)
    network.load_state_dict(copy.deepcopy(network).state_dict())
    assert (network(x) - plain(x)).norm() / plain(x).norm() < 2 * ERRORS[scheme]


def test_convolutions_are_stored_in_fp8():
    """A scale for each output channel; a product's error is that of its weights, 2.7 %; a quarter of the memory; rows, casts,
    states and gradients as of linear layers."""
    plain = nn.ModuleList([nn.Sequential(nn.Conv2d(32, 64, 3, padding=1), nn.Conv2d(64, 32, 3, stride=2))]).requires_grad_(
        False
    )
    for seed, layer in enumerate(plain[0]):
        layer.weight.copy_(normal(*layer.weight.shape, seed=seed) * normal(len(layer.weight), 1, 1, 1, seed=9).exp())
    network, x = copy.deepcopy(plain), normal(2, 32, 9, 7, seed=3)
    assert quantize_network(network, "int8") == 0 and quantize_network(network, "fp8") == 2 and is_quantized(network)
    weight, dense = network[0][0].weight, plain[0][0].weight
    rows = quantize(dense.flatten(1), "fp8")
    assert torch.equal(weight.dense(), rows.dense().view_as(dense)) and weight.shape == dense.shape
    error = (network[0][0](x) - plain[0][0](x)).norm() / plain[0][0](x).norm()
    assert 0.02 < error < ERRORS["fp8"] and stored_bytes(network) < 0.27 * stored_bytes(plain)
    torch.testing.assert_close(network[0](x), F.conv2d(network[0][0](x), network[0][1].weight.dense(), plain[0][1].bias, 2))
    assert torch.equal(join([weight.rows(0, 10), weight.rows(10, 64)]).dense(), weight.dense())
    half = copy.deepcopy(network).to(torch.bfloat16)
    assert isinstance(half[0][0].weight, QuantizedWeight) and half[0](x.bfloat16()).dtype == torch.bfloat16
    network.load_state_dict(copy.deepcopy(network).state_dict())
    given = x.clone().requires_grad_()
    network[0][0](given).sum().backward()
    expected = torch.autograd.grad(F.conv2d(other := x.clone().requires_grad_(), weight.dense(), None, 1, 1).sum(), other)[0]
    torch.testing.assert_close(given.grad, expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_go_through_to_the_input(scheme):
    coded, x = quantize(normal(64, 128), scheme), normal(5, 128, seed=1).requires_grad_()
    F.linear(x, coded).sum().backward()
    torch.testing.assert_close(x.grad, coded.dense().sum(0).expand(5, -1))


def test_other_operations_see_numbers():
    coded = quantize(normal(64, 128), "int8")
    dense = coded.dense()
    assert (
        torch.equal(coded + 1, dense + 1)
        and torch.equal(coded[3:5], dense[3:5])
        and torch.equal(coded.T @ coded, dense.T @ dense)
    )
    assert type(coded * 1) is torch.Tensor
    halves = join([coded.rows(0, 32), coded.rows(32, 64)])
    assert torch.equal(halves.dense(), dense)
    kept = coded.detach().clone()
    coded.copy_(2 * dense)
    assert torch.allclose(coded.dense(), 2 * dense) and torch.equal(kept.dense(), dense)
    coded.copy_(kept)
    assert torch.equal(coded.dense(), dense)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rows_result_does_not_depend_on_its_batch(scheme):
    network, x = small().to(torch.bfloat16), normal(3, 7, 128).bfloat16()
    quantize_network(network, scheme)
    run = BatchInvariantNetwork(network)
    with batch_invariance(True), torch.no_grad():
        together = run(x, x[:, 0, 0], Condition(), Context())
        alone = [run(row[None], row[None, 0, 0], Condition(), Context()) for row in x]
    assert torch.equal(together, torch.cat(alone))


def test_what_is_quantised():
    weight = torch.empty(128, 128)
    assert quantizable("blocks.0.attn.qkv", weight, "int4") and not quantizable("proj_out", weight, "int4")
    assert not quantizable("blocks.0.qkv", torch.empty(128, 96), "int4") and quantizable(
        "blocks.0.qkv", torch.empty(128, 96), "int8"
    )
    assert not quantizable("blocks.0.qkv", torch.empty(8, 64), "int8")  # nothing to save
    with pytest.raises(ValueError, match="give int8, fp8, int4, nf4, or leave it out"):
        check_scheme("int3")
