"""A trained classifier of noisy images as something to guide to: by classifier guidance, or as an energy of clean images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from gen.io.validators import check_float
from gen.models.components import load_component
from gen.models.imagenet import names
from samplers.denoiser import Condition
from samplers.lookup import nearest
from samplers.path import NoiseLevel, VarianceExploding

CLEAN = VarianceExploding()(0.02)  # the level at which clean images are classified: about the cleanest that training sees


@dataclass(frozen=True)
class NoisyLabel:
    """log p(label | x) of the network in `folder`, the export of the objective `classifier`, or of one of ADM's classifiers as
    published, a safetensors file; label None: each picture's own
    prompt. `noisy` takes x at a level, a call clean images; both as the denoiser has them, (B, C, h, w), not pictures."""

    folder: str | Path | Any
    label: str | None = None
    scale: float = 1.0
    labels: tuple[str, ...] = ()
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    space: ClassVar[str] = "latents"

    def __post_init__(self) -> None:
        check_float("scale", self.scale, 0, 1e6)
        if not self._loaded:
            import distill.networks.classifier  # noqa: F401  (makes the type known)

            given = self.folder
            self._loaded.append(_opened(Path(given)) if isinstance(given, str | Path) else given)

    def for_prompts(self, prompts: Sequence[str]) -> NoisyLabel:
        return replace(self, labels=tuple(prompts) if self.label is None else (self.label,) * len(prompts))

    def noisy(self, x: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
        """(B,) of x (B, C, h, w) at a level of any path."""
        network = self._loaded[0].to(x.device)
        wanted = [self._index(label) for label in self.labels or (self.label or "",) * len(x)]
        return self.scale * network.log_probabilities(x, level)[range(len(x)), wanted].to(x.dtype)

    def __call__(self, x0: Tensor, condition: Condition) -> Tensor:
        return self.noisy(x0, CLEAN, condition)

    def _index(self, label: str) -> int:
        known = self._loaded[0].labels
        for spelling in (label, label.lower().removeprefix("a ").removeprefix("an ").removeprefix("the ")):
            if spelling in known:
                return known.index(spelling)
        near = nearest(label, known)
        hint = f"; did you mean {near!r}?" if near else "."
        raise ValueError(f"The classifier knows no {label!r}{hint} Give one of its {len(known)} labels as label.")


def _opened(place: Path) -> Any:
    """The classifier of a folder of ours, or of a published file; one of 1000 classes knows ImageNet's names."""
    network: Any
    if place.is_file():
        from gen.models.formats.read import read_checkpoint

        network = read_checkpoint(place, "adm-classifier")
    else:
        network = load_component(place, "noisy_classifier", "adm_classifier")
    if network.config.num_classes == len(names()) and type(network).__name__ == "AdmClassifier":
        network.labels = names()
    return network
