"""Orthogonal Adaptation: concepts that are learned apart and merged without disturbing one another.

    D_i = A_i B_i^T,   B_i (in, r) frozen, A_i (out, r) trained

B_i are r columns of one orthogonal basis that all concepts share, so D_i D_j^T = A_i B_i^T B_j A_j^T is 0 wherever B_i and B_j
have no column in common, and what concept i makes of inputs in the span of B_i stays what it was when others are added. Here
concept i gets the i-th r columns: that holds for every pair of up to in / r concepts. Columns drawn at random (`bins: random`,
as published) leave no overlap only by luck: a shared column is as likely as not at usual sizes.

Merged by adding, each at about 0.6, as published: load the files and give each that weight.

Source: arXiv 2312.02432.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from customization.base.config import CustomizationConfig
from customization.methods.factors import FactorObjective, Factors, generator_of
from distill.networks.lora.peft_injection import AdapterConfig
from gen.adapters import Adapter, Delta

Bins = Literal["disjoint", "random"]


class OrthogonalLayers(AdapterConfig):
    """As a LoRA's. bins: which columns of the basis a concept has. basis: the seed of the basis, the same for all concepts
    that are to be merged."""

    rank: int = Field(default=20, gt=0, le=4096)
    bins: Bins = "disjoint"
    basis: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _plain(self) -> OrthogonalLayers:
        if self.type != "lora" or self.conv:
            raise ValueError("orthogonal adapters are plain LoRAs of linear layers; leave type and conv out")
        return self


class OrthogonalConfig(CustomizationConfig):
    """concept: its number, 0, 1, 2, ...; every concept that is to be merged needs its own."""

    adapter: OrthogonalLayers | None = Field(default_factory=lambda: OrthogonalLayers())
    concept: int = Field(ge=0)


def capacity(size: int, rank: int) -> int:
    """How many concepts fit into a layer of `size` inputs."""
    return size // rank


def columns(size: int, rank: int, concept: int, bins: Bins = "disjoint", seed: int = 0) -> list[int]:
    """The columns of the basis that a concept has in a layer of `size` inputs. ValueError where it has no room."""
    if rank > size:
        raise ValueError(f"rank is {rank}, and the layer has {size} inputs; lower rank.")
    if bins == "random":
        return torch.randperm(size, generator=generator_of(seed, "columns", size, concept))[:rank].tolist()
    if concept >= capacity(size, rank):
        raise ValueError(
            f"Concept {concept} has no columns left: layers of {size} inputs hold {capacity(size, rank)} concepts of rank "
            f"{rank}, numbers 0 to {capacity(size, rank) - 1}; lower rank, or exclude the narrow layers."
        )
    return list(range(concept * rank, (concept + 1) * rank))


@lru_cache(maxsize=16)
def basis(size: int, seed: int = 0) -> Tensor:
    """The shared orthogonal matrix (size, size), float64, uniform among them: a function of its size and seed."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator_of(seed, "basis", size), dtype=torch.float64))
    return q * r.diagonal().sign()


def directions(size: int, layers: OrthogonalLayers, concept: int) -> Tensor:
    """B_i^T (r, size)."""
    return basis(size, layers.basis)[:, columns(size, layers.rank, concept, layers.bins, layers.basis)].T.contiguous()


def crosstalk(adapters: Sequence[Adapter]) -> float:
    """The largest |D_i D_j^T| / (|D_i| |D_j|) of two adapters in one layer (Frobenius norms): 0 where none disturbs another."""
    worst = 0.0
    for i, first in enumerate(adapters):
        for second in adapters[i + 1 :]:
            for layer in first.layers.keys() & second.layers.keys():
                a, b = (_factors(one.layers[layer]) for one in (first, second))
                # |U_a D_a D_b^T U_b^T| from r x r matrices: |U X V^T| = |R_U X R_V^T| with U = Q R
                ra, rb = (torch.linalg.qr(up)[1] for up, _ in (a, b))
                size = [torch.linalg.norm(r @ down) for r, (_, down) in zip((ra, rb), (a, b), strict=True)]
                both = torch.linalg.norm(ra @ a[1] @ b[1].T @ rb.T)
                if size[0] * size[1] > 0:
                    worst = max(worst, (both / (size[0] * size[1])).item())
    return worst


def _factors(delta: Delta) -> tuple[Tensor, Tensor]:
    if delta.type != "LoRA":
        raise ValueError(f"Crosstalk is measured between LoRAs, and this layer has a {delta.type}.")
    return delta.factors["up"].double().flatten(1), delta.factors["down"].double().flatten(1)


class OrthogonalObjective(FactorObjective):
    config: OrthogonalConfig

    def factors(self, name: str, module: nn.Linear) -> Factors:
        layers = self.layers()
        assert isinstance(layers, OrthogonalLayers)
        try:
            down = directions(module.in_features, layers, self.config.concept).float()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        scale = (layers.rank if layers.alpha is None else layers.alpha) / layers.rank
        # arXiv 2312.02432, section 3: D_i = A_i B_i^T with B_i frozen, of one basis for all concepts
        return Factors({"down": down, "up": torch.zeros(module.out_features, layers.rank)}, ("down",), scale)

    def delta(self, name: str, matrices: Mapping[str, Tensor], factors: Factors) -> Delta:
        return Delta(dict(matrices), factors.scale)
