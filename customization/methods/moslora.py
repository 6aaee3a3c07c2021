"""MoSLoRA: a LoRA with a small matrix between its two factors, which mixes the subspaces that they span.

    D = s B M A,   M (r, r) trained

M is multiplied into B when the adapter is written, so that the file is a plain LoRA that every program reads.

Source: arXiv 2406.11909.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from customization.base.config import CustomizationConfig
from customization.methods.factors import FactorObjective, Factors, folded, generator_of, kaiming
from distill.networks.lora.peft_injection import AdapterConfig
from gen.adapters import Delta


class MixtureLayers(AdapterConfig):
    """As a LoRA's. mixer: how M starts: orthogonal or kaiming, as published, or identity, which starts as LoRA does."""

    mixer: Literal["orthogonal", "kaiming", "identity"] = "orthogonal"

    @model_validator(mode="after")
    def _plain(self) -> MixtureLayers:
        if self.type != "lora" or self.conv:
            raise ValueError("a mixture is made of plain LoRAs of linear layers; leave type and conv out")
        return self


class MixtureConfig(CustomizationConfig):
    adapter: MixtureLayers | None = Field(default_factory=lambda: MixtureLayers())


def start_mixer(kind: str, rank: int, generator: torch.Generator) -> Tensor:
    """M before training, (r, r)."""
    if kind == "identity":
        return torch.eye(rank)
    if kind == "kaiming":
        return kaiming(rank, rank, generator)
    q, r = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
    return q * r.diagonal().sign()


class MixtureObjective(FactorObjective):
    config: MixtureConfig

    def factors(self, name: str, module: nn.Linear) -> Factors:
        layers = self.layers()
        assert isinstance(layers, MixtureLayers)
        random = generator_of(self.seed, "adapter", name)
        matrices = {
            "down": kaiming(layers.rank, module.in_features, random),
            "mixer": start_mixer(layers.mixer, layers.rank, random),
            "up": torch.zeros(module.out_features, layers.rank),
        }
        return Factors(matrices, scale=(layers.rank if layers.alpha is None else layers.alpha) / layers.rank)

    def delta(self, name: str, matrices: Mapping[str, Tensor], factors: Factors) -> Delta:
        up = folded([matrices["mixer"], matrices["up"]])  # arXiv 2406.11909: s B M A = s (B M) A
        return Delta({"down": matrices["down"], "up": up}, factors.scale)
