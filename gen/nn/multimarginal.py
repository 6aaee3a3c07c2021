"""The network of multimarginal interpolants (`samplers.simplex`): a U-ViT that reads weights beside x and says all parts of it.

Source: arXiv 2310.03695.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.backbones.uvit import UViT, UViTConfig
from gen.nn.registry import Config
from samplers.denoiser import Condition, Context
from samplers.path import expand

TIME = 999.0  # the clock on which the U-ViT reads the first distribution's weight


class MultimarginalConfig(Config):
    """marginals: names of the distributions, noise among them or not. channels: of x. The rest are a U-ViT's sizes."""

    marginals: tuple[str, ...] = Field(min_length=2, max_length=16)
    channels: int = Field(default=3, gt=0)
    size: int = Field(gt=0)
    patch: int = Field(gt=0)
    dim: int = Field(gt=0)
    depth: int = Field(gt=0)
    heads: int = Field(gt=0)

    @model_validator(mode="after")
    def _differ(self) -> MultimarginalConfig:
        if len(set(self.marginals)) < len(self.marginals):
            raise ValueError(f"marginals {self.marginals} name one twice; give each a name of its own")
        return self


class Multimarginal(nn.Module):
    """(weights (B, K), x (B, C, H, W)) -> the means of all K parts of x, (B, K, C, H, W), whose weighted sum is x exactly."""

    def __init__(self, config: MultimarginalConfig):
        super().__init__()
        self.config, count = config, len(config.marginals)
        sizes = config.model_dump(exclude={"marginals", "channels"})
        self.backbone = UViT(UViTConfig(**sizes, channels=config.channels + count, out_channels=config.channels * count))

    def forward(self, weights: Tensor, x: Tensor) -> Tensor:
        weights = weights.to(x)
        maps = weights[:, :, None, None].expand(-1, -1, *x.shape[2:])
        said = self.backbone(torch.cat([x, maps], 1), TIME * weights[:, 0], Condition(), Context())
        parts = said.unflatten(1, (-1, x.shape[1]))
        # sum_k a_k g_k = x holds for the exact ones; what is missing is shared out as a least change
        missing = x - (weights[:, :, None, None, None] * parts).sum(1)
        share = weights / expand(weights.square().sum(1), weights)
        return parts + share[:, :, None, None, None] * missing[:, None]

    def number(self, name: str) -> int:
        """Of a distribution by name; ValueError lists those there are."""
        if name not in self.config.marginals:
            raise ValueError(f"Unknown distribution {name!r}: this network knows {', '.join(self.config.marginals)}.")
        return self.config.marginals.index(name)
