"""CogView4: a transformer that reads GLM's hidden states and the picture's size. The time it receives is not shifted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.models.bridge.families.base import FAST_TOKENIZER, VAES, Family, Parts, latent_size
from gen.models.bridge.language import Language
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.prompts import PromptReader, whole_mask
from gen.models.bridge.remembered import Remembering, by_shape
from gen.models.bridge.vae import pixels_per_latent
from gen.models.prompt_reading import USUAL, Reading
from samplers.denoiser import Condition

TOKENS, MULTIPLE = 1024, 16


class CogView4(BridgedNetwork):
    remembers: Mapping[str, Remembering] = {"rope": by_shape}

    def __init__(self, network: Any, factor: int):
        channels, patch = setting(network, "in_channels"), setting(network, "patch_size", 2)
        super().__init__(network, BridgedConfig(channels=channels, patch=patch))
        self.factor = factor

    def prepare(self, condition: Condition) -> Condition:
        assert condition.mask is not None
        return replace(condition, mask=None) if bool(condition.mask.all()) else condition

    def place(self, condition: Condition, x: Tensor) -> Condition:
        size = x.new_tensor([side * self.factor for side in x.shape[2:]]).expand(len(x), 2)
        return replace(condition, extra={**condition.extra, "size": size})

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        if condition.mask is not None:
            for block in cast("Any", self.network).transformer_blocks:
                if not isinstance(block.attn1.processor, MaskedAttention):
                    block.attn1.processor = MaskedAttention(block.attn1.processor)
        size = condition.extra["size"]
        return self.network(
            hidden_states=x,
            encoder_hidden_states=condition.tokens,
            timestep=time,
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            attention_mask=condition.mask,
            return_dict=False,
        )[0]


class MaskedAttention:
    """Attention over text and image that does not see the text's padding. `own` is diffusers', which takes the mask as numbers
    to add to scores, 1 and 0, and stays where there is none."""

    def __init__(self, own: Any):
        self.own = own

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[Tensor, Tensor]:
        if attention_mask is None:
            return self.own(attention, hidden_states, encoder_hidden_states, image_rotary_emb=image_rotary_emb)
        from diffusers.models.embeddings import apply_rotary_emb

        length, tokens = encoder_hidden_states.shape[1], torch.cat([encoder_hidden_states, hidden_states], dim=1)
        q, k, v = (
            project(tokens).unflatten(2, (attention.heads, -1)).transpose(1, 2)
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        q, k = (norm(part).to(tokens.dtype) for norm, part in ((attention.norm_q, q), (attention.norm_k, k)))
        rotate: Any = partial(apply_rotary_emb, freqs_cis=image_rotary_emb, use_real_unbind_dim=-2)
        q, k = (torch.cat([part[:, :, :length], rotate(part[:, :, length:])], dim=2) for part in (q, k))
        seen = F.pad(attention_mask, (0, hidden_states.shape[1]), value=True)[:, None, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2).to(tokens.dtype)
        out = attention.to_out[1](attention.to_out[0](out))
        return out[:, length:], out[:, :length]


class CogView4Reader(PromptReader):
    """The hidden states before GLM's last layer. The length is a multiple of 16, by padding that is read."""

    takes = ("max_sequence_length",)
    varies = True

    def __init__(self, glm: Language):
        super().__init__()
        self.glm = glm

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        (tokens,), _ = self.glm.read(prompt, (-2,), length=reading.max_sequence_length)
        return Condition(tokens=tokens, mask=whole_mask(tokens))


def network(parts: Parts, index: Mapping[str, Any]) -> CogView4:
    return CogView4(parts["transformer"], pixels_per_latent(parts["vae"].config))


def reader(parts: Parts, index: Mapping[str, Any]) -> CogView4Reader:
    return CogView4Reader(Language(parts["tokenizer"], parts["text_encoder"], TOKENS, MULTIPLE, masked=False))


FAMILY = Family(
    name="CogView4",
    backbone="transformer",
    classes={
        "transformer": ("CogView4Transformer2DModel",),
        "vae": VAES,
        "text_encoder": ("GlmModel",),
        "tokenizer": FAST_TOKENIZER,
    },
    clock="1000t",
    network=network,
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 50, "guidance_scale": 5.0},
    size=latent_size,
    own_sigmas="whole",
    mu=lambda index: "root",
)
