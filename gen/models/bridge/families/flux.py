"""Flux: a transformer that reads T5's tokens, CLIP's pooled vector and, in the distilled models, a guidance scale."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.families.base import CLIP_TOKENIZER, T5_TOKENIZER, VAES, Family, Parts
from gen.models.bridge.ip_adapter.attention import image_prompted, prepared
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.prompts import ClipReader, PromptReader, Sentence, whole_mask
from gen.models.prompt_reading import USUAL, Reading
from gen.nn.control import added_in_sequence
from samplers.denoiser import Condition

T5_TOKENS, T5_TOKENS_FAST = 512, 256  # of dev and schnell
USUAL_GUIDANCE = 3.5


class Flux(BridgedNetwork):
    """Latents are packed 2 x 2 into tokens of 4 C channels. `Condition.extra["guidance"]` (B,) is the embedded scale."""

    def __init__(self, network: Any, config: BridgedConfig | None = None):
        super().__init__(network, config or BridgedConfig(channels=setting(network, "in_channels") // 4, patch=2))
        self.embeds = bool(setting(network, "guidance_embeds"))

    controlled_by: tuple[str, ...] = ("FluxControlNetModel",)
    takes_image_prompts = True

    def prepare(self, condition: Condition) -> Condition:
        return prepared(self.image_prompts, condition, 2)

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        guidance = None
        if self.embeds:
            guidance = condition.extra.get("guidance")
            if guidance is None:
                guidance = torch.full((len(x),), USUAL_GUIDANCE, device=x.device)
        tokens, places = self.tokens(x, condition)
        inputs = {
            "hidden_states": tokens,
            "timestep": time.to(x.dtype),
            "pooled_projections": condition.pooled,
            "encoder_hidden_states": condition.tokens,
            "txt_ids": x.new_zeros(condition.tokens.shape[1], 3),
            "img_ids": places,
            "return_dict": False,
        }
        added = self.control(x, time, condition)
        with image_prompted(self.network, self.image_prompts, condition, x.shape[2:]):
            out = self.network(**inputs, guidance=guidance, **added)[0]
        return unpacked(out[:, : x.shape[2] * x.shape[3] // 4], x)

    def control(self, x: Tensor, time: Tensor, condition: Condition) -> dict[str, Any]:
        """What ControlNets add."""
        total, repeats = added_in_sequence(self.controls, x, time, condition)
        if total is None:
            return {}
        names = ("controlnet_block_samples", "controlnet_single_block_samples")
        return {**dict(zip(names, total, strict=True)), "controlnet_blocks_repeat": repeats}

    def tokens(self, x: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """(tokens (B, L, D), their places (L, 3)), those of x first."""
        return packed(x), positions(x)


def packed(x: Tensor) -> Tensor:
    """Latents (B, C, h, w) as tokens (B, h w / 4, 4 C) of 2 x 2."""
    batch, channels, height, width = x.shape
    tokens = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(batch, height * width // 4, -1)


def unpacked(tokens: Tensor, like: Tensor) -> Tensor:
    """Tokens as latents of `like`'s shape."""
    batch, channels, height, width = like.shape
    return tokens.view(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(like.shape)


def positions(x: Tensor) -> Tensor:
    """(h w / 4, 3) of the tokens of x (B, C, h, w): 0, the row, the column."""
    rows, columns = (torch.arange(side // 2, device=x.device) for side in x.shape[2:])
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], dim=-1).reshape(-1, 3).to(x.dtype)


class FluxReader(PromptReader):
    takes = ("prompt_2", "max_sequence_length")

    def __init__(self, clip: ClipReader, t5: Sentence):
        super().__init__()
        self.clip, self.t5 = clip, t5

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        second = prompt if reading.prompt_2 is None else reading.prompt_2
        tokens, _ = self.t5.read(second, length=reading.max_sequence_length)
        _, pooled = self.clip.read(prompt, chunks=1)
        return Condition(tokens=tokens, mask=whole_mask(tokens), pooled=pooled)


def network(parts: Parts, index: Mapping[str, Any]) -> Flux:
    return Flux(parts["transformer"])


def reader(parts: Parts, index: Mapping[str, Any]) -> FluxReader:
    length = T5_TOKENS if setting(parts["transformer"], "guidance_embeds") else T5_TOKENS_FAST
    t5 = Sentence(parts["tokenizer_2"], parts["text_encoder_2"], length, masked=False)
    return FluxReader(ClipReader(parts["tokenizer"], parts["text_encoder"]), t5)


def defaults(backbone: nn.Module) -> dict[str, Any]:
    if setting(backbone, "guidance_embeds"):
        return {"num_inference_steps": 28, "guidance": "embedded", "guidance_scale": USUAL_GUIDANCE}
    return {"num_inference_steps": 4, "guidance_scale": 1.0}


FAMILY = Family(
    name="Flux",
    backbone="transformer",
    classes={
        "transformer": ("FluxTransformer2DModel",),
        "vae": VAES,
        "text_encoder": ("CLIPTextModel",),
        "tokenizer": CLIP_TOKENIZER,
        "text_encoder_2": ("T5EncoderModel",),
        "tokenizer_2": T5_TOKENIZER,
    },
    clock="t",
    network=network,
    reader=reader,
    defaults=defaults,
    size=lambda backbone, factor: 128 * factor,
    own_sigmas=True,
    native="diffusers-flux",
    native_usual=False,
)
