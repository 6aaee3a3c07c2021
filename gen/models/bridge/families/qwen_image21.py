"""Qwen-Image 2.1: a transformer over text and then patches in one sequence, read by Qwen 3 VL; pictures have transparency.

A patch's place counts from the end of the text, so that rows with texts of other lengths are calls of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.chat import QWEN_ANSWER, QWEN_USER, Chat, ChatReader
from gen.models.bridge.families.base import Family, Parts
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from samplers.denoiser import Condition, Context

SYSTEM = "<|im_start|>system\nComprehend and analyze the provided prompt.<|im_end|>\n"
CHAT = Chat(SYSTEM + QWEN_USER, QWEN_ANSWER, length=8192, normed=False, empty=" ")


class QwenImage21(BridgedNetwork):
    """A latent pixel is a token, and the network counts them in fours."""

    def __init__(self, network: Any):
        super().__init__(network, BridgedConfig(channels=setting(network, "in_channels")))

    def prepare(self, condition: Condition) -> Condition:
        assert condition.mask is not None
        return replace(condition, extra={**condition.extra, "lengths": condition.mask.sum(1).cpu()})

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context) -> Tensor:
        if "block" in context.hooks and condition.mask is not None:
            mask = condition.mask
            if context.memo("lengths", (condition,), lambda: len(set(mask.sum(1).tolist()))) > 1:
                raise ValueError(
                    "This network calls prompts of other lengths one after another, which caches of blocks and skipped layers "
                    "cannot follow; use the caches reuse or easy, or leave guidance out (guidance_scale=1)."
                )
        return super().forward(x, time, condition, context)

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        if x.shape[2] * x.shape[3] % 4:
            sides = f"{x.shape[2]} x {x.shape[3]}"
            raise ValueError(
                f"This network counts latents in fours, and {sides} is no multiple of 4; choose even numbers of them."
            )
        lengths: list[int] = condition.extra["lengths"].tolist()
        if len(set(lengths)) == 1:
            return self._of_length(x, time, condition.tokens[:, : lengths[0]])
        out = torch.empty_like(x)
        for length in set(lengths):
            rows = [row for row, own in enumerate(lengths) if own == length]
            # row by row: a list of rows would be copied to the device at every step
            alike = (torch.stack([value[row] for row in rows]) for value in (x, time, condition.tokens[:, :length]))
            for row, made in zip(rows, self._of_length(*alike), strict=True):
                out[row] = made
        return out

    def _of_length(self, x: Tensor, time: Tensor, tokens: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        slots = torch.zeros(batch, tokens.shape[1] + height * width // 4, dtype=torch.bool, device=x.device)
        slots[:, tokens.shape[1] :] = True
        out = self.network(
            hidden_states=x.flatten(2).mT,
            encoder_hidden_states=tokens,
            timestep=time.to(x.dtype),
            img_shapes=[[(1, height, width)]] * batch,
            img_mask=slots,
            return_dict=False,
        )[0]
        return out[:, tokens.shape[1] :].mT.reshape(x.shape)


def reader(parts: Parts, index: Mapping[str, Any]) -> ChatReader:
    if index.get("sample_sigmas") is not None:
        raise ValueError("sample_sigmas in model_index.json is not followed; set it to null, and give a schedule in the call.")
    drop = len(parts["processor"](SYSTEM, add_special_tokens=False)["input_ids"])
    return ChatReader(parts["processor"], parts["text_encoder"], replace(CHAT, drop=drop))


FAMILY = Family(
    name="Qwen-Image 2.1",
    backbone="transformer",
    classes={
        "transformer": ("QwenImage21Transformer2DModel",),
        "vae": ("AutoencoderKLQwenImage21",),
        "text_encoder": ("Qwen3VLModel", "Qwen3VLForConditionalGeneration"),
        "processor": ("Qwen2Tokenizer", "Qwen3VLProcessor"),
    },
    clock="t",
    network=lambda parts, index: QwenImage21(parts["transformer"]),
    reader=reader,
    defaults=lambda backbone: {"num_inference_steps": 40, "guidance_scale": 1.0},
    size=lambda backbone, factor: 64 * factor,
    own_sigmas=True,
)
