"""Custom Diffusion: the keys and values of cross-attention are tuned, whole, and a new word may be learned with them.

Text reaches the picture through these projections alone, some 5 % of a network, and tuning them suffices to teach a concept.
Pictures of the class keep it in place (`data.prior`, weight 1). The file holds whole differences of weights.

Source: arXiv 2212.04488.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor, nn

from customization.base.config import CustomizationConfig
from customization.methods.factors import FactorObjective, Factors
from gen.adapters import Delta

# ends of the names of projections from text to keys and values: ours, of diffusers' U-Nets and DiTs, of joint attention
ENDS = ("cross.kv", "attn2.to_k", "attn2.to_v", "add_k_proj", "add_v_proj")


class CustomDiffusionConfig(CustomizationConfig):
    """adapter must stay null: whole matrices are trained. targets: ends of module names instead of those of cross-attention."""

    adapter: None = None
    targets: tuple[str, ...] = Field(default=())


def key_value_layers(network: nn.Module, ends: tuple[str, ...] = ENDS) -> list[str]:
    """The linear layers that make keys and values of text. ValueError where a network has none."""
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and any(f".{name}".endswith(f".{end}") for end in ends)
    ]
    if not layers:
        raise ValueError(
            f"The denoiser has no layer that ends in {', '.join(ends)}: Custom Diffusion needs cross-attention to text; use "
            "lora, or name layers in targets."
        )
    return layers


class CustomDiffusionObjective(FactorObjective):
    config: CustomDiffusionConfig

    def targets(self) -> list[str]:
        return key_value_layers(self.parts["denoiser"], self.config.targets or ENDS)

    def factors(self, name: str, module: nn.Linear) -> Factors:
        # arXiv 2212.04488, section 3.1: W^k and W^v train, from W = W_0 + D with D = 0
        return Factors({"weight": torch.zeros(module.out_features, module.in_features)})

    def delta(self, name: str, matrices: Mapping[str, Tensor], factors: Factors) -> Delta:
        return Delta({"weight": matrices["weight"]})
