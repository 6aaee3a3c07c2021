"""The networks whose features pictures are compared by: a closed registry, named as `evaluator` or `inception:WEIGHTS`.

A feature network takes pictures (N, 3, H, W) in [-1, 1] of any size to features (N, D). Distances under different ones have
nothing to do with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from samplers.lookup import nearest

T = TypeVar("T")


def in_range(images: Tensor) -> Tensor:
    """Pictures for a network to look at, which a decoder may have taken beyond white, where there is nothing to gain."""
    return images.clamp(-1.2, 1.2)


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
    from distill.networks.evaluator.network import load_evaluator

    network = load_evaluator(folder).eval()
    return Features("evaluator" if folder is None else f"evaluator:{folder}", network.features, network)


def _inception(path: str | None) -> Features:
    from distill.networks.inception import load_inception

    if path is None:
        raise ValueError("Weights of Inception are not shipped; give a safetensors file of yours: inception:FILE.")
    network = load_inception(path)
    return Features("inception", network, network, batch_size=32)


def _vision(kind: str) -> Callable[[str | None], Features]:
    def opened(path: str | None) -> Features:
        from distill.networks.vision_features import VisionFeatures

        network = VisionFeatures(kind, path)
        return Features(kind, network, network, batch_size=32)

    return opened


FEATURES: dict[str, Callable[[str | None], Features]] = {
    "evaluator": _evaluator,
    "inception": _inception,
    **{kind: _vision(kind) for kind in ("dinov2", "clip", "siglip", "convnext")},
}


def open_named(registry: Mapping[str, Callable[[str | None], T]], what: str, name: str, also: Sequence[str] = ()) -> T:
    """What the registry makes of "NAME" or "NAME:PATH"; ValueError lists what there is, `also` included."""
    kind, _, path = name.partition(":")
    if kind not in registry:
        known = [*registry, *also]
        near = nearest(kind, known)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"Unknown {what} {name!r}: {hint}Known: {', '.join(known)}; NAME:PATH reads weights of yours.")
    return registry[kind](path or None)


def load_features(name: str) -> Features:
    """The feature network of "NAME" or "NAME:PATH"; ValueError lists what there is."""
    return open_named(FEATURES, "features", name)
