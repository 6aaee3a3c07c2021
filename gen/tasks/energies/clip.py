"""Energies of CLIP: likeness to a text, and an aesthetic head. transformers is loaded here, when one is used.

Models are folders or hub ids that the caller names; weights are read from safetensors only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.validators import check_float
from gen.io.weights import read_weights
from samplers.constants import constant
from samplers.denoiser import Condition

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that CLIP was trained on, and their deviations
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def load_clip(name: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a CLIP folder or hub id, frozen, float32. ValueError says why it cannot be had."""
    from transformers import CLIPModel, CLIPTokenizerFast  # type: ignore[attr-defined]  # made as it is imported

    model = open_transformers("a CLIP model", CLIPModel, name, use_safetensors=True)
    return model.eval().requires_grad_(False), open_transformers("a CLIP model", CLIPTokenizerFast, name)


def open_transformers(what: str, kind: Any, name: str, **options: Any) -> Any:
    """`kind.from_pretrained` of a folder or hub id, running none of its code. ValueError says why it cannot be had."""
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(f"{name!r} is not {what} that can be opened ({reason}); give a folder or a hub id.") from None


def embed_images(model: Any, images: Tensor) -> Tensor:
    """Unit embeddings (B, E) of pictures in [0, 1], brought to CLIP's square size; differentiable."""
    size = model.config.vision_config.image_size
    resized = F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)
    mean, deviation = (constant(v, images.device, images.dtype)[:, None, None] for v in (MEAN, DEVIATION))
    pooled = model.vision_model(pixel_values=((resized - mean) / deviation).to(model.dtype)).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


@dataclass(frozen=True)
class ClipSimilarity:
    """scale * cosine of picture and text; `text` None is each picture's own prompt. scale None: CLIP's own, about 100."""

    model: Any
    text: str | None = None
    scale: float | None = None
    texts: tuple[str, ...] = ()
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.scale is not None:
            check_float("scale", self.scale, 0, 1e6)
        if not self._loaded:
            model = load_clip(self.model) if isinstance(self.model, str) else self.model
            self._loaded.append(model)

    def for_prompts(self, prompts: Sequence[str]) -> ClipSimilarity:
        texts = (self.text,) if self.text is not None else tuple(prompts)
        if not all(texts):
            raise ValueError("The energy 'clip' got no text: give a prompt, or the option text.")
        return replace(self, texts=texts)

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        texts = self.texts or self.for_prompts([""]).texts
        model, tokenizer = self._loaded[0]
        model.to(images.device)
        with torch.no_grad():
            tokens = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").to(images.device)
            pooled = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
            text_features = F.normalize(model.text_projection(pooled), dim=-1)
        scale = model.logit_scale.exp().detach() if self.scale is None else self.scale
        return scale * (embed_images(model, images) * text_features).sum(1).to(images.dtype)


@dataclass(frozen=True)
class AestheticScore:
    """scale * the score of a head on CLIP's unit image embedding: the linear layers of a safetensors file, one after another.

    The published heads on CLIP L/14 (a single layer; five without activations between them) are such files once converted
    from pickle (`fewstep convert --from-pickle`).
    """

    model: Any
    head: str | Path
    scale: float = 1.0
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_float("scale", self.scale, 0, 1e6)
        if not self._loaded:
            model, _ = load_clip(self.model) if isinstance(self.model, str) else self.model
            self._loaded.append((model, *read_head(Path(self.head), model.config.projection_dim)))

    def __call__(self, images: Tensor, condition: Condition) -> Tensor:
        model, weight, bias = self._loaded[0]
        model.to(images.device)
        embedding = embed_images(model, images)
        return self.scale * (embedding @ weight.to(embedding) + bias.to(embedding)).to(images.dtype)


def read_head(path: Path, width: int) -> tuple[Tensor, Tensor]:
    """(weight (E,), bias ()) that all layers of a head come to."""
    tensors = read_weights(path)
    layers = sorted({key.rsplit(".", 1)[0] for key in tensors if key.endswith("weight") and "." in key}, key=_number)
    if not layers and "weight" in tensors:
        layers = [""]
    matrix, bias = torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for layer in layers:
        prefix = f"{layer}." if layer else ""
        weight, add = tensors[f"{prefix}weight"].double(), tensors.get(f"{prefix}bias")
        if weight.ndim != 2 or weight.shape[1] != len(bias):
            raise ValueError(f"{path}: the layer {layer!r} is {tuple(weight.shape)}, but {len(bias)} numbers come in.")
        matrix, bias = weight @ matrix, weight @ bias + (0 if add is None else add.double())
    if not layers or matrix.shape[0] != 1:
        raise ValueError(f"{path} holds no head that ends in one score; give linear layers, the last with one output.")
    return matrix[0].float(), bias[0].float()


def _number(layer: str) -> tuple[int, str]:
    digits = [part for part in layer.split(".") if part.isdecimal()]
    return (int(digits[-1]) if digits else 0, layer)
