"""ImageReward (arXiv 2304.05977): BLIP reads the prompt beside the picture, and a head scores what it read.

transformers is loaded here, when it is used. Pictures are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.rewards.clip import check_prompts, open_transformers, read_head, to_pixels

MAX_TOKENS = 35
SCORE_MEAN, SCORE_DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the published head's scores, which it takes away


def load_blip(name: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a BLIP folder or hub id with a text encoder that sees pictures, frozen, float32."""
    from transformers import BertTokenizerFast, BlipForImageTextRetrieval  # type: ignore[attr-defined]

    what = "a BLIP model for image-text retrieval"
    model = open_transformers(what, BlipForImageTextRetrieval, name, use_safetensors=True)
    return model.eval().requires_grad_(False), open_transformers(what, BertTokenizerFast, name)


@dataclass(frozen=True)
class ImageReward:
    """The head's score of the first token that BLIP's text encoder makes, in deviations of published scores from their mean.

    model: BLIP as (model, tokenizer), or where it is, with ImageReward's weights in transformers' form.
    head: a safetensors file of its linear layers, which have no activations between them.
    """

    model: Any
    head: str | Path
    _loaded: list = field(default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        model, tokenizer = load_blip(self.model) if isinstance(self.model, str) else self.model
        self._loaded.append((model, tokenizer, *read_head(Path(self.head), model.config.text_config.hidden_size)))

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        check_prompts("image_reward", prompts)
        model, tokenizer, weight, bias = self._loaded[0]
        model.to(images.device)
        pixels = to_pixels(images, model.config.vision_config.image_size)
        seen = model.vision_model(pixel_values=pixels.to(model.dtype)).last_hidden_state
        tokens = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(images.device)  # fmt: skip
        read = model.text_encoder(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        ).last_hidden_state[:, 0]
        score = read @ weight.to(read) + bias.to(read)
        return ((score - SCORE_MEAN) / SCORE_DEVIATION).to(images.dtype)
