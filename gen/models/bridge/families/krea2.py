"""Krea 2: a transformer over text and patches in one sequence, read by many layers of Qwen 3 VL's language model.

diffusers' guidance scale s is cond + s (cond - null): ours is s + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.chat import QWEN_ANSWER, QWEN_USER, Chat, ChatReader
from gen.models.bridge.families.base import QWEN_TOKENIZER, Family, Parts
from gen.models.bridge.families.flux import packed, positions, unpacked
from gen.models.bridge.families.qwen_image import DROP, SYSTEM
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from samplers.denoiser import Condition

# a long prompt is cut, and the end of the chat follows all the same
CHAT = Chat(SYSTEM + QWEN_USER, "", length=512 + DROP - 5, end=QWEN_ANSWER, drop=DROP)
LAYERS = (2, 5, 8, 11, 14, 17, 20, 23, 26, 29, 32, 35)  # of hidden states, where the pipeline's index does not say


class Krea2(BridgedNetwork):
    """Latents are packed 2 x 2 into tokens of 4 C channels. Text tokens are the features of several layers side by side."""

    sample_rows = ("text_fusion.layerwise_blocks.",)

    def __init__(self, network: Any):
        super().__init__(network, BridgedConfig(channels=setting(network, "in_channels") // 4, patch=2))
        self.layers = setting(network, "num_text_layers", 12)

    def prepare(self, condition: Condition) -> Condition:
        """Without a mask where every token is real: attention is faster so."""
        assert condition.mask is not None
        return replace(condition, mask=None) if bool(condition.mask.all()) else condition

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        places = positions(x)
        out = self.network(
            hidden_states=packed(x),
            encoder_hidden_states=condition.tokens.unflatten(-1, (self.layers, -1)),
            timestep=time.to(x.dtype),
            position_ids=torch.cat([places.new_zeros(condition.tokens.shape[1], 3), places]),
            encoder_attention_mask=condition.mask,
            return_dict=False,
        )[0]
        return unpacked(out, x)


def reader(parts: Parts, index: Mapping[str, Any]) -> ChatReader:
    layers = index.get("text_encoder_select_layers") or LAYERS
    count, wanted = parts["text_encoder"].config.text_config.num_hidden_layers, setting(parts["transformer"], "num_text_layers")
    whole = isinstance(layers, list | tuple) and all(type(layer) is int and 0 <= layer <= count for layer in layers)
    if not whole or len(layers) != wanted:
        raise ValueError(
            f"text_encoder_select_layers is {layers!r}; the network reads {wanted} layers of an encoder that has {count}."
        )
    if index.get("patch_size", 2) != 2:
        raise ValueError(f"patch_size is {index['patch_size']!r}; latents are packed 2 x 2 here.")
    return ChatReader(parts["tokenizer"], parts["text_encoder"], replace(CHAT, layers=tuple(layers)))


def distilled(index: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_inference_steps": 8, "guidance_scale": 1.0} if index.get("is_distilled") else {}


FAMILY = Family(
    name="Krea 2",
    backbone="transformer",
    classes={
        "transformer": ("Krea2Transformer2DModel",),
        "vae": ("AutoencoderKLQwenImage", "AutoencoderKLWan"),
        "text_encoder": ("Qwen3VLModel", "Qwen3VLForConditionalGeneration"),
        "tokenizer": QWEN_TOKENIZER,
    },
    clock="t",
    network=lambda parts, index: Krea2(parts["transformer"]),
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 28, "guidance_scale": 5.5},
    size=lambda backbone, factor: 128 * factor,
    own_sigmas=True,
    mu=lambda index: 1.15 if index.get("is_distilled") else "line",
    index_defaults=distilled,
)
