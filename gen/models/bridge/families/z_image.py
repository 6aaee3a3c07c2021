"""Z-Image and Z-Image-Turbo: a transformer over patches and text in one sequence, read by Qwen 3.

diffusers' guidance scale s is cond + s (cond - null): ours is s + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.chat import QWEN_ANSWER, QWEN_USER, Chat, ChatReader
from gen.models.bridge.families.base import QWEN_TOKENIZER, VAES, Family, Parts
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from samplers.denoiser import Condition

CHAT = Chat(QWEN_USER, QWEN_ANSWER, length=512, layers=(-2,))


class ZImage(BridgedNetwork):
    """The network takes lists, its time runs from noise to picture, and it predicts x0 - eps."""

    sample_rows = ("all_x_embedder.",)

    def __init__(self, network: Any):
        super().__init__(network, BridgedConfig(setting(network, "in_channels"), patch=setting(network, "all_patch_size")[0]))

    def prepare(self, condition: Condition) -> Condition:
        assert condition.mask is not None
        return replace(condition, extra={**condition.extra, "lengths": condition.mask.sum(1).cpu()})

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        captions = [row[:length] for row, length in zip(condition.tokens, condition.extra["lengths"].tolist(), strict=True)]
        pictures = list(x.unsqueeze(2).unbind(0))
        out = self.network(pictures, 1 - time, captions, patch_size=self.config.patch, return_dict=False)[0]
        return -torch.stack(out)[:, :, 0]


def reader(parts: Parts, index: Mapping[str, Any]) -> ChatReader:
    return ChatReader(parts["tokenizer"], parts["text_encoder"], CHAT)


FAMILY = Family(
    name="Z-Image",
    backbone="transformer",
    classes={
        "transformer": ("ZImageTransformer2DModel",),
        "vae": VAES,
        "text_encoder": ("Qwen3Model", "Qwen3ForCausalLM"),
        "tokenizer": QWEN_TOKENIZER,
    },
    clock="t",
    network=lambda parts, index: ZImage(parts["transformer"]),
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 50, "guidance_scale": 6.0},
    size=lambda backbone, factor: 128 * factor,
    own_sigmas=True,
    native="diffusers-z-image",
    native_usual=False,
    few={"turbo": 8},
)
