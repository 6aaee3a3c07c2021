"""The networks whose features pictures are compared by: a closed registry, named as `evaluator` or `inception:WEIGHTS`.

A feature network takes pictures (N, 3, H, W) in [-1, 1] of any size to features (N, D). Distances under different ones have
nothing to do with each other.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Features:
    """`features(images)` gives (N, D) float32 on the CPU, in parts of `batch_size` pictures; name: what reports call it;
    network: what `function` runs, None where there is none to move."""

    name: str
    function: Callable[[Tensor], Tensor]
    network: nn.Module | None = None
    batch_size: int = 128

    def to(self, device: torch.device) -> Features:
        """Move the network; pictures are expected there."""
        if self.network is not None:
            self.network.to(device)
        return self

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return torch.cat([self.function(part).float().cpu() for part in images.split(self.batch_size)])


def _evaluator(folder: str | None) -> Features:
    from distill.evaluator.network import load_evaluator

    network = load_evaluator(folder).eval()
    return Features("evaluator" if folder is None else f"evaluator:{folder}", network.features, network)


def _inception(path: str | None) -> Features:
    from distill.inception import load_inception

    if path is None:
        raise ValueError("Weights of Inception are not shipped; give a safetensors file of yours: inception:FILE.")
    network = load_inception(path)
    return Features("inception", network, network, batch_size=32)


FEATURES: dict[str, Callable[[str | None], Features]] = {"evaluator": _evaluator, "inception": _inception}


def load_features(name: str) -> Features:
    """The feature network of "NAME" or "NAME:PATH"; ValueError lists what there is."""
    kind, _, path = name.partition(":")
    if kind not in FEATURES:
        near = difflib.get_close_matches(kind, FEATURES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"Unknown features {name!r}: {hint}Known: {', '.join(FEATURES)}; NAME:PATH reads weights of yours.")
    return FEATURES[kind](path or None)
