"""A LoRA from two checkpoints: the difference of the weights of every linear layer and convolution, of a lower rank.

    D = W_tuned - W,  D ~ U V with the least error that rank allows

A whole matrix has no factors to start from: small ones are decomposed whole, large ones by a randomised sketch
(`svd.sketch_svd`), whose error is measured, not assumed. Two tensors are in memory at a time.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from customization.algebra.checkpoints import Weights, open_like, open_model, pairs, read_tensor
from customization.algebra.factors import full
from customization.algebra.metadata import HISTORY
from customization.algebra.sum import LayerReport, Track, approximated, check_rank
from customization.algebra.svd import Keep
from gen.adapters import Adapter, AdapterError, Delta

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Extracted:
    """unchanged: layers that are equal in both. left: what changed and is not in the adapter, with the norm of its change
    relative to that of the larger weight: biases, norms, embeddings."""

    adapter: Adapter
    reports: list[LayerReport]
    unchanged: int
    left: dict[str, float]


def extract(
    tuned: Path | str,
    base: Path | str,
    keep: Keep,
    *,
    others: bool = False,
    name: str = "extracted",
    dtype: torch.dtype | None = None,
    track: Track = iter,
) -> Extracted:
    """What turns the base model into the tuned one.

    tuned, base: folders of models of one architecture; tuned may also be a file of the denoiser's weights alone. keep: the
    rank, or a rule for it. others: store changes of biases, norms and embeddings too, whole. dtype: of the factors; float32,
    or that of float64 weights, if None.
    CheckpointError for different networks; AdapterError where nothing changed, or for a rank that no layer can have.
    """
    before = open_model(Path(base))
    after = open_like(Path(tuned), before)
    matched = list(pairs(after, before))
    check_rank(keep.rank or 1, [tuple(module.weight.shape) for _, _, module, _, _ in matched if isinstance(module, MATRICES)])
    layers: dict[str, Delta] = {}
    reports: list[LayerReport] = []
    left: dict[str, float] = {}
    unchanged = 0
    for part, module, kind, new, old in track(matched):
        layer = f"{part}.{old.spelled(module)}"
        weights = read_tensor(new, module, "weight"), read_tensor(old, module, "weight")
        biases = read_tensor(new, module, "bias"), read_tensor(old, module, "bias")
        bias = None
        if (change := _changed(*biases)) is not None:
            if others:
                bias = change
            else:
                left[f"{layer}.bias"] = _relative(change, *biases)
        change = _changed(*weights)
        if change is None and bias is None:
            unchanged += 1
            continue
        kept_as = dtype or (change if change is not None else bias).dtype  # type: ignore[union-attr]
        if change is None:
            layers[layer] = Delta({"bias": bias.to(kept_as)})  # type: ignore[union-attr]
            reports.append(LayerReport(layer, None, (None,), float(bias.norm())))  # type: ignore[union-attr]
        elif isinstance(kind, MATRICES):
            layers[layer], report = approximated(layer, change.flatten(1), tuple(change.shape), keep, kept_as, bias)
            reports.append(report)
        elif others:
            layers[layer] = full(change, change.shape, kept_as, bias)
            reports.append(LayerReport(layer, None, (None,), float(change.norm())))
        else:
            left[f"{layer}.weight"] = _relative(change, *weights)
    if not layers:
        also = f"; what changed is {', '.join(list(left)[:3])}, which others=True keeps" if left else ""
        raise AdapterError(f"No linear layer or convolution of {tuned} differs from {base}{also}.")
    return Extracted(Adapter(name, layers, _metadata(after, before, keep)), reports, unchanged, left)


def _changed(new: Tensor | None, old: Tensor | None) -> Tensor | None:
    """new - old in its shape; None where they are equal, or where neither has one."""
    if new is None and old is None:
        return None
    if new is None or old is None or new.shape != old.shape:
        raise AdapterError("A layer has a bias in one of the models and none, or another, in the other; give two of one kind.")
    wide = torch.float64 if torch.float64 in (new.dtype, old.dtype) else torch.float32
    change = new.to(wide) - old.to(wide)
    return change if bool(change.any()) else None


def _relative(change: Tensor, *ends: Tensor | None) -> float:
    return float(change.double().norm()) / max(float(end.double().norm()) for end in ends if end is not None)


def _metadata(tuned: Weights, base: Weights, keep: Keep) -> dict[str, str]:
    made = {"method": "extract", "keep": keep.values()}
    return {HISTORY: json.dumps({**made, "tuned": tuned.path.name, "base": base.path.name}, ensure_ascii=False)}
