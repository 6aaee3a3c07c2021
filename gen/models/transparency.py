"""The network that tells things from what is behind them (`gen.nn.transparency`), opened for a model, and used at any size."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.alpha import completed, lifted, resized
from gen.models.components import component_digest, given_or_shipped, load_component

if TYPE_CHECKING:
    from gen.models.model import Model

SHIPPED = Path(__file__).parents[1] / "weights" / "transparent"
LARGER = 1.5  # times the size that the network was trained at, up to which it sees a picture as it is
CLEAR, OPAQUE = 0.1, 0.85  # what the network says of a pixel that is taken to be wholly so, as it is never quite sure
RADIUS, EPSILON = 2, 1e-4  # of the guided filter: pixels of the small picture, and variance of colours in [0, 1]


@dataclass(frozen=True)
class OpenedTransparency:
    """The network, and sha256 of its weights."""

    network: Any
    digest: str

    @torch.no_grad()
    def separate(self, pictures: Tensor, latents: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(layers (B, 4, H, W) with colours times alpha, what is behind them (B, 3, H, W)) of pictures (B, 3, H, W), all in
        [0, 1]; the one upon the other is the picture.

        latents: that the pictures were decoded from, as the autoencoder has them; those of another autoencoder are left out.
        Pictures much larger than those of training are seen smaller, and the opacity follows their edges (`guided`).
        """
        parts = next(self.network.parameters())
        pictures, kept = pictures.to(parts.device, torch.float32), pictures.device
        height, width = pictures.shape[2:]
        scale = self.network.config.size / max(height, width)
        if scale * LARGER >= 1:
            alpha, behind = self.network.separate(pictures, latents)
        else:
            small = resized(pictures, max(1, round(height * scale)), max(1, round(width * scale)))
            alpha, behind = self.network.separate(small, None)
            alpha = guided(pictures, small, alpha)
            behind = F.interpolate(behind, (height, width), mode="bilinear", align_corners=False)
        alpha = ((alpha - CLEAR) / (OPAQUE - CLEAR)).clamp(0, 1)
        layer = lifted(pictures, alpha, behind)
        return layer.to(kept), completed(pictures, layer, behind).to(kept)


def guided(pictures: Tensor, small: Tensor, values: Tensor) -> Tensor:
    """Values (B, 1, h, w) of small pictures (B, 3, h, w) for the large ones (B, 3, H, W), with the edges of these.

    In every window the values are a linear function of the colours, by least squares; the means of these functions over the
    windows of a pixel are enlarged and applied to the large picture. Source: the fast guided filter (arXiv 1505.00996), with
    colours as the guide. Within [0, 1]; values that are the same all over a window stay as they are.
    """
    side = 2 * RADIUS + 1

    def mean(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (RADIUS,) * 4, mode="replicate"), side, 1)

    small, values = small.double(), values.double()
    colours, level = mean(small), mean(values)
    products = mean((small[:, :, None] * small[:, None]).flatten(1, 2)).unflatten(1, (3, 3))
    covariance = products - colours[:, :, None] * colours[:, None]
    joint = mean(small * values) - colours * level
    ridge = EPSILON * torch.eye(3, dtype=torch.float64, device=small.device)
    matrices = covariance.permute(0, 3, 4, 1, 2) + ridge
    slope = torch.linalg.solve(matrices, joint.permute(0, 2, 3, 1)[..., None])[..., 0].permute(0, 3, 1, 2)
    offset = level - (slope * colours).sum(1, keepdim=True)
    size = pictures.shape[2:]
    slope, offset = (F.interpolate(mean(x), size, mode="bilinear", align_corners=False) for x in (slope, offset))
    return ((slope * pictures).sum(1, keepdim=True) + offset).clamp(0, 1).to(pictures.dtype)


def find_transparency(given: Any = None) -> Path:
    """The folder of such a network; the shipped one if None. ValueError where there is none."""
    return given_or_shipped(
        given,
        SHIPPED,
        "transparency",
        "This installation lacks the network that makes pictures transparent; give its folder.",
        "give one that a run of configs/default/transparent.yaml has written, or leave it out for the one that is shipped.",
    )


def open_transparency(model: Model, given: Any = None) -> OpenedTransparency:
    """That of a folder, or the shipped one, beside a model; opened once."""
    folder = find_transparency(given)
    key = str(folder.resolve())
    if key not in model.transparencies:
        network = load_component(folder, "transparency").to(model.device)
        model.transparencies[key] = OpenedTransparency(network, component_digest(folder))
    return model.transparencies[key]
