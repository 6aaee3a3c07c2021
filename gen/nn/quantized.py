"""Weights in fewer bits: a tensor that holds codes and scales, and is a float tensor to everybody else.

A `QuantizedWeight` (out, in) replaces a linear layer's weight; the layer stays a plain `nn.Linear`, so hooks, adapters and
training beside it work as ever. `F.linear` uses the codes; any other operation sees the dequantised values. Gradients go
through it to the layer's input, and it has none itself. Convolutions are stored in fp8, a scale for each output channel, and
dequantised at each call; other schemes leave them as they are.

    int8      q s, |q| <= 127, one s per row; products in int8, with inputs quantised by token (arXiv 2208.07339, section 3.1)
    fp8       e4m3 times one s per row, or as a file has it: e4m3 or e5m2, with s per tensor, row or block
    int4      q s + m, 0 <= q <= 15, s and m per 64 numbers of a row
    nf4       the 16 levels of QLoRA (arXiv 2305.14314, appendix E) times the largest of 64 numbers of a row

Every tensor that a weight consists of has its rows first, so rows can be cut out and joined (`rows`, `join`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from gen.nn.batch_invariance import call_in_mode
from samplers.constants import constant

GROUP = 64  # numbers that share a scale, of int4 and nf4
SCHEMES = ("int8", "fp8", "int4", "nf4")
CACHED = 64  # rows of a product that a CPU scales at a time, so that they are still in its cache
QUANTIZED = (nn.Linear, nn.Conv2d)  # layers whose weights may be quantised
SMALLEST = 1 << 12  # numbers in a weight; below, there is nothing to save
E4M3 = torch.float8_e4m3fn
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Codec:
    """How codes become numbers. dense: (parts, columns) -> (out, in), float32 or narrower. linear: a product that works on the
    codes, or None where the weight is dequantised for each call. key: of equal codecs."""

    key: str
    dense: Callable[[Parts, int], Tensor]
    linear: Callable[[Tensor, Parts], Tensor] | None = None


class QuantizedWeight(Tensor):
    """A weight (out, in) held as codes: `codec`, and `parts` by name, each with `out` rows. inner: the shape of a row, of a
    convolution (in, height, width); (columns,) unless given."""

    codec: Codec
    parts: dict[str, Tensor]

    @staticmethod
    def __new__(
        cls, codec: Codec, parts: Parts, columns: int, dtype: torch.dtype, inner: tuple[int, ...] | None = None
    ) -> QuantizedWeight:
        first = next(iter(parts.values()))
        shape = (len(first), *(inner or (columns,)))
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=first.device, requires_grad=False)  # type: ignore[attr-defined]
        return cast("QuantizedWeight", made)

    def __init__(self, codec: Codec, parts: Parts, columns: int, dtype: torch.dtype, inner: tuple[int, ...] | None = None):
        self.codec, self.parts = codec, dict(parts)

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"QuantizedWeight({self.codec.key}, {tuple(self.shape)}, {self.dtype}, {self.device})"

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        return [f"part_{name}" for name in self.parts], (self.codec, self.dtype)

    @staticmethod
    def __tensor_unflatten__(inner: Mapping[str, Tensor], meta: Any, size: Any, stride: Any) -> QuantizedWeight:
        parts = {name.removeprefix("part_"): part for name, part in inner.items()}
        return QuantizedWeight(meta[0], parts, math.prod(size[1:]), meta[1], tuple(size[1:]))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("part_"):
            return self.parts[name.removeprefix("part_")]
        raise AttributeError(name)

    @property
    def stored_bytes(self) -> int:
        return sum(part.nbytes for part in self.parts.values())

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """The values (out, in), in `dtype`, the weight's own if None."""
        return self.codec.dense(self.parts, self.columns).to(dtype or self.dtype).view(self.shape)

    def map(self, change: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> QuantizedWeight:
        parts = {name: change(part) for name, part in self.parts.items()}
        return QuantizedWeight(self.codec, parts, self.columns, dtype or self.dtype, tuple(self.shape[1:]))

    @property
    def columns(self) -> int:
        """Numbers in a row."""
        return math.prod(self.shape[1:])

    def rows(self, start: int, stop: int) -> QuantizedWeight:
        return self.map(lambda part: part[start:stop])

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is F.linear:
            return _linear(*args, **(kwargs or {}))
        if func is Tensor.__setitem__ and isinstance(args[0], QuantizedWeight):
            raise ValueError(f"Parts of {args[0]!r} cannot be written; write the whole with copy_, or work on dense().")
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        aten, kwargs, first = torch.ops.aten, dict(kwargs or {}), args[0] if args else None
        if isinstance(first, QuantizedWeight):
            if func in (aten.detach.default, aten.alias.default):
                return first.map(lambda part: part)
            if func is aten.clone.default:
                return first.map(torch.clone)
            if func is aten._to_copy.default and kwargs.get("memory_format") in (None, torch.preserve_format):
                device, dtype = kwargs.get("device"), kwargs.get("dtype") or first.dtype
                if dtype.is_floating_point:
                    return first.map(lambda part: part.to(device or part.device, copy=True), dtype)
            if func is aten.copy_.default:
                return _write(first, args[1])
            if func._schema.is_mutable:
                raise ValueError(f"{func.__name__} cannot change {first!r} in place; work on dense(), and copy_ it back.")
        as_values = tree_map(lambda v: v.dense() if isinstance(v, QuantizedWeight) else v, (args, kwargs))
        return func(*as_values[0], **as_values[1])


def join(weights: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Weights of one codec, one above the other."""
    if len(weights) == 1:
        return weights[0]
    parts = {name: torch.cat([weight.parts[name] for weight in weights]) for name in weights[0].parts}
    first = weights[0]
    return QuantizedWeight(first.codec, parts, first.columns, first.dtype, tuple(first.shape[1:]))


def _write(weight: QuantizedWeight, value: Tensor) -> QuantizedWeight:
    """Another value in place: the codes of one of the same codec, or values that are quantised anew."""
    if not isinstance(value, QuantizedWeight):
        if weight.codec.key not in SCHEMES:
            raise ValueError(
                f"A weight in the form {weight.codec.key!r} cannot be written to; open the model without it (dtype= alone), or "
                "leave adapters beside it instead of fusing them."
            )
        value = quantize(value, weight.codec.key)
    if value.codec.key != weight.codec.key or value.shape != weight.shape:
        raise ValueError(f"{value!r} cannot be written into {weight!r}.")
    weight.parts = {name: part.to(weight.parts[name].device) for name, part in value.parts.items()}
    return weight


# ---- products


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear by codes. Under autograd nothing dequantised is kept for the way back."""
    if not isinstance(weight, QuantizedWeight):  # the input is the quantised one
        return F.linear(input.dense() if isinstance(input, QuantizedWeight) else input, weight, bias)
    if torch.is_grad_enabled() and (input.requires_grad or (bias is not None and bias.requires_grad)):
        out = _Product.apply(input, weight)
        return out if bias is None else out + bias
    if torch.autograd.forward_ad._current_level >= 0:
        return F.linear(input, weight.dense(input.dtype), bias)
    return _product(input, weight, bias)


def _product(x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> Tensor:
    if weight.codec.linear is None:
        return call_in_mode(F.linear, x, weight.dense(x.dtype), bias)
    out = weight.codec.linear(x, weight.parts)
    return out if bias is None else out.add_(bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedWeight) -> Tensor:
        ctx.weight = weight
        return _product(x, weight, None)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return F.linear(grads[0], ctx.weight.dense(grads[0].dtype).t()), None


# ---- the schemes


def _scaled(parts: Parts, columns: int, values: Tensor) -> Tensor:
    """values (out, in) times scales (out, g), each of which serves in / g numbers."""
    scale = parts["scale"]
    if scale.shape[1] > 1:
        return (values.view(len(values), scale.shape[1], -1).float() * scale[..., None]).view(values.shape)
    return values.float() * scale


def _int8(parts: Parts, columns: int) -> Tensor:
    return _scaled(parts, columns, parts["data"])


def _int8_linear(x: Tensor, parts: Parts) -> Tensor:
    """x in int8 by rows, times int8 weights: exact sums in int32, scaled back by both."""
    flat = x.reshape(-1, x.shape[-1])
    if not _int_products(flat, parts["data"]):
        return call_in_mode(F.linear, x, _int8(parts, x.shape[-1]).to(x.dtype))
    scale = flat.abs().amax(1, keepdim=True).float().clamp_min(1e-12) / 127
    codes = (flat / scale).round_().to(torch.int8)
    sums = torch._int_mm(codes, parts["data"].t())
    out, across = torch.empty(sums.shape, dtype=x.dtype, device=x.device), parts["scale"].t()
    rows = CACHED if x.device.type == "cpu" else len(sums)
    for part, step, made in zip(sums.split(rows), scale.split(rows), out.split(rows), strict=True):
        torch.mul(part * step, across, out=made)
    return out.view(*x.shape[:-1], -1)


def _int_products(x: Tensor, data: Tensor) -> bool:
    """Whether the device multiplies int8 matrices of these sizes: CPUs do, CUDA in multiples of 8 with more than 16 rows."""
    if x.device.type == "cuda":
        return len(x) > 16 and data.shape[0] % 8 == 0 and data.shape[1] % 8 == 0
    return x.device.type == "cpu" and len(x) > 0 and exact_int8_products()


@functools.cache
def exact_int8_products() -> bool:
    """Whether this processor adds int8 products without loss: those before VNNI keep sums of two in 16 bits, which overflow."""
    largest = torch.full((32, 64), 127, dtype=torch.int8)
    return bool((torch._int_mm(largest, -largest.t()) == -64 * 127**2).all())


def _fp8(parts: Parts, columns: int, kind: torch.dtype) -> Tensor:
    return _scaled(parts, columns, parts["data"].view(kind).float())


def _nibbles(data: Tensor) -> Tensor:
    """(out, n) bytes as (out, 2 n) codes, the upper half of a byte first."""
    return torch.stack([data >> 4, data & 15], dim=-1).flatten(1)


def _bytes(codes: Tensor) -> Tensor:
    codes = codes.to(torch.uint8)
    return (codes[:, 0::2] << 4) | codes[:, 1::2]


def _int4(parts: Parts, columns: int) -> Tensor:
    codes = _nibbles(parts["data"]).view(len(parts["data"]), -1, GROUP).float()
    return (codes * parts["scale"].float()[..., None] + parts["least"].float()[..., None]).flatten(1)


def _nf4(parts: Parts, columns: int) -> Tensor:
    levels = constant(NF4, parts["data"].device)
    return _scaled(parts, columns, levels[_nibbles(parts["data"]).int()])


CODECS: dict[str, Codec] = {
    "int8": Codec("int8", _int8, _int8_linear),
    "fp8": Codec("fp8", lambda parts, columns: _fp8(parts, columns, E4M3)),
    "fp8_e5m2": Codec("fp8_e5m2", lambda parts, columns: _fp8(parts, columns, torch.float8_e5m2)),
    "int4": Codec("int4", _int4),
    "nf4": Codec("nf4", _nf4),
}


def quantize(weight: Tensor, scheme: str) -> QuantizedWeight:
    """A weight (out, in), or a convolution's (out, in, height, width), in one of SCHEMES, rounded to the nearest; in a multiple
    of 64 for int4 and nf4."""
    wide, parts = weight.detach().float().flatten(1), {}
    if scheme in ("int8", "fp8"):
        largest = 127.0 if scheme == "int8" else torch.finfo(E4M3).max
        scale = wide.abs().amax(1, keepdim=True).clamp_min(1e-30) / largest
        codes = wide / scale
        parts["data"] = codes.round().to(torch.int8) if scheme == "int8" else codes.to(E4M3).view(torch.uint8)
        parts["scale"] = scale
    else:
        groups = wide.view(len(wide), -1, GROUP)
        if scheme == "int4":
            least = groups.amin(-1).bfloat16()
            scale = ((groups.amax(-1) - least.float()) / 15).clamp_min(1e-30).bfloat16()
            codes = ((groups - least.float()[..., None]) / scale.float()[..., None]).round().clamp_(0, 15)
            parts = {"data": _bytes(codes.flatten(1)), "scale": scale, "least": least}
        else:
            scale = groups.abs().amax(-1).clamp_min(1e-30)
            levels = torch.tensor(NF4, device=wide.device)
            codes = torch.bucketize((groups / scale[..., None]).contiguous(), (levels[1:] + levels[:-1]) / 2)
            parts = {"data": _bytes(codes.flatten(1)), "scale": scale}
    return QuantizedWeight(CODECS[scheme], parts, wide.shape[1], weight.dtype, tuple(weight.shape[1:]))


def check_scheme(scheme: str | None) -> None:
    """ValueError for a name that is none of SCHEMES."""
    if scheme is not None and scheme not in SCHEMES:
        raise ValueError(f"quantize is {scheme!r}; give {', '.join(SCHEMES)}, or leave it out for weights as they are.")


def quantizable(name: str, weight: Tensor, scheme: str) -> bool:
    """Whether a layer's weight is quantised on opening: those inside of repeated blocks (a number in their name), of a size
    that pays, in whole groups; of convolutions in fp8 alone. Embeddings and the first and last layer keep their precision, as
    they cost little."""
    repeated = any(part.isdigit() for part in name.split(".")[:-1])
    if weight.ndim == 4:
        return repeated and scheme == "fp8" and weight.numel() >= SMALLEST
    whole = weight.shape[-1] % (GROUP if scheme in ("int4", "nf4") else 8) == 0
    return repeated and whole and weight.ndim == 2 and weight.numel() >= SMALLEST


def quantize_network(network: nn.Module, scheme: str) -> int:
    """Quantise the linear layers of a network in place, and in fp8 its convolutions, one after another; the number of those
    that were. The network is then for use, and for training of what stands beside it."""
    count = 0
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        plain = isinstance(module, QUANTIZED) and isinstance(weight, Tensor) and not isinstance(weight, QuantizedWeight)
        if plain and quantizable(name, cast("Tensor", weight), scheme):
            module.weight = nn.Parameter(quantize(cast("Tensor", weight), scheme), requires_grad=False)
            count += 1
    return count


def is_quantized(network: nn.Module) -> bool:
    """Does a network hold weights in fewer bits?"""
    return any(isinstance(value, QuantizedWeight) for value in network.parameters())


def stored_bytes(network: nn.Module) -> int:
    """Bytes of a network's parameters and buffers as they are held."""
    values = {id(value): value for value in (*network.parameters(), *network.buffers())}
    return sum(value.stored_bytes if isinstance(value, QuantizedWeight) else value.nbytes for value in values.values())
