"""Lumina 2: a transformer over text and patches in one sequence, read by Gemma. Its guidance keeps the norm of every row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.families.base import VAES, Family, Parts, latent_size
from gen.models.bridge.language import Language
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.prompts import PromptReader
from gen.models.bridge.remembered import Keep, Remembering
from gen.models.prompt_reading import USUAL, Reading
from samplers.denoiser import Condition

TOKENS = 256
SYSTEM = (
    "You are an assistant designed to generate superior images with the superior degree of image-text alignment based on "
    "textual prompts or user prompts. <Prompt Start> "
)


def _positions(module: Any, keep: Keep, device: torch.device) -> Callable[..., Any]:
    """Of the rope embedder, which gives patches of x (B, patches, channels) and, beside them, what prompts and sizes decide."""
    forward, patch = module.forward, module.patch_size

    def remember(x: Tensor, mask: Tensor) -> Any:
        rows, columns = x.shape[2] // patch, x.shape[3] // patch
        places = keep(str(tuple(x.shape)), lambda: forward(x, mask)[1:])
        cut = x.view(len(x), -1, rows, patch, columns, patch).permute(0, 2, 4, 3, 5, 1)
        return cut.flatten(3).flatten(1, 2), *places

    return remember


class Lumina2(BridgedNetwork):
    """Its time runs from noise to picture, and it predicts x0 - eps."""

    remembers: Mapping[str, Remembering] = {"rope_embedder": _positions}

    def __init__(self, network: Any):
        channels, patch = setting(network, "in_channels"), setting(network, "patch_size", 2)
        super().__init__(network, BridgedConfig(channels=channels, patch=patch))

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.mask is not None
        out = self.network(
            hidden_states=x,
            timestep=(1 - time).to(x.dtype),
            encoder_hidden_states=condition.tokens,
            encoder_attention_mask=condition.mask.long(),
            return_dict=False,
        )[0]
        return -out


class Lumina2Reader(PromptReader):
    """Prompts follow the words that Lumina 2 was trained with; negative and empty ones stand alone."""

    takes = ("max_sequence_length",)
    varies = True

    def __init__(self, gemma: Language):
        super().__init__()
        self.gemma = gemma

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        alone = negative or not prompt.strip()
        (tokens,), mask = self.gemma.read(prompt, (-2,), "" if alone else SYSTEM, reading.max_sequence_length)
        return Condition(tokens=tokens, mask=mask)


def network(parts: Parts, index: Mapping[str, Any]) -> Lumina2:
    return Lumina2(parts["transformer"])


def reader(parts: Parts, index: Mapping[str, Any]) -> Lumina2Reader:
    parts["tokenizer"].padding_side = "right"
    return Lumina2Reader(Language(parts["tokenizer"], parts["text_encoder"], TOKENS))


def defaults(backbone: nn.Module) -> dict[str, Any]:
    guidance = {"guidance": "cfg + norm_rescale", "guidance_options": {"rows": True}}
    return {"num_inference_steps": 30, "guidance_scale": 4.0, **guidance}


FAMILY = Family(
    name="Lumina 2",
    backbone="transformer",
    classes={
        "transformer": ("Lumina2Transformer2DModel",),
        "vae": VAES,
        "text_encoder": ("Gemma2Model",),
        "tokenizer": ("GemmaTokenizer", "GemmaTokenizerFast"),
    },
    clock="t",
    network=network,
    reader=reader,
    defaults=defaults,
    size=latent_size,
    own_sigmas=True,
)
