"""SLUG (arXiv 2407.11867): forget by one step along one gradient, in one layer.

    importance(l) = |g_f| / |W_l|,   alignment(l) = |cos(g_f, g_r)|         g_f, g_r: gradients of the two losses in W_l
    W_l <- W_l - strength g_f

The layer is one of those that no other beats in both (the Pareto front); the strength is found by bisection, from
|W_l| / (10 |g_f|). What comes out is an adapter of one whole difference, so it can be weighed, merged and taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gen.adapters import Adapter, AdapterError, Delta

ROUNDS = 10


@dataclass(frozen=True)
class LayerScore:
    """gradient: of the loss that is to fall as the concept is forgotten, in the layer's weight. importance: how much it matters
    there; alignment: how much of it the retained concepts feel, 0 to 1."""

    layer: str
    gradient: Tensor
    importance: float
    alignment: float


def layer_scores(
    network: nn.Module, forget: Callable[[], Tensor], retain: Callable[[], Tensor], layers: Sequence[str] | None = None
) -> list[LayerScore]:
    """One score per layer from one gradient of each loss.

    forget, retain: losses of the network as it is now, scalars; the first falls as the concept is forgotten. layers: names of
    linear layers and convolutions; all of them if None. Layers without a gradient are left out.
    """
    matrices = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)}
    names = [name for name in (matrices if layers is None else layers) if name in matrices]
    weights = [matrices[name].weight for name in names]
    if not weights:
        raise AdapterError("The network has none of these linear layers or convolutions.")
    g_forget = torch.autograd.grad(forget(), weights, allow_unused=True)
    g_retain = torch.autograd.grad(retain(), weights, allow_unused=True)
    scores = []
    for name, weight, f, r in zip(names, weights, g_forget, g_retain, strict=True):
        if f is not None and (score := score_of(name, weight, f, r)) is not None:
            scores.append(score)
    return scores


def score_of(name: str, weight: Tensor, f: Tensor, r: Tensor | None) -> LayerScore | None:
    """The score of a layer from its weight and the gradients of the two losses in it; None where there is no gradient."""
    if not float(f.norm()) or not float(weight.detach().norm()):
        return None
    cosine = 0.0 if r is None or not float(r.norm()) else float((f * r).sum() / (f.norm() * r.norm()))
    # arXiv 2407.11867: importance |g_f| / |W|, alignment |cos(g_f, g_r)|
    return LayerScore(name, f.detach(), float(f.norm() / weight.detach().norm()), abs(cosine))


def pareto_front(scores: Sequence[LayerScore]) -> list[LayerScore]:
    """Those for which no other is at least as important and as little aligned, and better in one of the two."""
    return [
        one
        for one in scores
        if not any(
            other.importance >= one.importance
            and other.alignment <= one.alignment
            and (other.importance, other.alignment) != (one.importance, one.alignment)
            for other in scores
        )
    ]


def unlearn(
    network: nn.Module,
    score: LayerScore,
    forgotten: Callable[[], bool],
    rounds: int = ROUNDS,
    name: str = "unlearned",
    part: str = "denoiser",
) -> tuple[Adapter, float]:
    """(an adapter of one layer, its strength): the smallest step along the gradient at which the concept counts as forgotten.

    forgotten: asked with the step in the network's weights, which are back to the last bit afterwards. rounds: how often it is
    asked. AdapterError where no strength that was tried is enough.
    """
    weight = network.get_submodule(score.layer).weight
    assert isinstance(weight, Tensor)
    original = weight.detach().clone()
    strength = float(original.norm() / (10 * score.gradient.norm()))
    low, high = 0.0, None
    try:
        for _ in range(rounds):
            with torch.no_grad():
                # arXiv 2407.11867: W <- W - strength g_f
                weight.copy_(original - strength * score.gradient)
            if forgotten():
                high = strength
            else:
                low = strength
            strength = 2 * low if high is None else (low + high) / 2
    finally:
        with torch.no_grad():
            weight.copy_(original)
    if high is None:
        raise AdapterError(
            f"No step in {score.layer} up to {low:.3g} times the gradient forgets it; try another layer of the front, or more "
            "rounds."
        )
    return Adapter(name, {f"{part}.{score.layer}": Delta({"weight": -high * score.gradient})}), high
