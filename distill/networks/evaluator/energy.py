"""The evaluation network as energies to guide pictures to: a label, a text, the style of a picture.

Pictures are (B, 3, H, W) in [0, 1]. The network is the one that comes with the package unless `network` is given, and is read
at the first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.networks.evaluator.augment import views
from gen.io.validators import check_float, check_int
from samplers.denoiser import Condition
from samplers.lookup import nearest


@dataclass(frozen=True)
class LabelEnergy:
    """`scale` * log p(label) among the network's labels; `label` None: each picture's own prompt is its label.

    copies: how many changed copies of a picture are judged beside it, the mean being the energy (`augment.views`): slower, and
    it leads less often to a picture that only the network takes for the label.
    """

    label: str | None = None
    scale: float = 1.0
    network: Any = None
    copies: int = 0
    labels: tuple[str, ...] = ()
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_float("scale", self.scale, 0, 1e6)
        check_int("copies", self.copies, 0, 64)

    def _network(self) -> Any:
        return _loaded(self)

    def for_prompts(self, prompts: Sequence[str]) -> LabelEnergy:
        return replace(self, labels=tuple(prompts) if self.label is None else (self.label,) * len(prompts))

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        network = self._network().to(images.device)
        wanted = [self._index(label) for label in self.labels or (self.label or "",) * len(images)]
        scale, rows = network.log_scale.exp().clamp(max=100), range(len(images))
        each = [network.classify(view) * scale for view in views(images * 2 - 1, self.copies)]
        return self.scale * torch.stack([logits.log_softmax(1)[rows, wanted] for logits in each]).mean(0).to(images.dtype)

    def _index(self, label: str) -> int:
        known = self._network().labels
        for spelling in (label, label.lower().removeprefix("a ").removeprefix("an ").removeprefix("the ")):
            if spelling in known:
                return known.index(spelling)
        near = nearest(label, known)
        hint = f"; did you mean {near!r}?" if near else "."
        raise ValueError(f"The evaluation network knows no {label!r}{hint} Give one of its {len(known)} labels as label.")


@dataclass(frozen=True)
class TextEnergy:
    """`scale` * cosine of picture and text, as the network embeds them; `text` None: each picture's own prompt.

    encoder: the text encoder that the network was trained with; None: the default model's. copies: as of `LabelEnergy`.
    """

    text: str | None = None
    scale: float = 20.0
    network: Any = None
    encoder: Any = None
    copies: int = 0
    texts: tuple[str, ...] = ()
    _loaded: list = field(default_factory=list, repr=False, compare=False)
    _embedded: dict[tuple[str, ...], Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_float("scale", self.scale, 0, 1e6)
        check_int("copies", self.copies, 0, 64)

    def for_prompts(self, prompts: Sequence[str]) -> TextEnergy:
        texts = tuple(prompts) if self.text is None else (self.text,) * len(prompts)
        if not all(text.strip() for text in texts):
            raise ValueError("The energy 'text' got no text: give a prompt, or the option text.")
        return replace(self, texts=texts)

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        network = _loaded(self).to(images.device)
        texts = self.texts or self.for_prompts([""] * len(images)).texts
        if texts not in self._embedded:
            with torch.no_grad():
                self._embedded[texts] = network.embed_texts(self._encoder().pooled(list(texts)).to(images.device))
        each = [(network.embed(view) * self._embedded[texts]).sum(1) for view in views(images * 2 - 1, self.copies)]
        return self.scale * torch.stack(each).mean(0).to(images.dtype)

    def _encoder(self) -> Any:
        if self.encoder is not None:
            return self.encoder
        import gen
        from gen.models.components import load_component

        return load_component(Path(gen.__file__).parent / "weights" / "default" / "text_encoder", "text_encoder")


@dataclass(frozen=True)
class StyleEnergy:
    """-scale * the distance of the picture's Gram matrices from those of a reference picture.

    Gram matrices G = F F^T / (h w) of the features F (C, h w) of the network's first stages; the distance is the mean over
    stages of |G - G_ref|^2 / |G_ref|^2 (arXiv 1508.06576, equations 3 to 5, with relative weights). image: a file, or a tensor
    (3, H, W) in [0, 1].
    """

    image: Any
    scale: float = 10.0
    network: Any = None
    _loaded: list = field(default_factory=list, repr=False, compare=False)
    _wanted: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_float("scale", self.scale, 0, 1e6)
        from gen.io.images import read_picture

        self._wanted.append(read_picture("image", self.image, "RGB"))

    def distance(self, images: Tensor) -> Tensor:
        """(B,); 0 for the reference itself."""
        network = _loaded(self).to(images.device)
        if len(self._wanted) == 1:  # the picture; its matrices are kept beside it
            with torch.no_grad():
                self._wanted.append(grams(network, self._wanted[0].to(images) * 2 - 1))
        return style_distance(grams(network, images * 2 - 1), self._wanted[1]).to(images.dtype)

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        return -self.scale * self.distance(images)


def grams(network: Any, images: Tensor) -> list[Tensor]:
    """Gram matrices (B, C, C) of the features of pictures in [-1, 1] after each of the network's first three stages."""
    found = []
    for features in network.stages(images)[:3]:
        flat = features.flatten(2).float()
        found.append(flat @ flat.mT / flat.shape[2])
    return found


def style_distance(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """(B,): the mean over stages of |G - W|^2 / |W|^2, matrices (B, C, C) and (B or 1, C, C)."""
    parts = [(g - w).square().sum((1, 2)) / w.square().sum((1, 2)) for g, w in zip(found, wanted, strict=True)]
    return torch.stack(parts).mean(0)


def _loaded(energy: Any) -> Any:
    """The network of an energy, read at its first use."""
    if not energy._loaded:
        from distill.networks.evaluator.network import load_evaluator

        energy._loaded.append(load_evaluator() if energy.network is None else energy.network)
    return energy._loaded[0]
