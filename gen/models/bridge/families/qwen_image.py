"""Qwen-Image and its editors: a transformer over patches and text, read by Qwen 2.5 VL, which sees the pictures to edit.

Guidance keeps the length of the conditional output (`samplers.guidance.norm_rescale`), patch by patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gen.models.bridge.chat import QWEN_ANSWER, QWEN_PICTURE, QWEN_USER, Chat, ChatReader
from gen.models.bridge.families.base import QWEN_TOKENIZER, Family, Parts
from gen.models.bridge.families.flux import packed, unpacked
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.nn.backbones.editing import AREA, qwen_size, references
from gen.nn.control import added_in_sequence
from samplers.denoiser import Condition

SYSTEM = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n"
)
DROP = 34  # tokens of that, up to the user's words
EDITOR = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, background), then "
    "explain how the user's text instruction should alter or modify the image. Generate a new image that meets the user's "
    "requirements while maintaining consistency with the original input where appropriate.<|im_end|>\n"
)
EDITOR_DROP = 64
CHAT = Chat(SYSTEM + QWEN_USER, QWEN_ANSWER, length=1024 + DROP, drop=DROP, keep=512)
EDIT_CHAT = Chat(EDITOR + QWEN_USER, QWEN_ANSWER, length=8192, drop=EDITOR_DROP, picture=QWEN_PICTURE, area=AREA)
PLUS_PICTURES = 8
PLUS_CHAT = replace(EDIT_CHAT, picture="Picture {}: " + QWEN_PICTURE, area=384 * 384)


class QwenImage(BridgedNetwork):
    """Latents are packed 2 x 2 into tokens of 4 C channels."""

    controlled_by: tuple[str, ...] = ("QwenImageControlNetModel",)
    controls_read_prompt = True  # in both branches of guidance, as in diffusers' pipeline

    def __init__(self, network: Any):
        super().__init__(network, BridgedConfig(channels=setting(network, "in_channels") // 4, patch=2))

    def prepare(self, condition: Condition) -> Condition:
        """Without a mask where every token is real: attention is faster so."""
        assert condition.mask is not None
        return replace(condition, mask=None) if bool(condition.mask.all()) else condition

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        pictures = [x, *references(condition)]
        inputs = {
            "hidden_states": torch.cat([packed(one) for one in pictures], dim=1),
            "timestep": time.to(x.dtype),
            "encoder_hidden_states": condition.tokens,
            "encoder_hidden_states_mask": condition.mask,
            "img_shapes": [[(1, one.shape[2] // 2, one.shape[3] // 2) for one in pictures]] * len(x),
            "return_dict": False,
        }
        total, _ = added_in_sequence(self.controls, x, time, condition)
        out = self.network(**inputs, controlnet_block_samples=None if total is None else total[0])[0]
        return unpacked(out[:, : x.shape[2] * x.shape[3] // 4], x)


class QwenImageEdit(QwenImage):
    """Reads the latents of the picture that it edits as further tokens."""

    reads = "picture"
    controlled_by = ()  # which see one picture, not those beside it

    def picture_size(self, height: int, width: int) -> tuple[int, int]:
        return qwen_size(height, width)


class QwenImageEditPlus(QwenImageEdit):
    """Reads several."""

    most_pictures = PLUS_PICTURES


def network(kind: type[QwenImage]) -> Any:
    def build(parts: Parts, index: Mapping[str, Any]) -> QwenImage:
        return kind(parts["transformer"])

    return build


def reader(chat: Chat) -> Any:
    def build(parts: Parts, index: Mapping[str, Any]) -> ChatReader:
        return ChatReader(parts["tokenizer"], parts["text_encoder"], chat)

    return build


def defaults(backbone: nn.Module) -> dict[str, Any]:
    guidance = {"guidance": "cfg + norm_rescale", "guidance_options": {"patch": 2}}
    return {"num_inference_steps": 50, "guidance_scale": 4.0, **guidance}


FAMILY = Family(
    name="Qwen-Image",
    backbone="transformer",
    classes={
        "transformer": ("QwenImageTransformer2DModel",),
        "vae": ("AutoencoderKLQwenImage", "AutoencoderKLWan"),
        "text_encoder": ("Qwen2_5_VLModel", "Qwen2_5_VLForConditionalGeneration"),
        "tokenizer": QWEN_TOKENIZER,
    },
    clock="t",
    network=network(QwenImage),
    reader=reader(CHAT),
    defaults=defaults,
    size=lambda backbone, factor: 128 * factor,
    own_sigmas=True,
    native="diffusers-qwen-image",
    native_usual=False,
)
EDIT = replace(
    FAMILY, name="Qwen-Image-Edit", network=network(QwenImageEdit), reader=reader(EDIT_CHAT), native_options={"pictures": 1}
)
EDIT_PLUS = replace(
    EDIT,
    name="Qwen-Image-Edit-Plus",
    network=network(QwenImageEditPlus),
    reader=reader(PLUS_CHAT),
    native_options={"pictures": PLUS_PICTURES},
)
