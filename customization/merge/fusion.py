"""Gradient fusion of Mix-of-Show (arXiv 2305.18292), solved: each concept keeps what its own inputs make of it.

    W = argmin sum_i |(W - W_i) X_i|^2 = (sum_i W_i G_i) (sum_i G_i)^+,   G_i = X_i X_i^T

The paper runs an optimiser per layer; the minimum has this closed form. With W_i = W_0 + s_i B_i A_i the base weight cancels,

    W - W_0 = [s_1 B_1, s_2 B_2, ...] [A_1 G_1; A_2 G_2; ...] (sum_i G_i)^+

so the merge of LoRAs is a LoRA of the ranks' sum and needs neither the model's weights nor a matrix of their size. ^+ is the
pseudo-inverse: directions that no concept has seen are left as they are in the base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from customization.algebra.align import Aligned, align, names_of
from customization.algebra.factors import WIDE, dense_of, dtype_of, factors_of, flat, full, is_dense, refuse_dora
from customization.algebra.sum import LayerReport, Merged, Track, assembled, bias_sum, from_svd, product_norm
from customization.algebra.svd import core_svd
from gen.adapters import Adapter, AdapterError, Delta

TOLERANCE = 1e-10  # eigenvalues of the summed moments below this share of the largest count as 0


def pseudo_inverse(moment: Tensor, ridge: float = 0.0) -> Tensor:
    """(G + ridge tr(G) / n I)^+ of a symmetric, positive semidefinite G (n, n)."""
    values, vectors = torch.linalg.eigh(moment)
    values = values + ridge * values.sum() / len(values)
    kept = values > TOLERANCE * values.max()
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T


def fuse_by_inputs(
    adapters: Sequence[Adapter],
    moments: Sequence[Mapping[str, Tensor]],
    *,
    ridge: float = 0.0,
    name: str = "fused",
    dtype: torch.dtype | None = None,
    track: Track = iter,
) -> Merged:
    """The adapter whose layers act on each concept's inputs as that concept's own adapter does, as nearly as one weight can.

    moments: per adapter, layer -> G (in * k, in * k) of the inputs that its layers see (`record_inputs`, running the model
    with that adapter on its own prompts). ridge: pulls towards the base model; a share of G's mean eigenvalue. The report's
    errors are the root of the minimum, relative to sum_i |D_i X_i|^2. Biases and norms are averaged.
    AdapterError for a layer without its moments, and for moments that do not fit it.
    """
    if len(moments) != len(adapters):
        raise AdapterError(f"There are {len(adapters)} adapters and {len(moments)} tables of moments; give one to each.")
    if not 0 <= ridge < float("inf"):
        raise AdapterError(f"The ridge is {ridge!r}; give a number of at least 0.")
    layers, reports = {}, []
    for entry in track(align(adapters, disjoint=True)):
        own = [_moment(entry, i, table, adapters) for i, table in enumerate(moments)]
        layers[entry.layer], report = _layer(entry, own, ridge, dtype)
        reports.append(report)
    return assembled(adapters, layers, name, {"method": "gradient fusion, closed form", "ridge": ridge}), reports


def _moment(entry: Aligned, i: int, table: Mapping[str, Tensor], adapters: Sequence[Adapter]) -> Tensor | None:
    plain = entry.layer.replace(".", "_")  # kohya's adapters have underscores
    moment = next((moment for layer, moment in table.items() if layer.replace(".", "_") == plain), None)
    if len(entry.shape) < 2:
        return None
    if moment is None:
        if entry.deltas[i] is None or entry.deltas[i].kind == "bias":  # type: ignore[union-attr]
            return None
        raise AdapterError(f"The inputs of {entry.layer} were not recorded for {names_of(adapters)[i]}; record it too.")
    side = flat(entry.shape)[1]
    if moment.shape != (side, side):
        raise AdapterError(f"The moments of {entry.layer} are {tuple(moment.shape)}, and its inputs have {side} values.")
    return moment.to(WIDE)


def _layer(
    entry: Aligned, moments: Sequence[Tensor | None], ridge: float, dtype: torch.dtype | None
) -> tuple[Delta, LayerReport]:
    for delta in entry.present:
        refuse_dora(entry.layer, delta)
    dtype, ranks = dtype or dtype_of(entry.present), tuple(delta.rank for delta in entry.present)
    bias = bias_sum([(1 / len(entry.present), delta) for delta in entry.present])
    parts = [
        (delta, moment)
        for delta, moment in zip(entry.deltas, moments, strict=True)
        if delta is not None and moment is not None and delta.kind != "bias"
    ]
    if not parts and any(is_dense(delta) for delta in entry.present):  # of a norm
        change = sum(dense_of(delta) for delta in entry.present if is_dense(delta)) / len(entry.present)
        made = full(change, entry.shape, dtype, bias)  # type: ignore[arg-type]
        return made, LayerReport(entry.layer, None, ranks, float(change.norm()))  # type: ignore[union-attr]
    if not parts:
        assert bias is not None
        return Delta({"bias": bias.to(dtype)}), LayerReport(entry.layer, None, ranks, float(bias.norm()))
    # a concept without this layer still says by its inputs that W_0 is right for them
    inverse = pseudo_inverse(sum(m for m in moments if m is not None), ridge)  # type: ignore[arg-type]
    if any(is_dense(delta) for delta, _ in parts):
        total: Any = sum(dense_of(delta, entry.layer) @ moment for delta, moment in parts)
        change = total @ inverse
        made, up, down = full(change, entry.shape, dtype, bias), change, torch.eye(change.shape[1], dtype=WIDE)
    else:
        halves = [(delta.scale, *factors_of(delta), moment) for delta, moment in parts]
        up = torch.cat([s * u for s, u, _, _ in halves], 1)
        down = torch.cat([v @ moment for _, _, v, moment in halves]) @ inverse
        svd = core_svd(up, down)
        made = from_svd(svd, min(len(down), *flat(entry.shape)), entry.shape, 1.0, dtype, bias)
    return made, LayerReport(entry.layer, made.rank, ranks, product_norm(up, down), _misfit(entry, moments, up @ down))


def _misfit(entry: Aligned, moments: Sequence[Tensor | None], change: Tensor) -> float:
    """sqrt(sum |(D - D_i) X_i|^2 / sum |D_i X_i|^2), with |M X|^2 = tr(M G M^T)."""
    error = whole = 0.0
    for delta, moment in zip(entry.deltas, moments, strict=True):
        if moment is not None:
            own = torch.zeros_like(change) if delta is None or delta.kind == "bias" else dense_of(delta, entry.layer)
            error += float((((change - own) @ moment) * (change - own)).sum())
            whole += float(((own @ moment) * own).sum())
    return max(error / whole, 0.0) ** 0.5 if whole > 0 else 0.0
