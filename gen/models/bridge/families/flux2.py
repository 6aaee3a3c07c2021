"""FLUX.2: a transformer over latents in patches and a language model's tokens; dev reads Mistral, klein Qwen 3."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.chat import NO_THOUGHT, QWEN_ANSWER, QWEN_USER, Chat, ChatReader
from gen.models.bridge.families.base import QWEN_TOKENIZER, Family, Parts
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.nn.backbones.editing import references
from samplers.denoiser import Condition

USUAL_GUIDANCE = 4.0
AREA = 1024 * 1024  # pixels of pictures that it reads, at most
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
    """A latent pixel, which is a patch of the autoencoder's, is a token. Pictures that it reads are further tokens, at times of
    their own. `Condition.extra["guidance"]` (B,) is the embedded scale of dev."""

    reads, most_pictures, crops = "picture", 10, True

    def __init__(self, network: Any):
        super().__init__(network, BridgedConfig(channels=setting(network, "in_channels")))
        self.embeds = bool(setting(network, "guidance_embeds"))

    def picture_size(self, height: int, width: int) -> tuple[int, int]:
        """A picture's own height and width, or those of its shape with AREA pixels where it has more."""
        scale = min(math.sqrt(AREA / (height * width)), 1.0)
        return int(height * scale), int(width * scale)

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        guidance = condition.extra.get("guidance") if self.embeds else None
        if self.embeds and guidance is None:
            guidance = torch.full((len(x),), USUAL_GUIDANCE, device=x.device)
        text = torch.zeros(condition.tokens.shape[1], 4, device=x.device)
        text[:, 3] = torch.arange(len(text), device=x.device)
        beside = references(condition)
        places = [positions(x), *(positions(one, 10.0 * (k + 1)) for k, one in enumerate(beside))]
        out = self.network(
            hidden_states=torch.cat([one.flatten(2).mT for one in (x, *beside)], dim=1),
            timestep=time.to(x.dtype),
            guidance=guidance,
            encoder_hidden_states=condition.tokens,
            txt_ids=text,
            img_ids=torch.cat(places),
            return_dict=False,
        )[0]
        return out[:, : len(places[0])].mT.reshape(x.shape)


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
