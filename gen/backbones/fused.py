"""Kernels of PyTorch's CPU build that do two layers' work in one pass over memory. They have no gradients."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad


def linear_gelu(layer: nn.Module, x: Tensor, approximate: str) -> Tensor:
    """gelu(layer(x)), approximate "none" or "tanh"; oneDNN's kernel applies the GELU to the product before it is stored."""
    if not _fuses(layer, x):
        return F.gelu(layer(x), approximate=approximate)
    return torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, "gelu", [], approximate)


def _fuses(layer: nn.Module, x: Tensor) -> bool:
    """Whether this call is a plain linear layer's, outside of training, of every kind of tracing and of casts by autocast."""
    return (
        type(layer) is nn.Linear
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.dtype == layer.weight.dtype
        and x.is_contiguous()
        and not (torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and forward_ad._current_level < 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and torch.backends.mkldnn.is_available()
    )
