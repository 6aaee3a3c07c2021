"""What a bound adapter layer computes beside its module: the module's own operation is linear in (weight, bias), so the change
of its output is that operation with the change of both.

x is the module's input and base its output without the module's bias; the first axis of both is the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.adapters.delta import AdapterError, Delta
from gen.adapters.targets import Target
from gen.nn.quantized import QuantizedWeight


def operate(module: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The module's operation with another weight and bias. A convolution's weight may have other numbers of channels."""
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return module._conv_forward(x, weight, bias)  # with the module's stride, padding, its mode, and groups
    if isinstance(module, nn.LayerNorm):
        return F.layer_norm(x, module.normalized_shape, weight, bias, module.eps)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, weight, bias, module.eps)
    return F.embedding(x, weight, cast("nn.Embedding", module).padding_idx)


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """A module's weight, and its bias where it has one."""
    return cast("Tensor", module.weight), getattr(module, "bias", None)


def wide_copies(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Copies of a module's weight and bias, in float32 or wider."""
    weight, bias = weight_and_bias(module)
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    if isinstance(weight, QuantizedWeight):
        return weight.dense(wide), None if bias is None else bias.detach().to(wide, copy=True)
    return weight.detach().to(wide, copy=True), None if bias is None else bias.detach().to(wide, copy=True)


@torch.no_grad()
def write_weights(module: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    module_weight, module_bias = weight_and_bias(module)
    module_weight.copy_(weight)
    if bias is not None and module_bias is not None:
        module_bias.copy_(bias)


def channel_axis(module: nn.Module) -> int:
    """Where the output channels are."""
    return 1 if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.GroupNorm) else -1


def along(vector: Tensor, like: Tensor, axis: int) -> Tensor:
    """(..., C) shaped to broadcast along the channels of a tensor."""
    return vector if axis == -1 else vector.reshape(*vector.shape, *[1] * (like.ndim - 2))


@dataclass
class Term:
    """weight times a layer's change of the output. rows: the output channels (start, stop) that it changes, all if None.

    The result broadcasts to those channels of the output. base: the output without bias, for terms that need it.
    """

    rows: tuple[int, int] | None
    bias: Tensor | None

    def __call__(self, module: nn.Module, x: Tensor, base: Tensor | None, weight: float = 1.0) -> Tensor:
        raise NotImplementedError

    @property
    def needs_base(self) -> bool:
        return False

    def _with_bias(self, y: Tensor, module: nn.Module, weight: float) -> Tensor:
        return y if self.bias is None else y + along(weight * self.bias, y, channel_axis(module))


@dataclass
class LowRank(Term):
    """s B (M) A x. gain: DoRA's g = m / |W + D|, one per output, with which the change is g s B A x + (g - 1) W x."""

    down: Tensor
    up: Tensor
    mid: Tensor | None
    scale: float
    gain: Tensor | None = None

    @property
    def needs_base(self) -> bool:
        return self.gain is not None

    @property
    def plain(self) -> bool:
        """Nothing but B and A, which several adapters can be batched by."""
        return self.gain is None and self.bias is None and self.mid is None

    def __call__(self, module: nn.Module, x: Tensor, base: Tensor | None, weight: float = 1.0) -> Tensor:
        scale, axis = self.scale * weight, channel_axis(module)
        if isinstance(module, nn.Linear):
            y = F.linear(F.linear(x, self.down) * scale, self.up)
        else:
            one_by_one = (F.conv1d, F.conv2d, F.conv3d)[self.up.ndim - 3]
            if self.mid is None:
                inner = operate(module, x, self.down)
            else:
                inner = operate(module, one_by_one(x, self.down), self.mid)
            y = one_by_one(inner * scale, self.up)
        if self.gain is not None and base is not None:
            base_rows = base if self.rows is None else base.narrow(axis, self.rows[0], self.rows[1] - self.rows[0])
            gain = along(self.gain, y, axis)
            y = gain * y + weight * (gain - 1) * base_rows
        return self._with_bias(y, module, weight)


@dataclass
class Kron(Term):
    """s W1 (x) W2 on a linear layer: x (..., c d) as a matrix (c, d), times W2 on one side and W1 on the other."""

    w1: Tensor
    w2: Tensor
    scale: float

    def __call__(self, module: nn.Module, x: Tensor, base: Tensor | None, weight: float = 1.0) -> Tensor:
        inner = F.linear(x.unflatten(-1, (self.w1.shape[1], -1)), self.w2)  # (..., c, b)
        w1 = self.w1.expand(*inner.shape[:-2], *self.w1.shape)  # the batch comes first in both, as in every product of rows
        return self._with_bias(self.scale * weight * (w1 @ inner).flatten(-2), module, weight)


@dataclass
class Dense(Term):
    """A whole matrix of the weight's shape, for changes that have no shorter form; None changes the bias alone."""

    weight: Tensor | None

    def __call__(self, module: nn.Module, x: Tensor, base: Tensor | None, weight: float = 1.0) -> Tensor:
        if self.weight is not None:
            return weight * operate(module, x, self.weight, self.bias)
        assert self.bias is not None
        axis = channel_axis(module)
        return weight * (self.bias.expand(*[1] * (x.ndim - 1), -1) if axis == -1 else along(self.bias[None], x, axis))


def bind(delta: Delta, target: Target, module: nn.Module, weight: Tensor, device: torch.device | None = None) -> Term:
    """A layer made ready for a module whose own weight is `weight` (all rows): on its device or another one, in its dtype.
    AdapterError for kinds that need the weight's values where they are offloaded layer by layer."""
    if weight.is_meta and not (delta.kind == "lora" and "magnitude" not in delta.factors):
        raise AdapterError(f"A {delta.type} needs the weights it acts on, which are offloaded; open with offload='model'.")
    if target.rows is not None:
        weight = weight[slice(*target.rows)]
    delta, rows = delta.to(device or weight.device), target.rows
    bias = delta.bias()
    bias = None if bias is None else bias.to(weight.dtype)
    conv = isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    grouped = conv and module.groups != 1
    if delta.kind == "lora" and not grouped and ("magnitude" not in delta.factors or delta.magnitude_axis == 0):
        f = {name: factor.to(weight.dtype) for name, factor in delta.factors.items() if name in ("down", "up", "mid")}
        ones = [1] * (weight.ndim - 2)
        up = f["up"].flatten(1).reshape(-1, f["up"][0].numel(), *ones)
        down = f["down"].flatten(1)
        if conv:
            down = down.reshape(len(down), -1, *(ones if "mid" in f else weight.shape[2:]))
        mid = f["mid"].reshape(*f["mid"].shape[:2], *weight.shape[2:]) if "mid" in f else None
        gain = None
        if "magnitude" in delta.factors:
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            without = Delta({name: factor for name, factor in delta.factors.items() if name != "magnitude"}, delta.scale)
            gain = delta.gain(weight.to(wide) + without.delta(weight)).flatten().to(weight.dtype)
        return LowRank(rows, bias, down, up, mid, delta.scale, gain)
    if delta.kind == "lokr" and isinstance(module, nn.Linear) and "magnitude" not in delta.factors:
        w1, w2 = delta.kron_parts(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        return Kron(rows, bias, w1.to(weight.dtype), w2.flatten(1).to(weight.dtype), delta.scale)
    return Dense(rows, bias, None if delta.kind == "bias" else delta.delta(weight).to(weight.dtype))
