"""Small pictures of latents while they are being sampled: a linear map from latent channels to colours, fitted once.

Every latent pixel becomes one pixel, so a preview of a 1024 x 1024 picture is 128 x 128 and costs nothing. Preview the
`denoised` estimate of a callback; the noisy latents show noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES, CELLS = 8, 32  # random pictures that the map is fitted on, and latent pixels on their side


@torch.no_grad()
def fit(autoencoder: Any, device: torch.device, seed: int = 0) -> Tensor:
    """(C + 1, 3) colours in [-1, 1] of latent channels and of the constant 1, by least squares on random smooth pictures."""
    source = torch.Generator().manual_seed(seed)
    side = CELLS * autoencoder.factor
    scales = (  # several, as in photographs
        F.interpolate(torch.randn(SAMPLES, 3, cells, cells, generator=source), (side, side), mode="bicubic")
        for cells in (2, 5, 11)
    )
    pictures = sum(scales, start=torch.zeros(()))
    pictures = torch.tanh(0.8 * pictures).to(device)
    latents = torch.cat([autoencoder.encode(picture[None]).float() for picture in pictures])
    colours = F.avg_pool2d(pictures, autoencoder.factor)
    x = _with_one(latents).cpu().double()
    y = colours.movedim(1, -1).reshape(-1, 3).cpu().double()
    # a little ridge: channels that random pictures do not move stay quiet
    gram = x.T @ x + 1e-6 * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    return torch.linalg.solve(gram, x.T @ y).float().to(device)


def to_rgb(latents: Tensor, factors: Tensor | None) -> Tensor:
    """Pictures (B, 3, h, w) in [0, 1] of latents (B, C, h, w); factors None: the latents are pictures in [-1, 1]."""
    latents = latents.float()
    if factors is not None:
        batch, _, height, width = latents.shape
        latents = (_with_one(latents) @ factors).view(batch, height, width, 3).movedim(-1, 1)
    return (latents / 2 + 0.5).clamp(0, 1)


def _with_one(latents: Tensor) -> Tensor:
    """(B h w, C + 1)."""
    flat = latents.movedim(1, -1).reshape(-1, latents.shape[1])
    return torch.cat([flat, flat.new_ones(len(flat), 1)], dim=1)


def pictures(rgb: Tensor) -> list[Image]:
    from PIL import Image

    return [Image.fromarray(pixels) for pixels in (rgb.movedim(1, -1).cpu().numpy() * 255).round().astype("uint8")]
