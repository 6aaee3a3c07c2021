"""FLUX.2: a transformer over latents in patches and a language model's tokens; dev reads Mistral, klein Qwen 3."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.chat import NO_THOUGHT, QWEN_ANSWER, QWEN_USER, Chat, ChatReader
from gen.models.bridge.families.base import QWEN_TOKENIZER, Family, Parts
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from samplers.denoiser import Condition

USUAL_GUIDANCE = 4.0
SYSTEM = (
    "You are an AI that reasons about image descriptions. You give structured responses focusing on object relationships, "
    "object\nattribution and actions without speculation."
)
MISTRAL = Chat(
    f"<s>[SYSTEM_PROMPT]{SYSTEM}[/SYSTEM_PROMPT][INST]",
    "[/INST]",
    length=512,
    layers=(10, 20, 30),
    padded=True,
    without="[IMG]",
)
QWEN = Chat(QWEN_USER, QWEN_ANSWER + NO_THOUGHT, length=512, layers=(9, 18, 27), padded=True)


class Flux2(BridgedNetwork):
    """A latent pixel, which is a patch of the autoencoder's, is a token. `Condition.extra["guidance"]` (B,) is the embedded
    scale of dev."""

    def __init__(self, network: Any):
        super().__init__(network, BridgedConfig(channels=setting(network, "in_channels")))
        self.embeds = bool(setting(network, "guidance_embeds"))

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        guidance = condition.extra.get("guidance") if self.embeds else None
        if self.embeds and guidance is None:
            guidance = torch.full((len(x),), USUAL_GUIDANCE, device=x.device)
        text = torch.zeros(condition.tokens.shape[1], 4, device=x.device)
        text[:, 3] = torch.arange(len(text), device=x.device)
        out = self.network(
            hidden_states=x.flatten(2).mT,
            timestep=time.to(x.dtype),
            guidance=guidance,
            encoder_hidden_states=condition.tokens,
            txt_ids=text,
            img_ids=positions(x),
            return_dict=False,
        )[0]
        return out.mT.reshape(x.shape)


def positions(x: Tensor, time: float = 0.0) -> Tensor:
    """(h w, 4) of latents (B, C, h, w): the time, the row, the column, 0."""
    row, column = torch.meshgrid(*(torch.arange(side, device=x.device) for side in x.shape[2:]), indexing="ij")
    return torch.stack([torch.full_like(row, time, dtype=torch.float32), row, column, torch.zeros_like(row)], -1).flatten(0, 1)


def reader(chat: Chat) -> Any:
    def build(parts: Parts, index: Mapping[str, Any]) -> ChatReader:
        return ChatReader(parts["tokenizer"], parts["text_encoder"], chat)

    return build


def defaults(backbone: nn.Module) -> dict[str, Any]:
    embedded = {"guidance": "embedded"} if setting(backbone, "guidance_embeds") else {}
    return {"num_inference_steps": 50, "guidance_scale": USUAL_GUIDANCE, **embedded}


def distilled(index: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_inference_steps": 4, "guidance_scale": 1.0} if index.get("is_distilled") else {}


DEV = Family(
    name="FLUX.2",
    backbone="transformer",
    classes={
        "transformer": ("Flux2Transformer2DModel",),
        "vae": ("AutoencoderKLFlux2",),
        "text_encoder": ("Mistral3Model", "Mistral3ForConditionalGeneration"),
        "tokenizer": ("PreTrainedTokenizerFast", "PixtralProcessor", "LlamaTokenizerFast", "TokenizersBackend"),
    },
    clock="t",
    network=lambda parts, index: Flux2(parts["transformer"]),
    reader=reader(MISTRAL),
    defaults=defaults,
    size=lambda backbone, factor: 64 * factor,
    own_sigmas=True,
    mu=lambda index: "empirical",
)
KLEIN = replace(
    DEV,
    name="FLUX.2 klein",
    classes={**DEV.classes, "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"), "tokenizer": QWEN_TOKENIZER},
    reader=reader(QWEN),
    index_defaults=distilled,
)
