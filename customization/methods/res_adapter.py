"""ResAdapter: pictures of sizes that a model was not trained at, by a LoRA on its resamplers and trained norms.

Convolutions that halve and double the resolution of a U-Net see how large things are, and the group norms of its residual
blocks how they are distributed; the rest, which knows what things look like, stays. Batches have one size each, x with
probability

    p(x) = |x - s|^2 / sum_i |x_i - s|^2

so that sizes far from the model's own, s, come often, and s itself never (`customization.size_sampling`). The file has a
LoRA of the resamplers and whole differences of the norms. Networks without resamplers, which the paper does not treat, are
taught where pictures become tokens and tokens pictures, and at those norms that have weights.

Source: arXiv 2403.02084; published: 20,000 steps of 32 pictures at a learning rate of 1e-4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from customization.base.config import CustomizationConfig
from customization.base.objective import CustomizationObjective
from distill.networks.lora.peft_injection import AdapterConfig
from distill.networks.lora.targets import ends_in
from gen.adapters import Adapter, Delta

RESAMPLERS = ("downsamplers.0.conv", "upsamplers.0.conv")
EDGES = ("patch_embed", "head", "final_conv", "pos_embed.proj", "proj_out")  # of transformers, ours and diffusers'
RESNET_NORM = re.compile(r"(^|\.)resnets\.\d+\.norm[12]$")


class ResAdapterLayers(AdapterConfig):
    """As a LoRA's, of convolutions too. targets: ends of module names instead of those of the resamplers."""

    conv: bool = True

    @model_validator(mode="after")
    def _convolutions(self) -> ResAdapterLayers:
        if not self.conv or self.type not in ("lora", "rslora", "dora"):
            raise ValueError("ResAdapter is a LoRA of convolutions; leave conv out, and give type lora, rslora or dora")
        return self


class ResAdapterConfig(CustomizationConfig):
    """norms: train them too."""

    adapter: ResAdapterLayers | None = Field(default_factory=lambda: ResAdapterLayers())
    norms: bool = True


def resamplers(network: nn.Module, ends: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The layers that get a LoRA. ValueError where a network has none."""
    known = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    for wanted in (ends,) if ends else (RESAMPLERS, EDGES):
        if found := tuple(name for name in known if ends_in(name, wanted)):
            return found
    wanted_ends = ", ".join(ends or (*RESAMPLERS, *EDGES))
    raise ValueError(f"The denoiser has no layer that ends in {wanted_ends}; name some in adapter.targets.")


def norms(network: nn.Module) -> list[str]:
    """The norms that train: the group norms of residual blocks; of a network without these, every norm with weights."""
    known = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.GroupNorm | nn.LayerNorm) and module.weight is not None
    ]
    return [name for name in known if RESNET_NORM.search(name)] or known


class ResAdapterObjective(CustomizationObjective):
    config: ResAdapterConfig

    def adapted(self) -> dict[str, AdapterConfig]:
        adapted = super().adapted()
        if (own := adapted.get("denoiser")) is not None:
            adapted["denoiser"] = own.model_copy(update={"targets": self._targets})
        return adapted

    def attach(self) -> dict[str, nn.Parameter]:
        network = self.parts["denoiser"]
        if self.config.adapter is not None:  # asked of the network as it was, before peft renames its layers
            self._targets = resamplers(network, self.config.adapter.targets)
        names = norms(network) if self.config.norms else []
        self._before: dict[str, dict[str, Tensor]] = {
            name: {key: value.detach().clone() for key, value in network.get_submodule(name).named_parameters(recurse=False)}
            for name in names
        }
        norm_parameters = {
            f"denoiser.{n}.{key}": nn.Parameter(v.to(torch.float32, copy=True))
            for n, norm in self._before.items()
            for key, v in norm.items()
        }
        return super().attach() | norm_parameters

    def to_adapter(self, values: Mapping[str, Tensor]) -> Adapter:
        changed = {
            f"denoiser.{name}": Delta({key: (values[f"denoiser.{name}.{key}"] - v).detach().cpu() for key, v in before.items()})
            for name, before in self._before.items()
        }
        rest = {name: value for name, value in values.items() if name.rpartition(".")[0] not in changed}
        made = super().to_adapter(rest)
        return Adapter(made.name, {**made.layers, **changed}, {}, words=made.words)
