"""The network that sees image prompts: CLIP's vision transformer, as transformers has it, from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen.models.bridge.hub import part_folder
from gen.models.bridge.load import load_network

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that CLIP was trained on, and their deviations
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
CLASS = "CLIPVisionModelWithProjection"


@dataclass(frozen=True)
class ImageEncoder:
    """network: of transformers. digest: of its weights."""

    network: Any
    digest: str

    def pixels(self, picture: Tensor) -> Tensor:
        """A picture (1, 3, H, W) in [0, 1] as the network sees it: the shorter side scaled (bicubic), the middle cut."""
        side = self.network.config.image_size
        values = (picture[0].permute(1, 2, 0).cpu() * 255).round().to(torch.uint8).numpy()
        height, width = values.shape[:2]
        long = int(side * max(height, width) / min(height, width))
        size = (side, long) if width <= height else (long, side)
        scaled = torch.from_numpy(np.array(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)))
        top, left = (size[1] - side) // 2, (size[0] - side) // 2
        cut = scaled[top : top + side, left : left + side].permute(2, 0, 1).float() / 255
        mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, DEVIATION))
        return ((cut - mean) / deviation)[None].to(self.network.device, self.network.dtype)

    def embeds(self, pixels: Tensor) -> Tensor:
        """(B, E)."""
        return self.network(pixels).image_embeds

    def states(self, pixels: Tensor) -> Tensor:
        """(B, T, H), before the last layer."""
        return self.network(pixels, output_hidden_states=True).hidden_states[-2]


def open_encoder(source: str | Path, dtype: torch.dtype, device: torch.device) -> ImageEncoder:
    """From a folder or a hub repository, in which it may be the folder `image_encoder`."""
    network, digest = load_network(part_folder(source, "image_encoder", ("config.json",)), CLASS, dtype)
    return ImageEncoder(network.to(device), digest)
