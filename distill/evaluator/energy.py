"""The evaluation network as an energy to guide pictures to: log p(label | picture) among its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any

from torch import Tensor

from gen import request
from samplers.denoiser import Condition


@dataclass(frozen=True)
class LabelEnergy:
    """`scale` * log p(label) of pictures (B, 3, H, W) in [0, 1]; `label` None: each picture's own prompt is its label.

    The network is the one that comes with the package unless `network` is given, and is read at the first use.
    """

    label: str | None = None
    scale: float = 1.0
    network: Any = None
    labels: tuple[str, ...] = ()
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        request.real("scale", self.scale, 0, 1e6)

    def _network(self) -> Any:
        if not self._loaded:
            from distill.evaluator.network import load_evaluator

            self._loaded.append(load_evaluator() if self.network is None else self.network)
        return self._loaded[0]

    def for_prompts(self, prompts: Sequence[str]) -> LabelEnergy:
        return replace(self, labels=tuple(prompts) if self.label is None else (self.label,) * len(prompts))

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        network = self._network().to(images.device)
        wanted = [self._index(label) for label in self.labels or (self.label or "",) * len(images)]
        logits = network.classify(images * 2 - 1) * network.log_scale.exp().clamp(max=100)
        return self.scale * logits.log_softmax(1)[range(len(images)), wanted].to(images.dtype)

    def _index(self, label: str) -> int:
        known = self._network().labels
        for spelling in (label, label.lower().removeprefix("a ").removeprefix("an ").removeprefix("the ")):
            if spelling in known:
                return known.index(spelling)
        near = get_close_matches(label, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise ValueError(f"The evaluation network knows no {label!r}{hint} Give one of its {len(known)} labels as label.")
