"""Reference encoders by folder, the one that comes with the default model, and the features of pictures that they read.

Pictures are (N, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.io.images import fit
from gen.io.weights import CheckpointError, read_json
from gen.models.components import component_digest, given_or_shipped, load_component
from gen.nn.reference_encoder import ReferenceEncoder, attention_sizes

OWN = "reference_encoder"
SHIPPED = Path(__file__).parents[1] / "weights" / "reference"
Features = Callable[[Tensor], Tensor]  # pictures (N, 3, H, W) in [0, 1] -> (N, T, F)


@dataclass(frozen=True)
class LatentFeatures:
    """Patches of the latents that the model's own autoencoder makes of pictures, brought to the size that it reads."""

    encoder: ReferenceEncoder
    autoencoder: Any
    latent_scale: float

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        side = self.encoder.config.size * getattr(self.autoencoder, "factor", 1)
        latents = fit(pictures, side, side).float() * 2 - 1
        if self.autoencoder is not None:
            latents = self.autoencoder.encode(latents).float() * self.latent_scale
        return self.encoder.patches(latents[:, None])[:, 0]


@dataclass(frozen=True)
class ClipFeatures:
    """The tokens of CLIP's vision network before its last layer.

    vision: `gen.models.bridge.ip_adapter.encoder.ImageEncoder`.
    """

    vision: Any

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        return self.vision.states(torch.cat([self.vision.pixels(picture[None]) for picture in pictures]))


@dataclass(frozen=True)
class OpenedReference:
    """A reference encoder that is ready. digest: of its weights. features: of pictures. vision: digest of the network that
    makes these, where that is none of the model's own."""

    network: ReferenceEncoder
    digest: str
    features: Features
    vision: str | None = None


def features_of(
    encoder: ReferenceEncoder, autoencoder: Any, latent_scale: float, vision: str | Path | None, device: torch.device
) -> tuple[Features, str | None]:
    """(what an encoder reads of pictures, digest of the vision network). vision: its folder or hub id.

    ValueError where it is missing, given in vain, or of another width.
    """
    config = encoder.config
    if config.features == "latents":
        if vision is not None:
            raise ValueError("This reference encoder reads the model's own latents; leave the vision network out.")
        return LatentFeatures(encoder, autoencoder, latent_scale), None
    if vision is None:
        raise ValueError(
            "This reference encoder reads features of CLIP's vision network, which is not shipped; give its folder or hub id."
        )
    from gen.models.bridge.ip_adapter.encoder import open_encoder

    opened = open_encoder(vision, torch.float32, device)
    if opened.network.config.hidden_size != config.channels:
        raise ValueError(
            f"The reference encoder reads features of width {config.channels}, and {vision} gives "
            f"{opened.network.config.hidden_size}; give the vision network that it was trained with."
        )
    return ClipFeatures(opened), opened.digest


def find_reference(given: Any) -> Path:
    """The folder of a reference encoder; the shipped one if None. ValueError where there is none."""
    return given_or_shipped(
        given,
        SHIPPED,
        "The reference encoder",
        "This installation lacks the default model's reference encoder; give the folder of one.",
        "give one that the objective 'reference' made, or leave it out for the default model's.",
    )


def open_reference(
    folder: Path, model: Any, vision: str | Path | None, dtype: torch.dtype, device: torch.device
) -> OpenedReference:
    """A reference encoder's folder for a model. CheckpointError for one that is damaged, unsafe, or for another model."""
    config = read_json(folder / "config.json")
    if config.get("type") != OWN:
        kind = str(config.get("type") or config.get("_class_name"))
        raise CheckpointError(folder, f"is a {kind!r:.80}, and a {OWN} is needed; give one that was made for this model.")
    encoder: Any = load_component(folder, OWN)
    check_fits(encoder, model, folder)
    features, seen_by = features_of(encoder, model.autoencoder, model.config.latent_scale, vision, device)
    return OpenedReference(encoder.to(device, dtype), component_digest(folder), features, seen_by)


def check_fits(encoder: ReferenceEncoder, model: Any, folder: Path) -> None:
    """CheckpointError for an encoder that was made for another network than the model's; for one of another library sizes are
    found out when it is first called."""
    own, network = encoder.config, model.network
    if getattr(network, "bridged", False):
        return
    try:
        sizes = attention_sizes(network, own.attention)
    except AttributeError:
        raise CheckpointError(folder, f"adds to attentions, which this model's {type(network).__name__} has not.") from None
    for name, value in sizes.items():
        if own.layers and getattr(own, name) != value:
            raise CheckpointError(
                folder, f"has {name} {getattr(own, name)!r}, and this model's network {value!r}; it is for another model."
            )
    if own.features == "latents" and own.channels != network.config.channels:
        raise CheckpointError(
            folder,
            f"reads latents of {own.channels} channels, and this model has {network.config.channels}; it is for another.",
        )
