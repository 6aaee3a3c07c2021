"""Sums of adapters, exact, and their best approximation of a lower rank.

    sum_i w_i s_i U_i V_i = [c_1 U_1, c_2 U_2, ...] [V_1; V_2; ...],   c_i = w_i s_i

so the sum of LoRAs is a LoRA of the ranks' sum, no matrix of the weight's size is made, and a lower rank comes from
`core_svd` of these factors. Layers that only one adapter has keep their kind. A bias adds up beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from customization.algebra.align import Aligned, align, names_of
from customization.algebra.factors import WIDE, dense_of, dtype_of, factors_of, flat, full, is_dense, lora, refuse_dora, scaled
from customization.algebra.metadata import kohya_keys, merged_metadata
from customization.algebra.svd import Keep, Svd, core_svd, matrix_svd
from customization.algebra.textual_inversion import merged_words, word_keys
from gen.adapters import Adapter, AdapterError, Delta
from gen.adapters.report import nearest

Track = Callable[[Sequence[Any]], Iterable[Any]]  # goes through a list, and may show how far it is


@dataclass(frozen=True)
class LayerReport:
    """One layer of a result: its rank (None for a full difference), the ranks that went into it, the Frobenius norm of the
    whole change, and how far the result is from it, relative to that norm."""

    layer: str
    rank: int | None
    ranks: tuple[int | None, ...]
    norm: float
    error: float = 0.0


Merged = tuple[Adapter, list[LayerReport]]


def weighted_sum(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    *,
    keep: Keep | None = None,
    blocks: Mapping[str, float] | None = None,
    name: str = "merged",
    disjoint: bool = False,
    dtype: torch.dtype | None = None,
    track: Track = iter,
) -> Merged:
    """(sum_i w_i D_i, a report of every layer). weights: 1 each if None.

    keep: approximate each layer by a LoRA of this rank, with the least possible error (Frobenius). blocks: see `block_weights`.
    disjoint: adapters may have no layer in common. dtype: of the factors; the widest of those that came in if None.
    AdapterError for adapters of different models (`align`), and where a DoRA would have to be added or scaled.
    """
    weights = checked_weights(adapters, weights)
    entries = align(adapters, disjoint)
    if keep is not None and keep.rank is not None:
        check_rank(keep.rank, [entry.shape for entry in entries])
    scales = block_weights([entry.layer for entry in entries], blocks or {})
    layers, reports = {}, []
    for entry in track(entries):
        made = _layer(entry, [w * scales[entry.layer] for w in weights], keep, dtype)
        if made is not None:
            layers[entry.layer], report = made
            reports.append(report)
    if not layers:
        raise AdapterError("Every layer has weight 0; there is nothing left to write.")
    how: dict[str, Any] = {"method": "sum", "weights": list(weights)}
    how |= {"blocks": dict(blocks)} if blocks else {}
    how |= {"keep": keep.values()} if keep else {}
    return assembled(adapters, layers, name, how, weights), reports


def resize(adapter: Adapter, keep: Keep, **options: Any) -> Merged:
    """The adapter with each layer's rank lowered by a rule, with the least possible error; LoHa and LoKr become LoRA.

    A layer keeps its scale (alpha / rank), so its alpha goes down with the rank. One of no higher rank stays as it is.
    options: those of `weighted_sum`.
    """
    return weighted_sum([adapter], keep=keep, **{"name": adapter.name, **options})


def scale(adapter: Adapter, weight: float = 1.0, blocks: Mapping[str, float] | None = None) -> Adapter:
    """The same change times a weight, and times one per block (`block_weights`); layers of weight 0 are left out."""
    return weighted_sum([adapter], [weight], blocks=blocks, name=adapter.name)[0]


def interpolate(first: Adapter, second: Adapter, share: float, **options: Any) -> Merged:
    """(1 - share) first + share second."""
    return weighted_sum([first, second], [1 - share, share], **options)


def checked_weights(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> list[float]:
    weights = [1.0] * len(adapters) if weights is None else list(weights)
    if len(weights) != len(adapters):
        raise AdapterError(f"There are {len(adapters)} adapters and {len(weights)} weights; give one weight to each.")
    for adapter, w in zip(adapters, weights, strict=True):
        if isinstance(w, bool) or not isinstance(w, int | float) or not math.isfinite(w):
            raise AdapterError(f"The weight of {adapter.name} is {w!r}; give a finite number.")
    return [float(w) for w in weights]


def check_rank(rank: int, shapes: Sequence[Sequence[int]]) -> None:
    """AdapterError for a rank that no layer can have."""
    most = max((min(flat(shape)) for shape in shapes if len(shape) > 1), default=0)
    if rank > most > 0:
        raise AdapterError(f"Rank {rank} is more than any layer has rows or columns; give at most {most}.")


def block_weights(layers: Sequence[str], blocks: Mapping[str, float]) -> dict[str, float]:
    """layer -> weight: that of the longest pattern which fits it, 1 where none does.

    blocks: pattern -> weight. A pattern is the beginning of a layer's name, whole words of it ("denoiser.mid_block",
    "text_encoder", or without the part: "mid_block"), or has wildcards ("*.attn.*"). Dots and underscores are the same.
    AdapterError for one that fits no layer.
    """
    weight_of, used = {}, set()
    for layer in layers:
        plain = layer.replace(".", "_")
        path = layer.partition(".")[2].replace(".", "_")
        fitting = [pattern for pattern in blocks if _fits(pattern.replace(".", "_"), plain, path)]
        used.update(fitting)
        weight_of[layer] = float(blocks[max(fitting, key=len)]) if fitting else 1.0
    if left := [pattern for pattern in blocks if pattern not in used]:
        hint = nearest(left[0], [*layers, *(layer.partition(".")[2] for layer in layers)])
        raise AdapterError(f"The block {left[0]!r} fits no layer{f'; {hint}' if hint else ''}.")
    return weight_of


def _fits(pattern: str, plain: str, path: str) -> bool:
    if any(c in pattern for c in "*?["):
        return fnmatchcase(plain, pattern) or fnmatchcase(path, pattern)
    return any(text == pattern or text.startswith(f"{pattern}_") for text in (plain, path))


def assembled(
    adapters: Sequence[Adapter],
    layers: Mapping[str, Delta],
    name: str,
    made: Mapping[str, Any],
    weights: Sequence[float] | None = None,
) -> Adapter:
    """An adapter of these layers with the metadata and the learned words of those that it was made from.

    weights: of the adapters; one of weight 0 gives no words."""
    kohya = any(adapter.format == "kohya" for adapter in adapters)
    words = merged_words(adapters, weights)
    keys = kohya_keys(adapters, layers) | word_keys(adapters, words) if kohya else {}
    metadata = merged_metadata(adapters, layers, made, weights)
    return Adapter(name, layers, metadata, "kohya" if kohya else "", keys, tuple(notes_of(adapters)), words=words)


def notes_of(adapters: Sequence[Adapter]) -> list[str]:
    """What a user should know: notes of the adapters, and different models that they say they were trained on."""
    names = names_of(adapters)
    several = len(adapters) > 1
    notes = [f"{name}: {note}" if several else note for name, a in zip(names, adapters, strict=True) for note in a.notes]
    for key in ("ss_base_model_version", "modelspec.architecture"):
        model_of = {name: a.metadata[key] for name, a in zip(names, adapters, strict=True) if a.metadata.get(key)}
        if len(set(model_of.values())) > 1:
            each = ", ".join(f"{name} on {text}" for name, text in model_of.items())
            notes.append(f"their metadata name different models: {each}")
            break
    return notes


def bias_sum(pieces: Sequence[tuple[float, Delta]]) -> Tensor | None:
    """Sum of the changes of the bias, (out,) in float64; None for nothing."""
    biases = [w * bias for w, delta in pieces if (bias := delta.bias(WIDE)) is not None]
    return sum(biases[1:], biases[0]) if biases else None


def _layer(
    entry: Aligned, weights: Sequence[float], keep: Keep | None, dtype: torch.dtype | None
) -> tuple[Delta, LayerReport] | None:
    pieces = [(w, delta) for w, delta in zip(weights, entry.deltas, strict=True) if delta is not None and w != 0]
    if not pieces:
        return None
    ranks = tuple(delta.rank for _, delta in pieces)
    if len(pieces) == 1 and (keep is None or _small_enough(pieces[0][1], keep)):
        w, delta = pieces[0]
        return scaled(delta, w, entry.layer), LayerReport(entry.layer, delta.rank, ranks, abs(w) * norm(delta))
    for _, delta in pieces:
        refuse_dora(entry.layer, delta)
    dtype = dtype or dtype_of([delta for _, delta in pieces])
    bias = bias_sum(pieces)
    parts = [(w, delta) for w, delta in pieces if delta.kind != "bias"]
    if not parts:
        assert bias is not None
        return Delta({"bias": bias.to(dtype)}), LayerReport(entry.layer, None, ranks, float(bias.norm()))
    limit = min(flat(entry.shape))
    if any(is_dense(delta) for _, delta in parts):
        total = sum(w * dense_of(delta, entry.layer) for w, delta in parts)
        assert isinstance(total, Tensor)
        if keep is None or len(entry.shape) < 2:
            return full(total, entry.shape, dtype, bias), LayerReport(entry.layer, None, ranks, float(total.norm()))
        return approximated(entry.layer, total, entry.shape, keep, dtype, bias, ranks)
    base, up, down = stacked(parts)
    if keep is None and len(down) <= limit:
        made = lora(up, down, entry.shape, base, dtype, bias)
        return made, LayerReport(entry.layer, len(down), ranks, abs(base) * product_norm(up, down))
    if len(down) > limit:
        p, s, wt = matrix_svd(up @ down)
    else:
        p, s, wt = core_svd(up, down)
    k = keep.count(s) if keep is not None else limit
    made = from_svd((p, s, wt), k, entry.shape, base, dtype, bias)
    return made, LayerReport(entry.layer, k, ranks, abs(base) * float(s.norm()), lost(s, k))


def stacked(pieces: Sequence[tuple[float, Delta]]) -> tuple[float, Tensor, Tensor]:
    """(c, U, V) with c U V = sum of w D: c the first one's weight times scale, which is not multiplied in."""
    coefficients = [w * delta.scale for w, delta in pieces]
    base = next((c for c in coefficients if c != 0), 0.0)
    ups, downs = zip(*(factors_of(delta) for _, delta in pieces), strict=True)
    weighted = [u * (c / base if base else 1.0) for u, c in zip(ups, coefficients, strict=True)]
    return base, torch.cat(weighted, 1), torch.cat(downs)


def from_svd(svd: Svd, k: int, shape: Sequence[int], base: float, dtype: torch.dtype, bias: Tensor | None = None) -> Delta:
    """A LoRA of the k leading singular triples, each half with the root of the singular values."""
    p, s, wt = svd
    root = s[:k].sqrt()
    return lora(p[:, :k] * root, root[:, None] * wt[:k], shape, base, dtype, bias)


def approximated(
    layer: str, change: Tensor, shape: Sequence[int], keep: Keep, dtype: torch.dtype, bias: Tensor | None = None,
    ranks: tuple[int | None, ...] = (None,),
) -> tuple[Delta, LayerReport]:  # fmt: skip
    """A whole change (out, in * k ...) as a LoRA of the rank that a rule gives."""
    p, s, wt = matrix_svd(change, None if keep.needs_all else keep.rank)
    whole = float(change.norm())
    k = keep.count(s, whole**2)
    error = float((change - (p[:, :k] * s[:k]) @ wt[:k]).norm()) / whole if whole else 0.0
    return from_svd((p, s, wt), k, shape, 1.0, dtype, bias), LayerReport(layer, k, ranks, whole, error)


def _small_enough(delta: Delta, keep: Keep) -> bool:
    """Is it a LoRA already that a rule of rank alone would leave as it is?"""
    if delta.kind == "bias":
        return True
    plain = delta.kind == "lora" and "mid" not in delta.factors and "magnitude" not in delta.factors
    rules = (keep.sv_ratio, keep.sv_fro, keep.sv_cumulative)
    return plain and rules == (None, None, None) and keep.rank is not None and (delta.rank or 0) <= keep.rank


def lost(s: Tensor, k: int) -> float:
    """Relative Frobenius error of keeping k singular values of these."""
    whole = float(s.norm())
    return float(s[k:].norm()) / whole if whole else 0.0


def product_norm(up: Tensor, down: Tensor) -> float:
    """Frobenius norm of up @ down: the root of tr(U^T U V V^T)."""
    return math.sqrt(max(float(((up.T @ up) * (down @ down.T)).sum()), 0.0))


def norm(delta: Delta) -> float:
    """Frobenius norm of the change of the weight; of the difference that a DoRA's factors make, before its magnitude."""
    if delta.kind == "bias":
        return float(delta.factors["bias"].double().norm())
    if "magnitude" in delta.factors:
        delta = replace(delta, factors={n: f for n, f in delta.factors.items() if n != "magnitude"})
    if is_dense(delta) or delta.kind == "lokr":
        return float(dense_of(delta).norm())
    return abs(delta.scale) * product_norm(*factors_of(delta))
