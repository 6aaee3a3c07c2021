"""Rewards of CLIP and of its relatives taught by people's choices. transformers is loaded here, when one is used.

Models are folders or hub ids that the caller names, in transformers' form; weights are read from safetensors only. Pictures are
(B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.validators import check_float
from gen.io.weights import read_weights
from samplers.constants import constant

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


def to_pixels(images: Tensor, size: int) -> Tensor:
    """Pictures at the square size and with the mean and deviation that CLIP's and BLIP's networks see; differentiable."""
    resized = F.interpolate(images, (size, size), mode="bicubic", align_corners=False, antialias=True)
    mean, deviation = (constant(v, images.device, images.dtype)[:, None, None] for v in (MEAN, DEVIATION))
    return (resized - mean) / deviation


def embed_images(model: Any, images: Tensor) -> Tensor:
    """Unit embeddings (B, E) of pictures, brought to CLIP's square size; differentiable."""
    pixels = to_pixels(images, model.config.vision_config.image_size)
    pooled = model.vision_model(pixel_values=pixels.to(model.dtype)).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)


@torch.no_grad()
def embed_texts(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Unit embeddings (B, E) of texts."""
    tokens = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").to(model.device)
    pooled = model.text_model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def check_prompts(reward: str, prompts: Sequence[str]) -> None:
    """ValueError for a prompt without a word, by which no picture can be judged."""
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ValueError(f"The reward {reward!r} judges pictures by their prompts, and one is empty; give a prompt to each.")


@dataclass(frozen=True)
class ClipReward:
    """scale * cosine of picture and prompt.

    model: CLIP as (model, tokenizer), or where it is.
    scale: None for CLIP's own, about 100.
    name: of the reward, for errors.

    Source: arXiv 2103.00020.
    """

    model: Any
    scale: float | None = None
    name: str = field(default="clip", kw_only=True)
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.scale is not None:
            check_float("scale", self.scale, 0, 1e6)
        self._loaded.append(load_clip(self.model) if isinstance(self.model, str) else self.model)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_prompts(self.name, prompts)
        model, tokenizer = self._loaded[0]
        model.to(images.device)
        scale = model.logit_scale.exp().detach() if self.scale is None else self.scale
        return scale * (embed_images(model, images) * embed_texts(model, tokenizer, prompts)).sum(1).to(images.dtype)


def pick_score(model: Any) -> ClipReward:
    """PickScore (arXiv 2305.01569): the cosine times the model's own scale, about 20 for a good picture."""
    return ClipReward(model, name="pickscore")


def human_preference_score(model: Any) -> ClipReward:
    """HPS v2 (arXiv 2306.09341): the bare cosine, about 0.3 for a good picture."""
    return ClipReward(model, 1.0, name="hps")


@dataclass(frozen=True)
class AestheticReward:
    """The score of a head on CLIP's unit image embedding: the linear layers of a safetensors file, one after another.

    The published heads on CLIP L/14 (a single layer; five without activations between them) are such files once converted
    from pickle (`fewstep convert --from-pickle`).
    """

    model: Any
    head: str | Path
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        model, _ = load_clip(self.model) if isinstance(self.model, str) else self.model
        self._loaded.append((model, *read_head(Path(self.head), model.config.projection_dim)))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        model, weight, bias = self._loaded[0]
        model.to(images.device)
        embedding = embed_images(model, images)
        return (embedding @ weight.to(embedding) + bias.to(embedding)).to(images.dtype)


def read_head(path: Path, width: int) -> tuple[Tensor, Tensor]:
    """(weight (E,), bias ()) that all linear layers of a head come to, which has no activations between them."""
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
