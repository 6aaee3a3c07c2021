"""Linear layers by one kernel or with packed weights: the same numbers, and left alone where that kernel cannot stand in."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gen.generator import Generator
from gen.nn.backbones import fused
from gen.nn.backbones.fused import PackedLinear, linear_gelu, pack


def layer_and_input(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(24, 40).to(dtype), torch.randn(2, 7, 24).to(dtype)


needs_kernels = pytest.mark.skipif(not fused.has_bfloat16_kernels(), reason="oneDNN does not multiply bfloat16 here")


@pytest.fixture
def calls(monkeypatch):
    """The activations of the kernel's calls, which float32 takes wherever it can."""
    seen = []
    monkeypatch.setattr(fused, "has_float32_kernels", torch.backends.mkldnn.is_available)
    kernel = fused._kernel
    monkeypatch.setattr(fused, "_kernel", lambda layer, x, name, kind: seen.append(kind) or kernel(layer, x, name, kind))
    return seen


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 8e-3)])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_the_two_layers(approximate, dtype, tolerance, bias, calls):
    layer, x = layer_and_input(dtype)
    layer.bias = layer.bias if bias else None
    product = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    expected = F.gelu(product, approximate=approximate)
    with torch.inference_mode():
        result = linear_gelu(layer, x, approximate)
    served = fused.has_bfloat16_kernels() if dtype == torch.bfloat16 else torch.backends.mkldnn.is_available()
    assert calls == [approximate] * served and result.dtype == dtype
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


def test_gradients_and_derivatives_take_the_ordinary_way(calls):
    layer, x = layer_and_input()
    linear_gelu(layer, x, "none").sum().backward()
    assert layer.weight.grad is not None
    layer.requires_grad_(False)
    assert linear_gelu(layer, x.clone().requires_grad_(), "none").requires_grad
    with torch.no_grad():
        _, slope = torch.func.jvp(lambda x: linear_gelu(layer, x, "none"), (x,), (torch.ones_like(x),))
        near = (linear_gelu(layer, x + 1e-3, "none") - linear_gelu(layer, x - 1e-3, "none")) / 2e-3
        torch.testing.assert_close(slope, near, rtol=1e-2, atol=1e-2)
        torch.func.vmap(lambda x: linear_gelu(layer, x, "none"))(x)
        assert len(calls) == 2 * torch.backends.mkldnn.is_available()  # the two plain calls of the difference


def test_hooks_other_layers_and_autocast_take_the_ordinary_way(calls):
    layer, x = layer_and_input()
    with torch.no_grad():
        handle = layer.register_forward_hook(lambda module, given, out: out + 1)
        torch.testing.assert_close(linear_gelu(layer, x, "none"), F.gelu(F.linear(x, layer.weight, layer.bias) + 1))
        handle.remove()
        linear_gelu(nn.Sequential(layer), x, "none")
        with torch.autocast("cpu", torch.bfloat16):
            assert linear_gelu(layer, x, "none").dtype == torch.bfloat16
        linear_gelu(layer.double(), x.double(), "none")
        linear_gelu(layer.float(), x.transpose(0, 1), "none")
    assert not calls


def test_a_processor_without_bfloat16_kernels_takes_the_ordinary_way(calls, monkeypatch):
    """Where the kernels would raise."""
    monkeypatch.setattr(fused, "has_bfloat16_kernels", lambda: False)
    packed, plain, x = packed_pair()
    assert [type(m) for m in packed] == [nn.Linear, nn.SiLU, nn.Linear]
    assert not fused.packed_bytes(plain, torch.bfloat16, torch.device("cpu"))
    with torch.inference_mode():
        assert torch.equal(packed(x), plain(x))
        linear_gelu(plain[0], x, "none")
        assert not calls
        linear_gelu(plain[0].float(), x.float(), "none")
    assert len(calls) == torch.backends.mkldnn.is_available()


def test_float32_takes_the_ordinary_way_where_that_is_quicker(calls, monkeypatch):
    layer, x = layer_and_input()
    monkeypatch.undo()
    monkeypatch.setattr(fused, "_kernel", lambda *_: pytest.fail("the kernel was called"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    with torch.no_grad():
        assert torch.equal(linear_gelu(layer, x, "tanh"), F.gelu(layer(x), approximate="tanh"))


def packed_pair(dtype=torch.bfloat16):
    """(packed, plain) networks of the same weights, large enough to be packed, and an input."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(128, 256), nn.SiLU(), nn.Linear(256, 128, bias=False)).to(dtype)
    packed = copy.deepcopy(plain)
    pack(packed)
    return packed, plain, torch.randn(2, 9, 128).to(dtype)


@needs_kernels
def test_packed_weights_give_the_same_bits_and_follow_every_change():
    packed, plain, x = packed_pair()
    assert [type(m) for m in packed] == [PackedLinear, nn.SiLU, PackedLinear]
    with torch.inference_mode():
        for rows in (x, x[:1], x[0, 0]):
            torch.testing.assert_close(packed(rows), plain(rows), rtol=8e-3, atol=1e-3)
        assert packed[0]._packed is not None
    changes = {
        "data, in place": lambda layer: (layer.weight.data.mul_(2), pack(layer)),
        "in place": lambda layer: layer.weight.mul_(-1),
        "another tensor": lambda layer: setattr(layer.weight, "data", layer.weight.data.flip(0).contiguous()),
        "loaded": lambda layer: layer.load_state_dict({k: v * 3 for k, v in layer.state_dict().items()}),
    }
    with torch.no_grad():
        for name, change in changes.items():
            change(packed[0]), change(plain[0])
            plain[0].__class__ = nn.Linear
            torch.testing.assert_close(packed(x), plain(x), rtol=8e-3, atol=8e-3, msg=lambda m, name=name: f"{name}: {m}")


@needs_kernels
def test_packing_changes_neither_names_nor_copies_nor_training():
    packed, plain, x = packed_pair()
    assert list(packed.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        packed(x)
        assert copy.deepcopy(packed)[0]._packed is None
        handle = packed[2].register_forward_hook(lambda module, given, out: out + 1)
        torch.testing.assert_close(packed(x), plain(x) + 1, rtol=8e-3, atol=8e-3)
        handle.remove()
    packed(x).float().sum().backward()
    plain(x).float().sum().backward()
    assert torch.equal(packed[0].weight.grad, plain[0].weight.grad)
    wide = packed.float()
    with torch.no_grad():
        torch.testing.assert_close(wide(x.float()), plain.float()(x.float()), rtol=0, atol=0)


def test_what_is_not_packed(monkeypatch):
    def kinds(network):
        pack(network)
        return {type(m) for m in network.modules()}

    class Other(nn.Linear):
        pass

    assert PackedLinear not in kinds(nn.Sequential(nn.Linear(128, 128)))  # float32: the usual kernel is as fast
    assert PackedLinear not in kinds(nn.Sequential(nn.Linear(8, 8), Other(128, 128)).bfloat16())
    monkeypatch.setattr(fused, "_free_memory", lambda: 128 * 128 * 2)
    assert PackedLinear not in kinds(nn.Sequential(nn.Linear(128, 128)).bfloat16())


@needs_kernels
def test_a_generator_packs_anew_for_every_run(tiny_model, monkeypatch):
    monkeypatch.setattr(fused, "_SMALLEST", 1)
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="bfloat16")

    def draw():
        return torch.as_tensor(generator("a cat", seed=0, num_inference_steps=2, output_type="pt", progress=False).images)

    before = draw()
    layer = next(m for m in generator.network.modules() if isinstance(m, PackedLinear))
    assert layer._packed is not None
    with torch.no_grad():
        for module in generator.network.modules():
            if isinstance(module, nn.Linear):
                module.weight.data.mul_(1.5)
    changed = draw()
    assert not torch.equal(changed, before)
    monkeypatch.setattr(fused, "_free_memory", lambda: 0)
    torch.testing.assert_close(draw(), changed, rtol=0, atol=0.02)
    assert not any(isinstance(m, PackedLinear) for m in generator.network.modules())
