"""What one layer of an adapter adds to a weight W: (out, in), or (out, in, k, ...) of a convolution.

    LoRA  (arXiv 2106.09685)  D = s B A                      down = A (r, in, ...), up = B (out, r, ...)
    LoCon, with a core        D = s B x M x A                mid = M (r, r, k, ...), A and B then being 1 x 1
    LoHa  (arXiv 2108.06098)  D = s (A1 B1) * (A2 B2)        each with an optional core t1, t2
    LoKr  (arXiv 2212.10650)  D = s W1 (x) W2                W1 and W2 whole, or as products, W2 with an optional core t2
    full                      D = weight
    DoRA  (arXiv 2402.09353)  m (W + D) / |W + D| - W        any of them with a magnitude m

s is kept beside the factors, never multiplied in. A bias may change too: by `bias`, and by s `up_bias`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_RANK = 4096
EXTRAS = ("magnitude", "bias", "up_bias", "alpha")


class AdapterError(ValueError):
    """An adapter that cannot be used as it is; the message is a sentence that says why and what to do."""


def _product(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """a b for (out, r), (r, in); (out, in, k, ...) for (r, out), (r, in) with a core (r, r, k, ...)."""
    return a @ b if core is None else torch.einsum("ij...,ip,jq->pq...", core, a, b)


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("the factors do not fit")


def _product_shape(a: Sequence[int], b: Sequence[int], core: Sequence[int] | None) -> tuple[int, ...]:
    """The shape of `_product`, or ValueError."""
    _require(len(a) == len(b) == 2)
    if core is None:
        _require(a[1] == b[0])
        return a[0], b[1]
    _require(len(core) > 2 and tuple(core[:2]) == (a[0], b[0]))
    return a[1], b[1], *core[2:]


@dataclass(frozen=True, eq=False)
class Delta:
    """One layer's change: factors by name (above), in the file's own dtype, and the scale s.

    magnitude_axis: the axis of W that m runs along; 0 (one per output, the paper and peft) or 1 (per input, LyCORIS).
    A factor "alpha" is the file's own scalar, kept to be written back; `scale` alone is what is applied.
    AdapterError if the factors do not make a whole.
    """

    factors: Mapping[str, Tensor]
    scale: float = 1.0
    magnitude_axis: int = 0

    def __post_init__(self) -> None:
        for name, factor in self.factors.items():
            # alpha is one number, and some programs write a whole one
            if not factor.is_floating_point() and (name != "alpha" or factor.dtype == torch.bool or factor.is_complex()):
                raise AdapterError(f"its {name} holds {str(factor.dtype).removeprefix('torch.')}, not floating-point numbers.")
            if name != "alpha" and not factor.numel():
                raise AdapterError(f"its {name} is empty: {tuple(factor.shape)}.")
            if name != "alpha" and not factor.ndim:
                raise AdapterError(f"its {name} is a single number, not a tensor of a layer.")
        if not abs(self.scale) <= 1e4:
            raise AdapterError(f"its scale is {self.scale:g}; alpha must be finite and at most 10,000 times the rank.")
        if self.rank is not None and self.rank > MAX_RANK:
            raise AdapterError(f"its rank is {self.rank}; ranks up to {MAX_RANK} are read.")
        try:
            self.dims  # noqa: B018 (the factors must fit each other)
        except AdapterError:
            raise
        except (RuntimeError, IndexError, ValueError, TypeError):
            shapes = ", ".join(f"{name} {tuple(f.shape)}" for name, f in self.factors.items() if name not in EXTRAS)
            raise AdapterError(f"its factors do not fit each other: {shapes}.") from None
        if "magnitude" in self.factors and ("up_bias" in self.factors or self.kind in ("full", "bias")):
            raise AdapterError("it has a DoRA magnitude beside a bias or a full difference, which no known program writes.")
        sizes = [self.factors[name].numel() for name in ("bias", "up_bias") if name in self.factors]
        if "up_bias" in self.factors and (self.kind in ("full", "bias") or len(set(sizes)) > 1):
            raise AdapterError("it has a bias of the factor B that does not go with its other factors.")

    @property
    def kind(self) -> str:
        """lora, loha, lokr, full, or bias (nothing but a bias). AdapterError where factors are missing or left over."""
        names = set(self.factors) - set(EXTRAS)
        if not names:
            if "bias" in self.factors:
                return "bias"
            raise AdapterError("it has no weights, only " + " and ".join(self.factors) + ".")
        if names == {"weight"}:
            return "full"
        first = next(iter(sorted(names)))
        kind = "loha" if first.startswith("hada") else "lokr" if first.startswith("lokr") else "lora"
        needed = {"lora": {"down", "up"}, "loha": {f"hada_w{i}_{s}" for i in (1, 2) for s in "ab"}, "lokr": set()}[kind]
        allowed = {"lora": {"mid"}, "loha": {"hada_t1", "hada_t2"}, "lokr": set()}[kind]
        if kind == "loha" and names & allowed:
            needed |= allowed
        if kind == "lokr":
            for product, pair in (("lokr_w1", {"lokr_w1_a", "lokr_w1_b"}), ("lokr_w2", {"lokr_w2_a", "lokr_w2_b"})):
                needed |= {product} if product in names else pair
            allowed = {"lokr_t2"} if "lokr_w2" not in names else set()
        if missing := needed - names:
            raise AdapterError(f"it has {' and '.join(sorted(names))} but lacks {' and '.join(sorted(missing))}.")
        if extra := names - needed - allowed:
            raise AdapterError(f"it has {' and '.join(sorted(extra))} beside a whole {kind}.")
        return kind

    @property
    def type(self) -> str:
        """What it is, in the field's words: "LoRA", "conv LoRA", "LoHa", "DoRA LoKr", "full", ..."""
        name = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "full": "full", "bias": "bias"}[self.kind]
        if self.kind == "lora" and ("mid" in self.factors or math.prod(self.factors["down"].shape[2:]) > 1):
            name = "conv LoRA"
        return f"DoRA {name}" if "magnitude" in self.factors else name

    @property
    def rank(self) -> int | None:
        """r; None where there is none (full, bias, and a LoKr of two whole matrices)."""
        kind, f = self.kind, self.factors
        if kind == "lora":
            return f["down"].shape[0]
        if kind == "loha":
            return f["hada_w1_b"].shape[0]
        pair = next((f[name] for name in ("lokr_w1_b", "lokr_w2_b") if name in f), None)
        return None if pair is None else pair.shape[0]

    @property
    def dims(self) -> tuple[int, ...]:
        """(out, in, k, ...) as far as the factors know it; a convolution stored flat is (out, in * k ...).

        Raises where the factors do not fit each other."""
        f, kind = self.factors, self.kind
        if kind in ("full", "bias"):
            return tuple(f["weight" if kind == "full" else "bias"].shape)
        if kind == "lora":
            down, up, mid = f["down"], f["up"], f.get("mid")
            if mid is None:
                _require(up.ndim > 1 and down.ndim > 1 and up[0].numel() == len(down))
                return len(up), *down.shape[1:]
            return _product_shape((up[0].numel(), len(up)), (len(down), down[0].numel()), mid.shape)
        shapes = {name: tuple(factor.shape) for name, factor in f.items()}
        if kind == "loha":
            halves = [_product_shape(shapes[f"hada_w{i}_a"], shapes[f"hada_w{i}_b"], shapes.get(f"hada_t{i}")) for i in (1, 2)]
            _require(halves[0] == halves[1])
            return halves[0]
        w1 = shapes.get("lokr_w1") or _product_shape(shapes["lokr_w1_a"], shapes["lokr_w1_b"], None)
        w2 = shapes.get("lokr_w2") or _product_shape(shapes["lokr_w2_a"], shapes["lokr_w2_b"], shapes.get("lokr_t2"))
        _require(len(w1) == 2 and len(w2) >= 2)
        return w1[0] * w2[0], w1[1] * w2[1], *w2[2:]

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Does it fit a weight of this shape? 1 x 1 and flattened convolutions count as what they are."""
        dims = self.dims
        if self.kind == "bias":
            return dims == shape[:1]
        if dims == shape:
            return True
        flat = len(dims) == 2 or all(k == 1 for k in dims[2:])
        in_flat = dims[0] == shape[0] and math.prod(dims[1:]) == math.prod(shape[1:])
        padded = dims[: len(shape)] == shape and all(k == 1 for k in dims[len(shape) :])  # 1-d kernels stored as (k, 1)
        return (in_flat and flat) or padded

    def _linear(self, dtype: torch.dtype) -> Tensor:
        """D / s before it takes W's shape."""
        f = {name: factor.to(dtype) for name, factor in self.factors.items()}
        kind = self.kind
        if kind == "lora":
            down, up = f["down"], f["up"]
            if "mid" in f:
                return _product(up.flatten(1).T, down.flatten(1), f["mid"])
            return (up.flatten(1) @ down.flatten(1)).unflatten(1, down.shape[1:])
        if kind == "loha":
            halves = [_product(f[f"hada_w{i}_a"], f[f"hada_w{i}_b"], f.get(f"hada_t{i}")) for i in (1, 2)]
            return halves[0] * halves[1]
        if kind == "lokr":
            w1, w2 = self.kron_parts(dtype)
            return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)), w2.contiguous())
        return f["weight"]

    def kron_parts(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """W1 (a, c) and W2 (b, d, k, ...) of a LoKr."""
        f = {name: factor.to(dtype) for name, factor in self.factors.items()}
        w1 = f["lokr_w1"] if "lokr_w1" in f else f["lokr_w1_a"] @ f["lokr_w1_b"]
        w2 = f["lokr_w2"] if "lokr_w2" in f else _product(f["lokr_w2_a"], f["lokr_w2_b"], f.get("lokr_t2"))
        return w1, w2

    def delta(self, weight: Tensor) -> Tensor:
        """What is added to this weight, in its shape and on its device: float32, or float64 for a float64 weight."""
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        if self.kind == "bias":
            return torch.zeros(weight.shape, dtype=dtype, device=weight.device)
        change = self.scale * self.to(weight.device)._linear(dtype).reshape(weight.shape)
        if "magnitude" not in self.factors:
            return change
        combined = weight.to(dtype) + change
        return combined * self.gain(combined) - weight.to(dtype)

    def gain(self, combined: Tensor) -> Tensor:
        """m / |W + D| for W + D, shaped to multiply it."""
        others = [axis for axis in range(combined.ndim) if axis != self.magnitude_axis]
        norm = torch.linalg.vector_norm(combined, dim=others, keepdim=True)
        magnitude = self.factors["magnitude"].to(combined)
        if magnitude.numel() != norm.numel():
            raise AdapterError(f"its magnitude has {magnitude.numel()} values where the weight needs {norm.numel()}.")
        return magnitude.reshape(norm.shape) / norm.clamp_min(torch.finfo(norm.dtype).tiny)

    def bias(self, dtype: torch.dtype = torch.float32) -> Tensor | None:
        """What is added to the layer's bias (out,); None for nothing."""
        parts = [self.factors[n].to(dtype) * s for n, s in (("bias", 1.0), ("up_bias", self.scale)) if n in self.factors]
        return sum(parts[1:], parts[0]).flatten() if parts else None

    def to(self, device: torch.device | str) -> Delta:
        return replace_factors(self, {name: factor.to(device) for name, factor in self.factors.items()})

    def folded(self) -> Delta:
        """The same change at scale 1, the scale multiplied into the output side: for formats that store no scale."""
        side = {"lora": "up", "loha": "hada_w1_a", "lokr": "lokr_w1" if "lokr_w1" in self.factors else "lokr_w1_a"}
        factors = {name: factor for name, factor in self.factors.items() if name != "alpha"}
        for name in (side.get(self.kind), "up_bias"):
            if name in factors:
                factors[name] = (factors[name].double() * self.scale).to(factors[name].dtype)
        return replace(self, factors=factors, scale=1.0)

    def select(self, start: int, stop: int) -> Delta:
        """The change of W's rows start to stop: of the q, k or v of a fused projection."""
        f, rows = dict(self.factors), slice(start, stop)
        if "magnitude" in f and self.magnitude_axis == 1:
            raise AdapterError("its DoRA magnitude spans the inputs of a fused projection and cannot be cut into q, k and v.")
        if self.kind == "lokr":
            dtype = torch.float64 if any(v.dtype == torch.float64 for v in f.values()) else torch.float32
            f = {"weight": self.scale * self._linear(dtype)[rows]} | {n: f[n] for n in EXTRAS if n in f}
            if "magnitude" in f:
                raise AdapterError("a LoKr with DoRA on a fused projection cannot be cut into q, k and v.")
            f.pop("alpha", None)
            return replace(self, factors={n: (v[rows] if n == "bias" else v) for n, v in f.items()}, scale=1.0)
        for name in ("up", "weight", "bias", "up_bias", "hada_w1_a", "hada_w2_a"):
            if name in f:
                core = name.startswith("hada") and f"hada_t{name[6]}" in f
                f[name] = f[name][:, rows] if core else f[name][rows]
        if "magnitude" in f:
            f["magnitude"] = f["magnitude"].flatten()[rows]
        return replace(self, factors=f)

    def stacked(self, others: Sequence[Delta]) -> Delta:
        """The LoRA whose rows are this one's and then the others', all with the same A and scale: pieces that `select` made."""
        f = dict(self.factors)
        for name in ("up", "up_bias", "bias", "magnitude"):
            if name in f:
                f[name] = torch.cat([delta.factors[name] for delta in (self, *others)])
        return replace(self, factors=f)


def widest(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """The dtype that holds the numbers of all of these; 8-bit formats count as bfloat16, which holds all of theirs."""
    common: torch.dtype | None = None
    for dtype in dtypes:
        dtype = torch.bfloat16 if dtype.itemsize == 1 else dtype
        common = dtype if common is None else torch.promote_types(common, dtype)
    assert common is not None
    return common


def replace_factors(delta: Delta, factors: Mapping[str, Tensor]) -> Delta:
    """The same delta with other tensors of the same shapes, not checked again."""
    new = object.__new__(Delta)
    for name, value in (("factors", factors), ("scale", delta.scale), ("magnitude_axis", delta.magnitude_axis)):
        object.__setattr__(new, name, value)
    return new
