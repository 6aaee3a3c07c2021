"""Linear + GELU in one kernel: the same numbers, and left alone wherever the kernel cannot stand in for the layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gen.backbones import fused
from gen.backbones.fused import linear_gelu


def layer_and_input(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(24, 40).to(dtype), torch.randn(2, 7, 24).to(dtype)


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls that are judged to fuse."""
    seen = []
    judge = fused._fuses
    monkeypatch.setattr(fused, "_fuses", lambda *given: seen.append(judge(*given)) or seen[-1])
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
    assert calls == [torch.backends.mkldnn.is_available()] and result.dtype == dtype
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
    assert calls[:3] == [False] * 3 and calls[-1] is False


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
    assert calls == [False] * 5
