"""Energies of CLIP: likeness to a text, and an aesthetic head, as the rewards of `gen.rewards.clip`.

Models are folders or hub ids that the caller names; weights are read from safetensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gen.io.validators import check_float
from gen.rewards.clip import AestheticReward, ClipReward
from samplers.denoiser import Condition


@dataclass(frozen=True)
class ClipSimilarity:
    """scale * cosine of picture and text; `text` None is each picture's own prompt. scale None: CLIP's own, about 100."""

    model: Any
    text: str | None = None
    scale: float | None = None
    texts: tuple[str, ...] = ()
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self._loaded:
            self._loaded.append(ClipReward(self.model, self.scale))

    def for_prompts(self, prompts: Sequence[str]) -> ClipSimilarity:
        texts = (self.text,) if self.text is not None else tuple(prompts)
        if not all(texts):
            raise ValueError("The energy 'clip' got no text: give a prompt, or the option text.")
        return replace(self, texts=texts)

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        return self._loaded[0](images, self.texts or self.for_prompts([""]).texts)


@dataclass(frozen=True)
class AestheticScore:
    """scale * the score of a head on CLIP's unit image embedding: see `gen.rewards.clip.AestheticReward`."""

    model: Any
    head: str | Path
    scale: float = 1.0
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_float("scale", self.scale, 0, 1e6)
        if not self._loaded:
            self._loaded.append(AestheticReward(self.model, self.head))

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        return self.scale * self._loaded[0](images, ())
