"""The influence of each of several models on one picture, learned for collaborative diffusion
(`samplers.multi_model.collaborative_diffusion`).

A small convolutional network per model reads the noisy picture, how noisy it is, and that model's condition, and says one
number per pixel. Pictures (B, C, H, W), logits (B, N, H, W) for N models.

Source: arXiv 2304.10530, section 3.3, whose influence functions are small U-Nets; these keep the resolution and look far by
dilation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from gen.nn.backbones.blocks import timestep_embedding
from gen.nn.registry import Config
from samplers.denoiser import Condition
from samplers.multi_model.collaborative_diffusion import Collaborator, Influence
from samplers.path import NoiseLevel

FREQUENCIES = 64
MAX_LOGSNR = 10.0


class InfluenceConfig(Config):
    """channels of the picture; width and blocks of each network. One entry per model: text_dims has the size of its text
    features, num_classes how many classes it knows; 0 for what a model does not read."""

    channels: int = Field(gt=0)
    dim: int = Field(64, gt=0, multiple_of=8)
    depth: int = Field(3, gt=0, le=8)
    text_dims: tuple[int, ...] = Field(min_length=1, max_length=16)
    num_classes: tuple[int, ...] = Field(min_length=1, max_length=16)

    @model_validator(mode="after")
    def _as_many(self) -> InfluenceConfig:
        if len(self.text_dims) != len(self.num_classes):
            raise ValueError("text_dims and num_classes need one entry per model each")
        return self


class Influences(nn.Module):
    """One influence network per model. At first all say 0: every model has the same influence."""

    def __init__(self, config: InfluenceConfig):
        super().__init__()
        self.config = config
        self.models = nn.ModuleList(
            One(config, text, classes) for text, classes in zip(config.text_dims, config.num_classes, strict=True)
        )

    def forward(self, x: Tensor, logsnr: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """(B, N, H, W) logits; logsnr (B,), one condition per model."""
        if len(conditions) != len(self.models):
            raise ValueError(f"{len(conditions)} conditions are given for {len(self.models)} models; give one for each.")
        return torch.cat(
            [network(x, logsnr, condition) for network, condition in zip(self.models, conditions, strict=True)], dim=1
        )

    def members(self, denoisers: Sequence, conditions: Sequence[Condition | None]) -> tuple[Collaborator, ...]:
        """The members of a `CollaborativeDiffusion`; a condition of None is the run's own."""
        if not len(denoisers) == len(conditions) == len(self.models):
            raise ValueError(
                f"{len(denoisers)} models and {len(conditions)} conditions are given for the influence of {len(self.models)}; "
                "give one of each for every model."
            )
        return tuple(
            Collaborator(denoiser, _influence(network), condition)
            for denoiser, network, condition in zip(denoisers, self.models, conditions, strict=True)
        )


class One(nn.Module):
    """The influence of one model."""

    def __init__(self, config: InfluenceConfig, text_dim: int, num_classes: int):
        super().__init__()
        dim = config.dim
        self.stem = nn.Conv2d(config.channels, dim, 3, padding=1)
        self.time = nn.Linear(FREQUENCIES, dim)
        self.text = nn.Linear(text_dim, dim) if text_dim else None
        self.label = nn.Embedding(num_classes + 1, dim) if num_classes else None
        self.convs = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=2**i, dilation=2**i) for i in range(config.depth))
        self.norms = nn.ModuleList(nn.GroupNorm(1, dim, affine=False) for _ in range(config.depth))
        self.scales = nn.ModuleList(nn.Linear(dim, 2 * dim) for _ in range(config.depth))
        self.head = nn.Conv2d(dim, 1, 1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor, logsnr: Tensor, condition: Condition) -> Tensor:
        """(B, 1, H, W)."""
        clock = 100 * logsnr.to(x).clamp(-MAX_LOGSNR, MAX_LOGSNR)
        embedding = self.time(timestep_embedding(clock, FREQUENCIES).to(x))
        if self.text is not None and condition.tokens is not None:
            embedding = embedding + self.text(_mean(condition).to(x))
        if self.label is not None and condition.label is not None:
            labels = condition.label
            embedding = embedding + self.label(torch.where(labels < 0, self.label.num_embeddings - 1, labels))
        embedding = F.silu(embedding)
        h = self.stem(x)
        for conv, norm, scales in zip(self.convs, self.norms, self.scales, strict=True):
            scale, shift = scales(embedding)[:, :, None, None].chunk(2, dim=1)
            h = h + conv(F.silu(norm(h) * (1 + scale) + shift))
        return self.head(F.silu(h))


def _mean(condition: Condition) -> Tensor:
    """The mean of the real tokens, 0 where there is none."""
    assert condition.tokens is not None
    if condition.mask is None:
        return condition.tokens.mean(1)
    real = condition.mask.to(condition.tokens).unsqueeze(-1)
    return (condition.tokens * real).sum(1) / real.sum(1).clamp(min=1)


def _influence(network: nn.Module) -> Influence:
    def of(x: Tensor, level: NoiseLevel, condition: Condition) -> Tensor:
        logsnr = level.logsnr if isinstance(level.logsnr, Tensor) else torch.full((len(x),), level.logsnr)
        return network(x, logsnr.to(x.device), condition.map(lambda v: v.expand(len(x), *v.shape[1:]) if len(v) == 1 else v))

    return of
