"""ADM's classifier of noisy pictures, for classifier guidance: the way down of its U-Net (arXiv 2105.05233, section 4).

x, time --> residual blocks, by halves --> middle --> the pixels' mean attends to all of them --> log p(class | x)
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from gen.nn.attention import attention
from gen.nn.backbones.adm import AdmShapeConfig, WayDown, split_heads
from gen.nn.backbones.blocks import check_image, timestep_embedding
from gen.nn.initialisation import initialise
from samplers.path import NoiseLevel, VariancePreserving, expand


class AdmClassifierConfig(AdmShapeConfig):
    """num_classes: that it tells apart. pool: how pixels become one vector: attention or their mean. betas: the rule of the
    1000 levels that it was trained at, whose numbers it reads as time."""

    num_classes: PositiveInt = 1000
    betas: Literal["linear", "cosine"] = "linear"
    pool: Literal["attention", "adaptive"] = "attention"


class AttentionPool(nn.Module):
    """(B, C, H, W) -> (B, out): their mean attends to all pixels, with positions of a fixed size."""

    def __init__(self, side: int, width: int, heads: int, out: int):
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.empty(width, side**2 + 1))
        initialise(nn.init.normal_, self.positions, std=width**-0.5)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj = nn.Conv1d(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(2, keepdim=True), x], dim=2) + self.positions
        q, k, v = split_heads(self.qkv(x), self.heads, heads_first=False)
        return self.proj(attention(q[:, :1], k, v, backend="math").flatten(2).transpose(1, 2))[:, :, 0]


class AdmClassifier(WayDown):
    """The classifier of noisy pictures: (B, channels, size, size), time (B,) -> logits (B, num_classes)."""

    def __init__(self, config: AdmClassifierConfig):
        super().__init__(config, config.channels)
        self.config, width = config, config.widths[-1]
        self.norm = nn.GroupNorm(config.groups, width)
        self.pool: nn.Module
        if config.pool == "attention":
            side = config.size // config.patch
            self.pool = AttentionPool(side, width, config.heads_of(width), config.num_classes)
        else:
            self.pool = nn.Conv2d(width, config.num_classes, 1)
        self.labels = tuple(map(str, range(config.num_classes)))  # names of the classes, which no file holds
        self.reset_parameters()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        config = self.config
        rows, columns = check_image(x, config.channels, config.patch)
        if config.pool == "attention" and (rows, columns) != (config.size // config.patch,) * 2:
            raise ValueError(f"This classifier sees pictures of {config.size} pixels a side, not {x.shape[3]} by {x.shape[2]}.")
        c = F.silu(self.time_embed(timestep_embedding(time, config.dim).to(x.dtype)))
        for step in self.steps_of("down_blocks"):
            x = step.run(x, c, self.attention_backend, None)
        x = F.silu(self.norm(self.mid_block.run(x, c, self.attention_backend, None)))
        return self.pool(x) if config.pool == "attention" else self.pool(x.mean((2, 3), keepdim=True))[:, :, 0, 0]

    def log_probabilities(self, x: Tensor, level: NoiseLevel) -> Tensor:
        """log p(label | x), (B, num_classes), of x (B, C, H, W) at a level of any path: at the same log-SNR it is read as the
        variance-preserving x is, with the number of its level, which need not be whole."""
        size = (level.alpha**2 + level.sigma**2) ** 0.5
        path = _path(self.config.betas)
        clock = path.at_logsnr(level.logsnr).t
        time = torch.as_tensor(clock, dtype=x.dtype, device=x.device).expand(len(x)) * len(path.table) - 1
        time = time.clamp(min=0)
        return self(x / expand(size, x), time).log_softmax(1)


@cache
def _path(betas: str) -> VariancePreserving:
    return VariancePreserving.linear() if betas == "linear" else VariancePreserving.cosine()
