"""Frozen networks whose feature maps pictures are judged by: a closed registry, `evaluator`, `dinov2:PATH` or `lpips:FILE`.

Each takes pictures (B, 3, H, W) in [-1, 1] of any size to maps (B, C, h, w), the finest first, differentiably.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks.features import in_range, open_named
from gen.rewards.clip import open_transformers
from gen.tasks.energies.lpips import WIDTHS, load_lpips
from samplers.canvas.sync_diffusion import perceptual_distance


class FeatureMaps(nn.Module):
    """`network` frozen; `widths`: the channels of each map that forward returns."""

    network: Any

    def __init__(self, network: nn.Module, widths: Sequence[int]):
        super().__init__()
        self.network, self.widths = network.eval().requires_grad_(False), tuple(widths)

    def train(self, mode: bool = True) -> FeatureMaps:
        return self  # its statistics stay as they are

    @property
    def embedding(self) -> int:
        """The width of `embed`."""
        return self.widths[-1]

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """One vector (B, E) of length sqrt(E) for each picture as a decoder made it: what is in it, wherever it stands."""
        found = self.whole(in_range(images)).float()
        return F.normalize(found, dim=-1) * found.shape[-1] ** 0.5

    def whole(self, images: Tensor) -> Tensor:
        """(B, E): here the mean of the coarsest map over its places."""
        return self.to(images.device)(images)[-1].mean((2, 3))

    def see(self, images: Tensor) -> list[Tensor]:
        """The maps of pictures as a decoder made them."""
        return self.to(images.device)(in_range(images))


class EvaluatorMaps(FeatureMaps):
    """The stages of an evaluation network (distill/networks/evaluator)."""

    def __init__(self, folder: str | None):
        from distill.networks.evaluator.network import load_evaluator

        network = load_evaluator(folder)
        super().__init__(network, network.config.widths)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.stages(images)


class Dinov2Maps(FeatureMaps):
    """A quarter, half, three quarters and all of the way through DINOv2, as ADD has it: a folder or hub id of transformers."""

    mean: Tensor
    std: Tensor
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

    def _run(self, images: Tensor) -> tuple[Any, int]:
        """(what the network gives, patches along a side)."""
        patch = self.network.config.patch_size
        side = self.network.config.image_size // patch * patch
        x = F.interpolate(images, (side, side), mode="bicubic", antialias=True, align_corners=False)
        return self.network((x / 2 + 0.5 - self.mean) / self.std, output_hidden_states=True), side // patch

    def forward(self, images: Tensor) -> list[Tensor]:
        out, side = self._run(images)
        return [out.hidden_states[layer][:, 1:].mT.unflatten(2, (side, side)) for layer in self.layers]

    def whole(self, images: Tensor) -> Tensor:
        """The token of the whole picture."""
        return self.to(images.device)._run(images)[0].pooler_output


class LpipsMaps(FeatureMaps):
    """VGG-16 as LPIPS has it, which also compares: a safetensors file of yours (gen/tasks/energies/lpips.py)."""

    def __init__(self, path: str | None):
        super().__init__(load_lpips(path), WIDTHS)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.maps(images)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS (B,) of pictures as a decoder made them."""
        return self.to(a.device).network(in_range(a), in_range(b))


def picture_distance(maps: FeatureMaps, a: Tensor, b: Tensor) -> Tensor:
    """(B,): how far pictures as a decoder made them are apart in features: LPIPS where the network has it, else its equation 1
    (arXiv 1801.03924) with all channels alike."""
    distance: Callable[[Tensor, Tensor], Tensor] | None = getattr(maps, "distance", None)
    if distance is not None:
        return distance(a, b)
    return perceptual_distance(lambda images: [x.float() for x in maps.see(images)])(a, b)


FEATURE_MAPS: dict[str, Callable[[str | None], FeatureMaps]] = {
    "evaluator": EvaluatorMaps,
    "dinov2": Dinov2Maps,
    "lpips": LpipsMaps,
}


def load_feature_maps(name: str) -> FeatureMaps:
    """The network of "NAME" or "NAME:PATH"; ValueError lists what there is."""
    return open_named(FEATURE_MAPS, "features", name)
