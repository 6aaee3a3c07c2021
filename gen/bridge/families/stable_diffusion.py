"""Stable Diffusion 1.x and 2.x: a U-Net that reads one CLIP encoder's tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gen.bridge.families.base import CLIP_TOKENIZER, VAES, Family, Parts, latent_size
from gen.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.bridge.prompts import Clip, PromptReader, whole_mask
from samplers.denoiser import Condition


class UNet(BridgedNetwork):
    """A conditional U-Net; long prompts have tokens that a mask hides, others no mask at all."""

    def __init__(self, network: Any, chunk: int):
        super().__init__(network, BridgedConfig(channels=setting(network, "in_channels")))
        self.chunk = chunk  # tokens of one CLIP chunk
        if setting(network, "time_cond_proj_dim"):
            raise ValueError("this U-Net embeds a guidance scale (time_cond_proj_dim), which is not supported")

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        mask = condition.mask if condition.tokens.shape[1] > self.chunk else None
        return self.network(
            x,
            time,
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=mask,
            added_cond_kwargs=self.added(x, condition),
            return_dict=False,
        )[0]

    def added(self, x: Tensor, condition: Condition) -> dict[str, Tensor] | None:
        return None


class Reader(PromptReader):
    def __init__(self, clip: Clip):
        super().__init__()
        self.clip = clip

    def condition(self, prompt: str, negative: bool = False) -> Condition:
        tokens, _ = self.clip.read(prompt)
        return Condition(tokens=tokens, mask=whole_mask(tokens))


def network(parts: Parts, index: Mapping[str, Any]) -> UNet:
    return UNet(parts["unet"], parts["text_encoder"].config.max_position_embeddings)


def reader(parts: Parts, index: Mapping[str, Any]) -> Reader:
    return Reader(Clip(parts["tokenizer"], parts["text_encoder"]))


FAMILY = Family(
    name="Stable Diffusion",
    backbone="unet",
    classes={
        "unet": ("UNet2DConditionModel",),
        "vae": VAES,
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": CLIP_TOKENIZER,
    },
    clock="index",
    network=network,
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 30, "guidance_scale": 7.5},
    size=latent_size,
)
