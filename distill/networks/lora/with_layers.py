"""A LoRA with some parameters of the base trained as a whole beside it, such as a last layer that the base did not have."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distill.networks.lora.overlay import LoraConfig, LoraNetwork


class LoraWithLayers(LoraNetwork):
    """As `LoraNetwork`, with the parameters `whole` of the base in copies that train. It is exported merged: factors alone are
    not all of it."""

    def __init__(self, base: nn.Module, config: LoraConfig, whole: Sequence[str]):
        super().__init__(base, config)
        self.layers = nn.ParameterDict(
            {name.replace(".", "/"): nn.Parameter(base.get_parameter(name).detach().float().clone()) for name in whole}
        )

    def replaced(self) -> dict[str, Tensor]:
        return {key.replace("/", "."): value for key, value in self.layers.items()}

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        changed = {f"{name}.weight": self.changed(name) for name in self.names}
        return functional_call(self.base, {**changed, **self.replaced()}, args, kwargs)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        network = super().merged()
        for name, value in self.replaced().items():
            network.get_parameter(name).copy_(value)
        return network

    def __deepcopy__(self, memo: dict[int, Any]) -> LoraWithLayers:
        twin = super().__deepcopy__(memo)
        twin.layers = copy.deepcopy(self.layers, memo)
        return twin  # type: ignore[return-value]

    def save(self, folder, name: str = "lora"):
        raise ValueError("This LoRA has layers beside it that no adapter's file holds: set objective.merge to true.")
