"""Stable Diffusion 1.x and 2.x: a U-Net that reads one CLIP encoder's tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.models.bridge.families.base import CLIP_TOKENIZER, VAES, Family, Parts, latent_size
from gen.models.bridge.ip_adapter.attention import image_prompted, prepared
from gen.models.bridge.network import BridgedConfig, BridgedNetwork, setting
from gen.models.bridge.prompts import ClipReader, PromptReader, whole_mask
from gen.models.prompt_reading import USUAL, Reading
from gen.nn.control import added
from samplers.denoiser import Condition

LCM_GUIDANCE = 8.5


class UNet(BridgedNetwork):
    """A conditional U-Net; long prompts have tokens that a mask hides, others no mask at all.

    Distilled ones (latent consistency models) embed a guidance scale: `Condition.extra["guidance"]` (B,).
    """

    def __init__(self, network: Any, chunk: int):
        super().__init__(network, BridgedConfig(channels=setting(network, "in_channels")))
        self.chunk = chunk  # tokens of one CLIP chunk
        self.guidance_dim = setting(network, "time_cond_proj_dim", 0)
        self.embeds = bool(self.guidance_dim)

    controlled_by: tuple[str, ...] = ("ControlNetModel", "ControlNetUnionModel", "T2IAdapter")
    takes_image_prompts = True

    def prepare(self, condition: Condition) -> Condition:
        """With the lengths of long prompts on the host, by which ControlNets read them."""
        condition = prepared(self.image_prompts, condition, len(setting(self.network, "block_out_channels")))
        if not self.controls or condition.mask is None:
            return condition
        return replace(condition, extra={**condition.extra, "lengths": condition.mask.sum(1).cpu()})

    def call(self, x: Tensor, time: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        mask = condition.mask if condition.tokens.shape[1] > self.chunk else None
        guidance = None
        if self.embeds:
            scale = condition.extra.get("guidance", torch.full((len(x),), LCM_GUIDANCE, device=x.device))
            guidance = embed_scale(scale.float() - 1, self.guidance_dim).to(x.dtype)
        shared = {"added_cond_kwargs": self.added(x, condition), "return_dict": False}
        added = self.control(x, time, condition, mask, shared)
        with image_prompted(self.network, self.image_prompts, condition, x.shape[2:]):
            return self.network(
                x,
                time,
                encoder_hidden_states=condition.tokens,
                encoder_attention_mask=mask,
                timestep_cond=guidance,
                **shared,
                **added,
            )[0]

    def control(self, x: Tensor, time: Tensor, condition: Condition, mask: Tensor | None, shared: Any) -> dict[str, Any]:
        """What ControlNets add. They know no guidance scale and no mask, so prompts of unequal length are read one by one."""

        def evaluate(control: Any, picture: Tensor, mode: Tensor | None) -> tuple[Any, Any, Any]:
            """What is added to the skips, to the middle, and inside of the levels on the way down."""
            network = control.network
            if type(network).__name__ == "T2IAdapter":
                return None, None, network(picture[:, : network.config.in_channels])
            tokens = condition.tokens
            assert tokens is not None
            lengths: list[int] = [] if mask is None else condition.extra["lengths"].tolist()
            if mask is None or min(lengths) == mask.shape[1]:
                given = {**shared, **_seen(network, picture, mode)}
                down, middle = network(x, time, encoder_hidden_states=tokens, **given)
                return down, [middle], None
            rows = []
            for i in range(len(x)):
                row = slice(i, i + 1)
                own = {name: _rows(value, row) for name, value in shared.items()}
                seen = tokens[row, : lengths[i]]
                own |= _seen(network, picture[row], None if mode is None else mode[row])
                rows.append(network(x[row], time[row], encoder_hidden_states=seen, **own))
            skips = [torch.cat(parts) for parts in zip(*(down for down, _ in rows), strict=True)]
            return skips, [torch.cat([middle for _, middle in rows])], None

        total = added(self.controls, condition, evaluate)
        if total is None:
            return {}
        down, middle, inside = total
        places = {
            "down_block_additional_residuals": down and tuple(down),
            "mid_block_additional_residual": middle and middle[0],
        }
        return {**places, "down_intrablock_additional_residuals": inside}

    def added(self, x: Tensor, condition: Condition) -> dict[str, Tensor | None] | None:
        """Conditions of the network's own beside text and time."""
        return None


def _seen(network: Any, picture: Tensor, mode: Tensor | None) -> dict[str, Any]:
    """What a ControlNet is shown: its picture, and of a union which control that is (B, 1)."""
    if type(network).__name__ != "ControlNetUnionModel":
        return {"controlnet_cond": picture}
    assert mode is not None
    chosen = F.one_hot(mode[:, 0], network.config.num_control_type).to(picture)
    return {"controlnet_cond": [picture], "control_type": chosen, "control_type_idx": [mode[:, 0]]}


def _rows(value: Any, rows: slice) -> Any:
    """Some rows of a tensor, or of those in a mapping; anything else as it is."""
    if isinstance(value, Tensor):
        return value[rows]
    return {name: _rows(one, rows) for name, one in value.items()} if isinstance(value, Mapping) else value


def embed_scale(scale: Tensor, dim: int) -> Tensor:
    """(B, dim) sines and cosines of 1000 times w (B,) = scale - 1 (arXiv 2310.04378, section 4.2)."""
    half = dim // 2
    rates = torch.exp(torch.arange(half, device=scale.device) * (-math.log(10_000) / (half - 1)))
    angles = 1000 * scale[:, None] * rates
    return F.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim % 2))


class StableDiffusionReader(PromptReader):
    breaks = True
    takes = ("clip_skip",)

    def __init__(self, clip: ClipReader):
        super().__init__()
        self.clip = clip

    def condition(self, prompt: str, negative: bool = False, reading: Reading = USUAL) -> Condition:
        tokens, _ = self.clip.read(prompt, skip=None if negative else reading.clip_skip)
        return Condition(tokens=tokens, mask=whole_mask(tokens))


def network(parts: Parts, index: Mapping[str, Any]) -> UNet:
    return UNet(parts["unet"], parts["text_encoder"].config.max_position_embeddings)


def reader(parts: Parts, index: Mapping[str, Any]) -> StableDiffusionReader:
    return StableDiffusionReader(ClipReader(parts["tokenizer"], parts["text_encoder"]))


def defaults(scale: float) -> Callable[[nn.Module], dict[str, Any]]:
    def of(backbone: nn.Module) -> dict[str, Any]:
        if setting(backbone, "time_cond_proj_dim"):
            return {"num_inference_steps": 4, "guidance": "embedded", "guidance_scale": LCM_GUIDANCE}
        return {"num_inference_steps": 30, "guidance_scale": scale}

    return of


FAMILY = Family(
    name="Stable Diffusion",
    backbone="unet",
    classes={"unet": ("UNet2DConditionModel",), "vae": VAES, "text_encoder": ("CLIPTextModel",), "tokenizer": CLIP_TOKENIZER},
    clock="index",
    network=network,
    reader=reader,
    defaults=defaults(7.5),
    size=latent_size,
)
LCM = replace(FAMILY, name="Latent consistency models")
