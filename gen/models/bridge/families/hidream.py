"""HiDream: a transformer with experts that reads T5's tokens, hidden states of many of Llama's layers and two CLIP vectors."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.families.base import CLIP_TOKENIZER, FAST_TOKENIZER, T5_TOKENIZER, VAES, Family, Parts
from gen.models.bridge.language import Language
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.prompts import ClipReader, PromptReader, Sentence, whole_mask
from gen.models.prompt_reading import USUAL, Reading
from samplers.denoiser import Condition

TOKENS = 128


class HiDream(BridgedNetwork):
    """`Condition.extra["llama"]` (B, layers, L, D): the hidden states of the layers that the network reads. It predicts
    x0 - eps."""

    mixes_rows = True  # an expert's products are of the tokens of all rows

    def __init__(self, network: Any):
        channels, patch = setting(network, "in_channels"), setting(network, "patch_size", 2)
        super().__init__(network, BridgedConfig(channels=channels, patch=patch))
        self.layers = read_layers(network)

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        states = condition.extra["llama"].unbind(1)
        out = self.network(
            hidden_states=x,
            timesteps=time,
            encoder_hidden_states_t5=condition.tokens,
            encoder_hidden_states_llama3=dict(zip(self.layers, states, strict=True)),
            pooled_embeds=condition.pooled,
            return_dict=False,
        )[0]
        return -out


def read_layers(network: Any) -> tuple[int, ...]:
    """Llama's layers that the network reads, each once, from 0."""
    return tuple(sorted(set(setting(network, "llama_layers"))))


class HiDreamReader(PromptReader):
    takes = ("prompt_2", "prompt_3", "max_sequence_length")

    def __init__(self, clip: ClipReader, clip_2: ClipReader, t5: Sentence, llama: Language, layers: tuple[int, ...]):
        super().__init__()
        self.clip, self.clip_2, self.t5, self.llama, self.layers = clip, clip_2, t5, llama, layers
        for reader in (clip, clip_2):
            reader.length = min(reader.length, TOKENS)

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        prompt_2, prompt_3 = (prompt if text is None else text for text in (reading.prompt_2, reading.prompt_3))
        length = reading.max_sequence_length
        clip, clip_2 = (shortened(reader, length) for reader in (self.clip, self.clip_2))
        pooled = torch.cat([clip.read(prompt, chunks=1)[1], clip_2.read(prompt_2, chunks=1)[1]], dim=-1)
        tokens, _ = self.t5.read(prompt_3, length=length)
        states, _ = self.llama.read(prompt, [layer + 1 for layer in self.layers], length=length)
        return Condition(tokens=tokens, mask=whole_mask(tokens), pooled=pooled, extra={"llama": torch.stack(states, dim=1)})


def shortened(reader: ClipReader, length: int | None) -> ClipReader:
    """The reader with at most `length` tokens; itself where it is None."""
    if length is None:
        return reader
    shorter = copy.copy(reader)  # the networks stay the same
    shorter.length = min(reader.length, length)
    return shorter


def network(parts: Parts, index: Mapping[str, Any]) -> HiDream:
    return HiDream(parts["transformer"])


def reader(parts: Parts, index: Mapping[str, Any]) -> HiDreamReader:
    clip, clip_2 = (ClipReader(parts[f"tokenizer{n}"], parts[f"text_encoder{n}"]) for n in ("", "_2"))
    t5 = Sentence(parts["tokenizer_3"], parts["text_encoder_3"], TOKENS, masked=True)
    parts["tokenizer_4"].pad_token = parts["tokenizer_4"].eos_token
    llama = Language(parts["tokenizer_4"], parts["text_encoder_4"], TOKENS)
    return HiDreamReader(clip, clip_2, t5, llama, read_layers(parts["transformer"]))


FAMILY = Family(
    name="HiDream",
    backbone="transformer",
    classes={
        "transformer": ("HiDreamImageTransformer2DModel",),
        "vae": VAES,
        "text_encoder": ("CLIPTextModelWithProjection",),
        "tokenizer": CLIP_TOKENIZER,
        "text_encoder_2": ("CLIPTextModelWithProjection",),
        "tokenizer_2": CLIP_TOKENIZER,
        "text_encoder_3": ("T5EncoderModel",),
        "tokenizer_3": T5_TOKENIZER,
        "text_encoder_4": ("LlamaModel", "LlamaForCausalLM"),
        "tokenizer_4": FAST_TOKENIZER,
    },
    clock="1000t",
    network=network,
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 50, "guidance_scale": 5.0},
    size=lambda backbone, factor: 128 * factor,
    optional=("text_encoder_4", "tokenizer_4"),
    lent=("text_encoder_4", "tokenizer_4", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
    few={"dev": 28, "fast": 16},
)
