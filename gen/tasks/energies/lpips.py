"""LPIPS (arXiv 1801.03924): how far apart two pictures look, by the features of VGG-16 and learned weights of their channels.

Weights are not shipped: a safetensors file of yours holds the convolutions (named `features.N` as torchvision has them, or
`net.sliceK.N`) and the five rows `linK.model.1.weight`, as the state of `lpips.LPIPS(net="vgg")` does.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.io.weights import CheckpointError, listed, read_weights

# VGG-16's convolutions by their place in torchvision's list, in the five parts after which features are taken; each part but
# the first begins by halving the sides
PARTS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures in [-1, 1]; ImageNet's mean and deviation
SIDE = 224  # what the network was trained at; smaller pictures are enlarged to it, as consistency models had it (2303.01469)


class Lpips(nn.Module):
    """forward(x, y): (N,) for pictures (N, 3, H, W) in [-1, 1], differentiable; `maps(x)`: the features before they are
    compared."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        channels, parts = 3, []
        for numbers, width in zip(PARTS, WIDTHS, strict=True):
            layers: dict[str, nn.Module] = {}
            for number in numbers:
                layers[str(number)] = nn.Conv2d(channels, width, 3, padding=1)
                channels = width
            parts.append(nn.ModuleDict(layers))
        self.parts = nn.ModuleList(parts)
        self.weights = nn.ParameterList(torch.ones(width) for width in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    def maps(self, images: Tensor) -> list[Tensor]:
        """Five maps (N, C, h, w), the finest first."""
        if min(images.shape[2:]) < SIDE:
            images = F.interpolate(images, (SIDE, SIDE), mode="bilinear", align_corners=False)
        x, features = (images - self.shift) / self.scale, []
        for number, part in enumerate(self.parts):
            x = F.max_pool2d(x, 2) if number else x
            for layer in part.values():  # type: ignore[operator]
                x = layer(x).relu()
            features.append(x)
        return features

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """sum_l mean over places of w_l . (f_l / |f_l| - g_l / |g_l|)^2. Equation 1."""
        total = x.new_zeros(len(x))
        for first, second, weight in zip(self.maps(x), self.maps(y), self.weights, strict=True):
            f, g = (v / (v.square().sum(1, keepdim=True).sqrt() + 1e-10) for v in (first, second))
            total = total + torch.einsum("nchw,c->nhw", (f - g).square(), weight).mean((1, 2))
        return total


def load_lpips(path: str | Path | None) -> Lpips:
    """The network of a weights file; ValueError without one, CheckpointError where the file does not hold it."""
    if not path:
        raise ValueError("Weights of LPIPS are not shipped; give a safetensors file of yours: lpips:FILE.")
    tensors, network = read_weights(path), Lpips()
    renamed: dict[str, Tensor] = {}
    for part, numbers in enumerate(PARTS):
        for number in numbers:
            for leaf in ("weight", "bias"):
                names = (f"features.{number}.{leaf}", f"net.slice{part + 1}.{number}.{leaf}")
                renamed[f"parts.{part}.{number}.{leaf}"] = _first(tensors, names, path)
        renamed[f"weights.{part}"] = _first(
            tensors, (f"lin{part}.model.1.weight", f"lins.{part}.model.1.weight"), path
        ).flatten()
    wrong = [name for name, value in network.state_dict().items() if renamed[name].shape != value.shape]
    if wrong:
        raise CheckpointError(path, f"is not LPIPS on VGG-16: {listed(wrong)} has another shape.")
    network.load_state_dict({name: value.float() for name, value in renamed.items()})
    return network.eval().requires_grad_(False)


def _first(tensors: dict[str, Tensor], names: tuple[str, str], path: str | Path) -> Tensor:
    for name in names:
        if name in tensors:
            return tensors[name]
    raise CheckpointError(path, f"is not LPIPS on VGG-16: it holds neither {names[0]} nor {names[1]}.")
