"""Linear layers on a CPU by oneDNN's kernels, for pictures and not for training: they have no gradients.

`linear_gelu` applies the GELU to a product before it is stored. `pack` keeps a second copy of every bfloat16 weight in the
order in which the kernel reads it: products are 1.2 to 1.5 times faster, as PyTorch otherwise brings the weights into that
order in every call. Wherever the kernel cannot stand in for the layer, the layer runs as ever.
"""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from gen.nn.batch_invariance import aligned, as_rows, call_in_mode, without_mode

ROWS = 512
_SMALLEST = 1 << 14  # numbers in a weight; below, a call costs more than its product


class PackedLinear(nn.Linear):
    """A linear layer with a packed copy of its weight, made in the first call that can use it and again where it changed."""

    _packed: tuple[tuple[int, int, torch.dtype], Tensor] | None = None

    def packed(self) -> Tensor:
        """The weight in the kernel's order."""
        weight = self.weight
        key = (weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype)
        if self._packed is None or self._packed[0] != key:
            self._packed = key, reordered(weight.detach())
        return self._packed[1]

    def forward(self, x: Tensor) -> Tensor:
        with without_mode():
            if _serves(self, x) and x.dtype == torch.bfloat16:
                return _kernel(self, x, "none", "")
        return super().forward(x)

    def __getstate__(self) -> dict:  # copies and processes of their own pack for themselves
        return self.__dict__ | {"_packed": None}


def pack(network: nn.Module) -> None:
    """Let a network's bfloat16 linear layers keep packed weights (the module's docstring), if memory allows a second copy.

    For one run: to be called again before the next, as a change of weights through `.data` leaves no trace to go by.
    Changes the class of plain `nn.Linear` layers to `PackedLinear`; names, weights, hooks and training stay as they are.
    """
    linears = [m for m in network.modules() if isinstance(m, nn.Linear) and type(m) in (nn.Linear, PackedLinear)]
    layers = [m for m in linears if m.weight.numel() >= _SMALLEST and type(m.weight) is nn.Parameter]
    for layer in layers:
        layer.__class__ = nn.Linear
        vars(layer)["_packed"] = None
    layers = [m for m in layers if m.weight.dtype == torch.bfloat16 and m.weight.device.type == "cpu"]
    needed = sum(m.weight.nbytes for m in layers)
    if layers and has_bfloat16_kernels() and needed < _free_memory() / 2:
        for layer in layers:
            layer.__class__ = PackedLinear


def packed_bytes(network: nn.Module, dtype: torch.dtype, device: torch.device) -> int:
    """Bytes of the second copies that `pack` makes of a network that runs in a dtype on a device, where memory allows them."""
    if dtype != torch.bfloat16 or device.type != "cpu" or not has_bfloat16_kernels():
        return 0
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Linear) and type(m) in (nn.Linear, PackedLinear)]
    needed = sum(2 * w.numel() for w in weights if w.numel() >= _SMALLEST and type(w) is nn.Parameter)
    return needed if needed < _free_memory() / 2 else 0


def has_bfloat16_kernels() -> bool:
    """Whether oneDNN multiplies bfloat16 on this processor: AVX-512 at least, on x86."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_float32_kernels() -> bool:
    """Whether oneDNN's product with its GELU is quicker than PyTorch's two steps in float32.

    On x86 it is with AVX-512; with AVX2 alone its products reach four fifths of the rate of those that PyTorch takes.
    """
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() != "AVX2"


def reordered(weight: Tensor) -> Tensor:
    """A bfloat16 weight as the kernel reads it, by a hint of the input's rows that is the same for all batches."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)


def linear_gelu(layer: nn.Module, x: Tensor, approximate: str) -> Tensor:
    """gelu(layer(x)), approximate "none" or "tanh", in one kernel where that is possible."""
    changed = _changed_rows(layer)
    with without_mode():
        serves = changed is not None and isinstance(layer, nn.Linear) and _serves(layer, x)
        whole = not serves or not changed or all(touched for _, _, touched in changed)
        if serves and not changed and isinstance(layer, nn.Linear):
            return _kernel(layer, x, "gelu", approximate)
    if whole:
        return F.gelu(layer(x), approximate=approximate)
    each = len(x) // changed[-1][1]  # type: ignore[index]
    unfused = layer(x)
    parts = []
    for first, end, touched in changed or ():
        rows = slice(first * each, end * each)
        with as_rows(end - first):
            if touched:
                parts.append(F.gelu(aligned(unfused[rows]), approximate=approximate))
            else:
                with without_mode():
                    parts.append(_kernel(layer, aligned(x[rows]), "gelu", approximate))  # type: ignore[arg-type]
    return torch.cat(parts)


def _changed_rows(layer: nn.Module) -> list[tuple[int, int, bool]] | None:
    """(first, end, changed) of parts of the batch under way, none where nothing changes the layer's output; None for a layer
    that only its own call computes. Adapters that do not act here leave a layer as it is without them."""
    if type(layer) not in (nn.Linear, PackedLinear) or layer._forward_pre_hooks:
        return None
    changed: list[tuple[int, int, bool]] = []
    for hook in layer._forward_hooks.values():
        asked = getattr(hook, "changed_rows", None)
        if asked is None or (changed and asked()):
            return None
        changed = asked()
    return changed


def _kernel(layer: nn.Linear, x: Tensor, activation: str, algorithm: str) -> Tensor:
    weight = layer.packed() if isinstance(layer, PackedLinear) and x.dtype == torch.bfloat16 else layer.weight
    return call_in_mode(torch.ops.mkldnn._linear_pointwise, x, weight, layer.bias, activation, [], algorithm)


def _serves(layer: nn.Linear, x: Tensor) -> bool:
    """Whether the kernel takes this input: on a CPU, outside of training, of every kind of tracing and of casts by autocast."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.dtype == layer.weight.dtype
        and type(layer.weight) in (Tensor, nn.Parameter)  # not one of parts, which the kernel knows nothing of
        and x.is_contiguous()
        and x.numel() > 0
        and not (torch.is_grad_enabled() and (x.requires_grad or layer.weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and (has_float32_kernels() if x.dtype == torch.float32 else has_bfloat16_kernels())
    )


def _free_memory() -> int:
    """Bytes of memory that can still be had."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return 0
