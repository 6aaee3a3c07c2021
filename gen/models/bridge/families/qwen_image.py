"""Qwen-Image: a transformer over patches and text, read by the language model of Qwen 2.5 VL.

Guidance keeps the length of the conditional output (`samplers.guidance.norm_rescale`), patch by patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gen.models.bridge.chat import QWEN_ANSWER, QWEN_USER, Chat, ChatReader
from gen.models.bridge.families.base import QWEN_TOKENIZER, Family, Parts
from gen.models.bridge.families.flux import packed, unpacked
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from samplers.denoiser import Condition

SYSTEM = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n"
)
DROP = 34  # tokens of that, up to the user's words
CHAT = Chat(SYSTEM + QWEN_USER, QWEN_ANSWER, length=1024 + DROP, drop=DROP, keep=512)


class QwenImage(BridgedNetwork):
    """Latents are packed 2 x 2 into tokens of 4 C channels."""

    def __init__(self, network: Any):
        super().__init__(network, BridgedConfig(channels=setting(network, "in_channels") // 4, patch=2))

    def prepare(self, condition: Condition) -> Condition:
        """Without a mask where every token is real: attention is faster so."""
        assert condition.mask is not None
        return replace(condition, mask=None) if bool(condition.mask.all()) else condition

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        rows, columns = x.shape[2] // 2, x.shape[3] // 2
        out = self.network(
            hidden_states=packed(x),
            timestep=time.to(x.dtype),
            encoder_hidden_states=condition.tokens,
            encoder_hidden_states_mask=condition.mask,
            img_shapes=[[(1, rows, columns)]] * len(x),
            return_dict=False,
        )[0]
        return unpacked(out, x)


def network(parts: Parts, index: Mapping[str, Any]) -> QwenImage:
    return QwenImage(parts["transformer"])


def reader(parts: Parts, index: Mapping[str, Any]) -> ChatReader:
    return ChatReader(parts["tokenizer"], parts["text_encoder"], CHAT)


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
    network=network,
    reader=reader,
    defaults=defaults,
    size=lambda backbone, factor: 128 * factor,
    own_sigmas=True,
)
