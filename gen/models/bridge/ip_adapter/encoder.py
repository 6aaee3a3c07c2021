"""The network that sees image prompts: the vision transformer of CLIP or of SigLIP, as transformers has it, from its folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gen.models.bridge.hub import part_folder
from gen.models.bridge.load import load_network, read_part_config
from gen.nn.initialisation import opening_on

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of the pictures that CLIP was trained on, and their deviations
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
CLIP, SIGLIP = "CLIPVisionModelWithProjection", "SiglipVisionModel"
SIGLIPS = ("siglip", "siglip_vision_model")  # `model_type` of the whole of SigLIP, and of its half that sees
BESIDE = {SIGLIP: ("text_model.", "logit_")}  # what a file of the whole has besides


@dataclass(frozen=True)
class ImageEncoder:
    """network: of transformers. digest: of its weights. kind: one of `CLIP` and `SIGLIP`."""

    network: Any
    digest: str
    kind: str = CLIP

    def pixels(self, picture: Tensor) -> Tensor:
        """A picture (1, 3, H, W) in [0, 1] as the network sees it: for CLIP the shorter side scaled (bicubic) and the middle
        cut, for SigLIP all of it scaled to a square."""
        side = self.network.config.image_size
        values = (picture[0].permute(1, 2, 0).cpu() * 255).round().to(torch.uint8).numpy()
        height, width = values.shape[:2]
        long = int(side * max(height, width) / min(height, width))
        size = (side, long) if width <= height else (long, side)
        size = (side, side) if self.kind == SIGLIP else size
        scaled = torch.from_numpy(np.array(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)))
        top, left = (size[1] - side) // 2, (size[0] - side) // 2
        cut = scaled[top : top + side, left : left + side].permute(2, 0, 1).float() / 255
        if self.kind == SIGLIP:
            normal = 2 * cut - 1  # mean and deviation 1/2
        else:
            mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in (MEAN, DEVIATION))
            normal = (cut - mean) / deviation
        return normal[None].to(self.network.device, self.network.dtype)

    @property
    def widths(self) -> dict[str, int]:
        """Of what it gives, by the names of `Projection.reads`."""
        config = self.network.config
        if self.kind == SIGLIP:
            return {"pooled": config.hidden_size}
        return {"embeds": config.projection_dim, "states": config.hidden_size, "face states": config.hidden_size}

    def embeds(self, pixels: Tensor) -> Tensor:
        """(B, E)."""
        return self.network(pixels).pooler_output if self.kind == SIGLIP else self.network(pixels).image_embeds

    def states(self, pixels: Tensor) -> Tensor:
        """(B, T, H), before the last layer."""
        return self.network(pixels, output_hidden_states=True).hidden_states[-2]


def open_encoder(source: str | Path, dtype: torch.dtype, device: torch.device) -> ImageEncoder:
    """From a folder or a hub repository, in which it may be the folder `image_encoder`."""
    folder = part_folder(source, "image_encoder", ("config.json",))
    kind = SIGLIP if read_part_config(folder).get("model_type") in SIGLIPS else CLIP
    with opening_on(device):
        network, digest = load_network(folder, kind, dtype, BESIDE.get(kind, ()))
    return ImageEncoder(network.to(device), digest, kind)
