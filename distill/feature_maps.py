"""Frozen networks whose feature maps a discriminator judges pictures by: a closed registry, `evaluator` or `dinov2:PATH`.

Each takes pictures (B, 3, H, W) in [-1, 1] of any size to maps (B, C, h, w), the finest first, differentiably.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.features import in_range, open_named
from gen.energies.clip import open_transformers


class FeatureMaps(nn.Module):
    """`network` frozen; `widths`: the channels of each map that forward returns."""

    def __init__(self, network: nn.Module, widths: Sequence[int]):
        super().__init__()
        self.network, self.widths = network.eval().requires_grad_(False), tuple(widths)

    def train(self, mode: bool = True) -> FeatureMaps:
        return self  # its statistics stay as they are

    def see(self, images: Tensor) -> list[Tensor]:
        """The maps of pictures as a decoder made them."""
        return self.to(images.device)(in_range(images))


class EvaluatorMaps(FeatureMaps):
    """The stages of an evaluation network (distill/evaluator)."""

    def __init__(self, folder: str | None):
        from distill.evaluator.network import load_evaluator

        network = load_evaluator(folder)
        super().__init__(network, network.config.widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.stages(images)


class Dinov2Maps(FeatureMaps):
    """A quarter, half, three quarters and all of the way through DINOv2, as ADD has it: a folder or hub id of transformers."""

    MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self, model: str | None, network: Any = None):
        from transformers import Dinov2Model

        if network is None:
            name = model or "facebook/dinov2-small"
            network = open_transformers("a DINOv2 model", Dinov2Model, name, use_safetensors=True)
        count = network.config.num_hidden_layers
        layers = sorted({max(1, round(count * share)) for share in (0.25, 0.5, 0.75, 1.0)})
        super().__init__(network, [network.config.hidden_size] * len(layers))
        self.layers = layers
        self.register_buffer("mean", torch.tensor(self.MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(self.STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> list[Tensor]:
        patch = self.network.config.patch_size
        side = self.network.config.image_size // patch * patch
        x = F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
        states = self.network((x / 2 + 0.5 - self.mean) / self.std, output_hidden_states=True).hidden_states
        grid = (side // patch, side // patch)
        return [states[layer][:, 1:].mT.unflatten(2, grid) for layer in self.layers]


FEATURE_MAPS: dict[str, Callable[[str | None], FeatureMaps]] = {"evaluator": EvaluatorMaps, "dinov2": Dinov2Maps}


def load_feature_maps(name: str) -> FeatureMaps:
    """The network of "NAME" or "NAME:PATH"; ValueError lists what there is."""
    return open_named(FEATURE_MAPS, "features", name)
