"""Controls by folder or by name: ours for DiT, diffusers' ControlNets, and the one that comes with the default model.

Pictures are (1, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.weights import CheckpointError, read_json
from gen.models.components import component_digest, load_component
from gen.models.control_names import NAMED, SHIPPED
from gen.models.control_pictures import KINDS
from gen.nn.control import OpenedControl

OWN = "dit_control"
# what must be the same as in the denoiser's network: names of their configs
ALIKE = ("dim", "patch", "channels", "modulation")


@dataclass(frozen=True)
class DiTFollower:
    """An opened control of ours (`gen.nn.backbones.dit_control`). digest: of its weights."""

    network: Any
    digest: str
    reads_latents: bool = False

    @property
    def modes(self) -> int | None:
        """How many kinds of picture a union knows, None for a network of one."""
        kinds = len(self.network.config.kinds)
        return kinds if kinds > 1 else None

    def picture(self, picture: Tensor, autoencoder: Any, latent_scale: float, mode: int | None = None) -> Tensor:
        """A picture as a condition: lines turned white on black, regions in the colours that were trained on."""
        kinds = self.network.config.kinds
        kind = kinds[mode or 0] if kinds else ""
        if kind in KINDS:
            picture = KINDS[kind][1](picture.float())
        return F.pixel_unshuffle(picture, self.network.config.factor)


def find_control(given: Any) -> tuple[Path, int | None]:
    """(folder or file, mode of the union in it) of a control's folder or file, or of a name of NAMED where no folder is called
    so."""
    if not isinstance(given, str | Path) or not str(given):
        raise ValueError(
            f"controlnet is {given!r:.100}; give the folder of a ControlNet, or {' or '.join(NAMED)} for the default model."
        )
    folder = Path(given)
    if str(given) in NAMED and not folder.is_dir():
        if not (SHIPPED / "config.json").is_file():
            raise ValueError(f"This installation lacks the controls of the default model ({SHIPPED.name}); give a folder.")
        return SHIPPED, NAMED.index(str(given))
    if not folder.is_dir() and not (folder.suffix == ".safetensors" and folder.is_file()):
        raise ValueError(
            f"controlnet is {str(given)!r:.200}, which is no folder here, nor a safetensors file; give a ControlNet's or "
            f"T2I-Adapter's, or for the default model {' or '.join(NAMED)}."
        )
    return folder, None


def open_control(folder: Path, network: Any, factor: int, dtype: torch.dtype, device: torch.device) -> OpenedControl:
    """A control's folder, or file, for a denoiser's network. factor: pixels per latent pixel. CheckpointError for one that is
    damaged, unsafe, or for another network; ValueError for a network that takes none."""
    wanted = getattr(network, "controlled_by", ())
    if not wanted:
        if not getattr(network, "bridged", False):
            raise ValueError(
                "This is a network of our own that takes no ControlNet; leave controlnet out, or open the model with "
                "native=False (--no-native), where diffusers' network may take one. A DiT of ours takes one."
            )
        raise ValueError(
            "This model takes no ControlNet: the default model and others on a DiT, Stable Diffusion 1, 2, XL and 3, FLUX and "
            "Qwen-Image do; leave controlnet out."
        )
    if OWN not in wanted:
        if folder == SHIPPED:
            raise ValueError(f"{' and '.join(NAMED)} are controls of the default model; give this model a ControlNet's folder.")
        from gen.models.bridge.control import open_foreign_control

        return open_foreign_control(folder, network, dtype, device)
    if folder.is_file():
        raise CheckpointError(
            folder, f"is one file, and this model takes the folder of a {OWN}; give one that was made for it."
        )
    config = read_json(folder / "config.json")
    if config.get("type") != OWN:
        kind = str(config.get("type") or config.get("_class_name"))
        raise CheckpointError(folder, f"is a {kind!r:.80}, and this model takes a {OWN}; give one that was made for it.")
    control: Any = load_component(folder, OWN)
    own, its = network.config, control.config
    for name in (*ALIKE, *(("text_dim",) if its.text_dim else ())):
        if getattr(own, name) != getattr(its, name):
            raise CheckpointError(
                folder,
                f"has {name} {getattr(its, name)!r}, and this model's network {getattr(own, name)!r}; it is for another model.",
            )
    if its.factor != factor:
        raise CheckpointError(folder, f"reads {its.factor} pixels per latent, and this model has {factor}; it is for another.")
    return DiTFollower(control.to(device, dtype), component_digest(folder))
