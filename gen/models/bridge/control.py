"""ControlNets of diffusers: networks that read a picture of edges, depth or poses, and add to a denoiser's layers.

What their pictures are as conditions, `gen.nn.control` says.

Source: ControlNet, arXiv 2302.05543; T2I-Adapter, arXiv 2302.08453.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.weights import CheckpointError
from gen.models.bridge.control_residuals import RESIDUALS, repeats
from gen.models.bridge.files.control import ControlFile
from gen.models.bridge.load import load_network, read_part_config
from gen.models.formats.registry import their_config
from gen.nn.initialisation import opening_on
from samplers.denoiser import Condition

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
        return kind in LATENTS or (kind == "FluxControlNetModel" and not self.repeats)

    @property
    def repeats(self) -> bool:
        return repeats(self.network)

    def residuals(
        self, x: Tensor, time: Tensor, condition: Condition, picture: Tensor, mode: Tensor | None
    ) -> Sequence[Sequence[Tensor] | None]:
        """As of `gen.nn.control.SequenceControl`."""
        return RESIDUALS[type(self.network).__name__](self.network, x, time, condition, picture, mode)

    def picture(self, picture: Tensor, autoencoder: Any, latent_scale: float, mode: int | None = None) -> Tensor:
        """A picture (1, 3, H, W) in [0, 1] as a condition."""
        if not self.reads_latents:
            if type(self.network).__name__ == "T2IAdapter" and self.network.config.in_channels == 1:
                picture = (picture * picture.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True).expand(-1, 3, -1, -1)
            return F.pixel_unshuffle(picture, autoencoder.factor)
        latents = autoencoder.encode(picture * 2 - 1).float() * latent_scale
        if self.network.config.get("force_zeros_for_pooled_projection"):
            latents = latents + autoencoder.shift * autoencoder.scale * latent_scale  # trained without the shift
        return latents


def open_foreign_control(folder: Path, network: Any, dtype: torch.dtype, device: torch.device) -> Control:
    """A ControlNet's or T2I-Adapter's folder, or the file of one, for a denoiser's network. CheckpointError for one that is
    damaged, unsafe, or for another network."""
    wanted = network.controlled_by
    file = ControlFile(folder) if folder.is_file() else None
    if (folder / "model_index.json").is_file():
        raise CheckpointError(folder, "is a whole pipeline; give a ControlNet's or T2I-Adapter's own folder or file.")
    config = read_part_config(folder) if file is None else file.config
    kind = str(config.get("_class_name")) if file is None else file.kind
    if kind not in wanted:
        takes = " or ".join(wanted)
        raise CheckpointError(folder, f"is a {kind!r:.80}, and this model takes a {takes}; give one that was made for it.")
    if config.get("global_pool_conditions"):
        raise CheckpointError(folder, "pools what it adds over the picture (shuffle), which is not read; give another one.")
    if config.get("extra_condition_channels"):
        raise CheckpointError(
            folder, "reads a mask beside its picture (inpainting), which is not given here; give another one."
        )
    own: Mapping[str, Any] = network.network.config if getattr(network, "bridged", False) else their_config(network)
    for name in ALIKE[kind]:
        other = {"channels": "block_out_channels"}.get(name, name)  # in the denoiser's config
        mine, its = own.get(other), config.get(name, own.get(other))
        if _plain(mine) != _plain(its):
            raise CheckpointError(
                folder, f"has {name} {its!r:.80}, and this model's network {mine!r:.80}; it is for another model."
            )
    with opening_on(device):
        opened, digest = load_network(folder, kind, dtype) if file is None else file.open(dtype)
    return Control(opened.to(device), digest)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
