"""An autoencoder in one file, alone (`ae.safetensors`) or beside other networks, in CompVis' names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.io.digests import file_digest
from gen.io.weights import CheckpointError
from gen.models.bridge.files.fill import fill
from gen.models.bridge.files.kinds import vae_holder
from gen.models.bridge.files.plans import holding, open_source, planned
from gen.nn.initialisation import wants_sizes_only

SCALES = {4: (0.18215, None), 16: (0.3611, 0.1159)}  # channels -> scale and shift of latents


def open_autoencoder_file(path: Path, channels: int | None, like: Mapping[str, Any] | None) -> tuple[nn.Module, str]:
    """(AutoencoderKL, sha256 of its file); arguments as of `gen.models.bridge.parts.open_autoencoder`."""
    source = open_source(path)
    first = next((shape for name, shape in source.shapes.items() if name.endswith("decoder.conv_in.weight")), ())
    scale, shift = SCALES.get(first[1] if len(first) > 1 else 0, (1.0, None))
    if like is not None:
        scale, shift = like.get("scaling_factor") or 1.0, like.get("shift_factor")
    found = holding(vae_holder(scale, shift, alone=True), source.shapes)
    if found is None:
        raise CheckpointError(path, "holds no autoencoder that is known: it has no encoder.conv_in.weight.")
    autoencoder = planned(source, *found)
    made = autoencoder.config["latent_channels"]
    if channels not in (None, made):
        raise CheckpointError(path, f"makes {made} channels, and the network takes {channels}.")
    fill(source, [autoencoder.filling(source, torch.float32)])
    return autoencoder.network, "" if wants_sizes_only() else file_digest(path)
