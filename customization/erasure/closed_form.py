"""Unified concept editing (UCE, arXiv 2308.14761): text layers rewritten in closed form, so that words mean something else.

    W = argmin sum_i |W c_i - W_0 c_i*|^2 + k sum_j |(W - W_0) c_j|^2 + r |W - W_0|^2        equation 3, by its sums
      = W_0 + [sum_i W_0 (c_i* - c_i) c_i^T] A^-1,   A = sum_i c_i c_i^T + k sum_j c_j c_j^T + r I

c_i (in,): rows that a layer sees of what is to be forgotten; c_i*: of what is drawn instead; c_j: of what stays. The change is
U V with U = W_0 (C* - C)^T and V = C A^-1, so it is a LoRA whose rank is the number of rows, without any training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from customization.algebra.factors import WIDE
from customization.algebra.sum import LayerReport, Track, from_svd
from customization.algebra.svd import Keep, core_svd
from customization.erasure.readers import PromptRows, reading_layers
from gen.adapters import Adapter, AdapterError
from gen.adapters.apply import inner
from gen.generator import Generator

NEGLIGIBLE = 1e-7  # singular values below this share of the largest are rounding


@dataclass(frozen=True)
class ConceptEdit:
    """Prompts in pairs: `erased[i]` comes to mean `instead[i]`, and those in `kept` what they do."""

    erased: tuple[str, ...]
    instead: tuple[str, ...]
    kept: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.erased or len(self.erased) != len(self.instead):
            raise ValueError(
                f"{len(self.erased)} prompts are to be forgotten and {len(self.instead)} stand instead; give equally many, "
                "at least one."
            )


def aligned(rows: Tensor, count: int) -> Tensor:
    """(count, in): rows (m, in) spread over `count` places in their order, first on first and last on last."""
    places = torch.arange(count, dtype=WIDE) * ((len(rows) - 1) / max(count - 1, 1))
    return rows[places.round().long()]


def solve(
    weight: Tensor, erased: Tensor, instead: Tensor, kept: Tensor, keep_weight: float, ridge: float
) -> tuple[Tensor, Tensor]:
    """(U (out, n), V (n, in)) with W = W_0 + U V, in float64.

    weight: W_0 (out, in). erased, instead: C and C*, (n, in). kept: (m, in). keep_weight: k. ridge: r, as a share of the mean
    eigenvalue of the rest of A.
    """
    weight, erased, instead, kept = (value.to(WIDE) for value in (weight, erased, instead, kept))
    moment = erased.T @ erased + keep_weight * kept.T @ kept
    moment = moment + ridge * moment.trace() / len(moment) * torch.eye(len(moment), dtype=WIDE)
    down = torch.linalg.solve(moment, erased.T).T  # C A^-1 of arXiv 2308.14761, equation 3
    return weight @ (instead - erased).T, down


def edit_concepts(
    model: Generator,
    edit: ConceptEdit,
    *,
    keep_weight: float = 0.1,
    ridge: float = 1e-2,
    targets: Sequence[str] = (),
    keep: Keep | None = None,
    name: str = "forgotten",
    track: Track = iter,
) -> tuple[Adapter, list[LayerReport]]:
    """An adapter with which the model reads some prompts as others, and a report of every layer.

    keep_weight: how much a kept prompt's row counts against an erased one's; the published program has 0.1. targets: ends of
    the names of other layers than `readers.reading_layers` finds. keep: a rule for the rank; all that matters without one.
    ValueError for a model without text, AdapterError where nothing would change.
    """
    if not 0 <= keep_weight < float("inf"):
        raise ValueError(f"keep_weight is {keep_weight!r}; give a number of at least 0.")
    if not 0 < ridge < float("inf"):  # without it there are many minima where prompts have fewer rows than a layer has inputs
        raise ValueError(f"ridge is {ridge!r}; give a number above 0, such as 0.01.")
    rows = PromptRows(model, reading_layers(model.network, targets))
    read = {prompt: rows(prompt) for prompt in dict.fromkeys((*edit.erased, *edit.instead, *edit.kept))}
    layers, reports = {}, []
    modules: dict[str, nn.Module] = dict(inner(model.network).named_modules())
    for layer in track(rows.layers):
        erased = [read[prompt][layer] for prompt in edit.erased]
        instead = [aligned(read[to][layer], len(own)) for to, own in zip(edit.instead, erased, strict=True)]
        kept = [read[prompt][layer] for prompt in edit.kept] or [erased[0][:0]]
        weight = modules[layer].weight
        assert isinstance(weight, Tensor)
        shape = tuple(weight.shape)
        up, down = solve(weight.detach().cpu(), torch.cat(erased), torch.cat(instead), torch.cat(kept), keep_weight, ridge)
        p, s, wt = core_svd(up, down)
        whole = float(s.norm())
        if not whole:
            continue
        count = int((s > NEGLIGIBLE * s[0]).sum())
        if keep is not None:
            count = min(count, keep.count(s, whole**2))
        layers[f"denoiser.{layer}"] = from_svd((p, s, wt), count, shape, 1.0, torch.float32)
        reports.append(LayerReport(f"denoiser.{layer}", count, (None,), whole, float(s[count:].norm()) / whole))
    if not layers:
        raise AdapterError("The prompts read alike before and after, so there is nothing to forget; give others.")
    return Adapter(name, layers), reports
