"""Features of published networks of pictures, by transformers: what such a network says of a whole picture, one vector each.

A folder or hub id of a model is given, as in `dinov2:facebook/dinov2-base`; none is shipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.rewards.clip import DEVIATION, MEAN, open_transformers

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class VisionKind:
    """A class of transformers whose output has `pooler_output`, and the mean and deviation of the pixels that it was taught
    with."""

    model: str
    mean: tuple[float, ...]
    deviation: tuple[float, ...]


VISION_KINDS = {
    "dinov2": VisionKind("Dinov2Model", *IMAGENET),
    "clip": VisionKind("CLIPVisionModel", tuple(MEAN), tuple(DEVIATION)),
    "siglip": VisionKind("SiglipVisionModel", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "convnext": VisionKind("ConvNextV2Model", *IMAGENET),
}


class VisionFeatures(nn.Module):
    """Pictures (N, 3, H, W) in [-1, 1] of any size -> (N, D); differentiable. ValueError for a model that cannot be opened."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, kind: str, path: str | None):
        import transformers

        super().__init__()
        if path is None:
            raise ValueError(f"Weights of {kind} are not shipped; give a folder or a hub id of transformers: {kind}:MODEL.")
        of = VISION_KINDS[kind]
        model: Any = open_transformers(f"a {kind} model", getattr(transformers, of.model), path, use_safetensors=True)
        self.network = model.eval().requires_grad_(False)
        self.size = int(model.config.image_size)
        self.register_buffer("mean", torch.tensor(of.mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(of.deviation)[:, None, None], persistent=False)

    def train(self, mode: bool = True) -> VisionFeatures:
        return self  # its statistics stay as they are

    def forward(self, images: Tensor) -> Tensor:
        x = F.interpolate(images.float(), (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        return self.network(pixel_values=(x / 2 + 0.5 - self.mean) / self.deviation).pooler_output
