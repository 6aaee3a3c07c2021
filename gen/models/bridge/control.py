"""ControlNets of diffusers: networks that read a picture of edges, depth or poses, and add to a denoiser's layers.

A control's picture and strength are conditions: `Condition.extra["map:control:NAME"]` (B, 3 f^2, h, w), the f x f pixels in
[0, 1] under every latent, or the picture's latents (B, C, h, w) for networks that read those, and
`extra["control weight:NAME"]` (B,); of a union of controls, `extra["control mode:NAME"]` (B, 1) too. Which network NAME is, is
known to the denoiser's network (`BridgedNetwork.controls`). What several add is summed.

Source: ControlNet, arXiv 2302.05543; T2I-Adapter, arXiv 2302.08453.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.weights import CheckpointError
from gen.models.bridge.load import load_network, read_part_config
from samplers.denoiser import MAP, Condition

PICTURE, WEIGHT, MODE = f"{MAP}control:", "control weight:", "control mode:"
PROMPT, PROMPT_MASK = "control prompt", "control prompt mask"  # what the pictures should be, of both branches of guidance
# what must be the same as in the denoiser's network: names of their configs
ALIKE: dict[str, tuple[str, ...]] = {
    "ControlNetModel": ("in_channels", "block_out_channels", "cross_attention_dim", "addition_embed_type"),
    "ControlNetUnionModel": ("in_channels", "block_out_channels", "cross_attention_dim", "addition_embed_type"),
    "T2IAdapter": ("channels",),
    "FluxControlNetModel": ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim"),
    "SD3ControlNetModel": ("in_channels", "attention_head_dim", "num_attention_heads", "caption_projection_dim"),
    "QwenImageControlNetModel": ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim"),
}


LATENTS = ("SD3ControlNetModel", "QwenImageControlNetModel")  # classes that read the latents of a picture
GREY = (0.299, 0.587, 0.114)  # of red, green and blue


@dataclass(frozen=True)
class Control:
    """An opened ControlNet, or T2I-Adapter. digest: of its weights."""

    network: Any
    digest: str

    @property
    def modes(self) -> int | None:
        """How many controls a union has, which must be asked for one of; None for a network of one control."""
        if type(self.network).__name__ == "ControlNetUnionModel":
            return self.network.config.num_control_type
        return self.network.config.num_mode if getattr(self.network, "union", False) else None

    @property
    def reads_latents(self) -> bool:
        """It reads the picture's latents: it has no layers of its own for pixels."""
        kind = type(self.network).__name__
        return kind in LATENTS or (kind == "FluxControlNetModel" and self.network.input_hint_block is None)

    def picture(self, picture: Tensor, autoencoder: Any, latent_scale: float) -> Tensor:
        """A picture (1, 3, H, W) in [0, 1] as a condition."""
        if not self.reads_latents:
            if type(self.network).__name__ == "T2IAdapter" and self.network.config.in_channels == 1:
                picture = (picture * picture.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
            return F.pixel_unshuffle(picture, autoencoder.factor)
        latents = autoencoder.encode(picture * 2 - 1).float() * latent_scale
        if self.network.config.get("force_zeros_for_pooled_projection"):
            latents = latents + autoencoder.shift * autoencoder.scale * latent_scale  # trained without the shift
        return latents


def open_control(folder: Path, network: Any, dtype: torch.dtype, device: torch.device) -> Control:
    """A ControlNet's or T2I-Adapter's folder for a denoiser's network. CheckpointError for one that is damaged, unsafe, or for
    another network; ValueError for a network that takes none."""
    wanted = getattr(network, "controlled_by", ())
    if not wanted:
        if not getattr(network, "bridged", False):
            raise ValueError(
                "This is a network of our own, which takes no ControlNet; leave controlnet out, or open the model with "
                "native=False (--no-native), where diffusers' network takes one."
            )
        raise ValueError(
            "This model takes no ControlNet: Stable Diffusion 1, 2, XL and 3, FLUX and Qwen-Image do; leave controlnet out."
        )
    config = read_part_config(folder)
    kind = str(config.get("_class_name"))
    if kind not in wanted:
        takes = " or ".join(wanted)
        raise CheckpointError(folder, f"is a {kind!r:.80}, and this model takes a {takes}; give one that was made for it.")
    if config.get("global_pool_conditions"):
        raise CheckpointError(folder, "pools what it adds over the picture (shuffle), which is not read; give another one.")
    if config.get("extra_condition_channels"):
        raise CheckpointError(
            folder, "reads a mask beside its picture (inpainting), which is not given here; give another one."
        )
    own = network.network.config
    for name in ALIKE[kind]:
        other = {"channels": "block_out_channels"}.get(name, name)  # in the denoiser's config
        mine, its = own.get(other), config.get(name, own.get(other))
        if _plain(mine) != _plain(its):
            raise CheckpointError(
                folder, f"has {name} {its!r:.80}, and this model's network {mine!r:.80}; it is for another model."
            )
    opened, digest = load_network(folder, kind, dtype)
    return Control(opened.to(device), digest)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def added(
    controls: Mapping[str, Control],
    condition: Condition,
    evaluate: Callable[[Any, Tensor, Tensor | None], Sequence[Sequence[Tensor] | None]],
) -> list[list[Tensor] | None] | None:
    """The sum over all active controls, place by place and times their weights, of the groups of tensors that evaluate(network,
    picture, mode) gives; None for no control."""
    total: list[list[Tensor] | None] | None = None
    extra = condition.extra
    for name in (key.removeprefix(PICTURE) for key in extra if key.startswith(PICTURE)):
        control, picture = controls[name], extra[PICTURE + name]
        picture = picture if control.reads_latents else F.pixel_shuffle(picture, round((picture.shape[1] / 3) ** 0.5))
        said = evaluate(control.network, picture, extra.get(MODE + name))
        groups = [None if group is None else [_times(v, extra[WEIGHT + name]) for v in group] for group in said]
        if total is None:
            total = groups
            continue
        total = [_sum(a, b) for a, b in zip(total, groups, strict=True)]
    return total


def _times(value: Tensor, weight: Tensor) -> Tensor:
    return value * weight.to(value).view(-1, *[1] * (value.ndim - 1))


def _sum(a: list[Tensor] | None, b: list[Tensor] | None) -> list[Tensor] | None:
    """ValueError where networks add at different numbers of places: what one adds is spread over the denoiser's layers."""
    if a is None or b is None:
        return b if a is None else a
    if len(a) != len(b):
        raise ValueError(f"These ControlNets add at {len(a)} and {len(b)} places; several at once must be of one depth.")
    return [x + y for x, y in zip(a, b, strict=True)]
