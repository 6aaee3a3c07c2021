"""Kolors: SDXL's U-Net, which reads ChatGLM's hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gen.models.bridge.families.base import VAES, Family, Parts, latent_size
from gen.models.bridge.families.sdxl import SDXLUNet
from gen.models.bridge.load import device_of
from gen.models.bridge.prompts import PromptReader, warn_unread, whole_mask
from gen.models.bridge.vae import pixels_per_latent
from gen.models.prompt_reading import USUAL, Reading
from gen.nn.batch_invariance import without_mode
from gen.nn.prompt_weights import token_weights, weighted
from samplers.denoiser import Condition

TOKENS = 256


class KolorsReader(PromptReader):
    """The states before ChatGLM's last layer, padded on the left with tokens that the U-Net sees, and the last token's last."""

    takes = ("max_sequence_length",)
    encoder: Any  # of diffusers

    def __init__(self, tokenizer: Any, encoder: nn.Module):
        super().__init__()
        self.tokenizer, self.encoder = tokenizer, encoder

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        length = reading.max_sequence_length or TOKENS
        plain, weights = weighted(prompt)
        pieces = _pieces(self.tokenizer.tokenizer.sp_model, plain)
        first = self.tokenizer.get_prefix_tokens()
        room = length - len(first)
        if unread := [begin for _, begin, _ in pieces[room:] if plain[begin:].strip()]:
            warn_unread(plain[unread[0] :], f"{length} tokens that the text encoder reads")
        ids = [*first, *(number for number, _, _ in pieces[:room])]
        scale = [1.0] * len(first) + token_weights(plain, weights, [(begin, end) for _, begin, end in pieces[:room]])
        padding, device = length - len(ids), device_of(self.encoder)
        ids, places = [self.tokenizer.pad_token_id] * padding + ids, [0] * padding + list(range(len(ids)))
        seen = [0] * padding + [1] * (length - padding)
        given = (torch.tensor([values], device=device) for values in (ids, places, seen))
        names = ("input_ids", "position_ids", "attention_mask")
        with without_mode():  # its tensors have the batch second, and a batch of one is what it is alone
            out = self.encoder(**dict(zip(names, given, strict=True)), output_hidden_states=True)
        states = out.hidden_states
        tokens = states[-2].transpose(0, 1)
        if any(weight != 1 for weight in scale):
            tokens = tokens * torch.tensor([1.0] * padding + scale, device=device, dtype=tokens.dtype)[None, :, None]
        return Condition(tokens=tokens, mask=whole_mask(tokens), pooled=states[-1][-1])


def _pieces(processor: Any, text: str) -> list[tuple[int, int, int]]:
    """(id, first character, the one after the last) of every piece of a text."""
    try:
        coded = processor.encode(text, return_type="proto")
    except TypeError:  # before sentencepiece 0.2.3
        coded = processor.encode(text, out_type="immutable_proto")
    pieces, begin = [], 0
    for piece in coded.pieces:
        end = begin + len(piece.surface)
        pieces.append((piece.id, begin, end))
        begin = end
    return pieces


class KolorsUNet(SDXLUNet):
    controlled_by = ()  # those of diffusers do not project ChatGLM's features


def network(parts: Parts, index: Mapping[str, Any]) -> KolorsUNet:
    width = parts["text_encoder"].config.hidden_size
    return KolorsUNet(parts["unet"], TOKENS, pixels_per_latent(parts["vae"].config), width)


def reader(parts: Parts, index: Mapping[str, Any]) -> KolorsReader:
    return KolorsReader(parts["tokenizer"], parts["text_encoder"])


FAMILY = Family(
    name="Kolors",
    backbone="unet",
    classes={
        "unet": ("UNet2DConditionModel",),
        "vae": VAES,
        "text_encoder": ("ChatGLMModel",),
        "tokenizer": ("ChatGLMTokenizer",),
    },
    clock="index",
    network=network,
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 50, "guidance_scale": 5.0},
    size=latent_size,
)
