"""Layers of our own beside frozen ones: a product of small matrices acts on a linear layer's input and is added to its output.

    y = W x + b + s F_n ... F_2 F_1 x

The factors are parameters (or buffers, where they stay as they are) of the layer itself, so that nothing else about the network
changes: names, weights, and who calls whom.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from customization.base.objective import CustomizationObjective
from distill.networks.lora.peft_injection import AdapterConfig, find_targets
from gen.adapters import Adapter, Delta
from samplers.noise import fold

PREFIX = "taught_"


@dataclass(frozen=True)
class Factors:
    """Of one layer: matrices by name, the first to act on the input first; fixed: those that do not train; the scale s."""

    matrices: Mapping[str, Tensor]
    fixed: tuple[str, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True)
class Product:
    """The forward hook that adds s F_n ... F_1 x, computed in the factors' dtype."""

    names: tuple[str, ...]
    scale: float

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        y = args[0]
        for name in self.names:
            factor = getattr(module, PREFIX + name)
            y = F.linear(y.to(factor.dtype), factor)
        return output + (self.scale * y).to(output.dtype)


def attach(module: nn.Linear, factors: Factors) -> dict[str, nn.Parameter]:
    """Put factors beside a linear layer; returns those that train, by their names in the layer.

    ValueError for another kind of layer, for factors that do not fit it, and for a layer that has some already.
    """
    if not isinstance(module, nn.Linear):
        raise ValueError(f"Factors go beside linear layers; this is a {type(module).__name__}.")
    if any(hasattr(module, PREFIX + name) for name in factors.matrices):
        raise ValueError("The layer is being taught already; open the model anew.")
    width = module.in_features
    for name, factor in factors.matrices.items():
        if factor.ndim != 2 or factor.shape[1] != width:
            raise ValueError(
                f"The factor {name!r} is {tuple(factor.shape)}, and gets {width} numbers; make its second side that."
            )
        width = len(factor)
    if width != module.out_features:
        raise ValueError(f"The factors end in {width} numbers, and the layer has {module.out_features} outputs.")
    device, found = module.weight.device, {}
    for name, factor in factors.matrices.items():
        value = factor.detach().to(device, copy=True)
        if name in factors.fixed:
            module.register_buffer(PREFIX + name, value, persistent=False)
        else:
            found[PREFIX + name] = nn.Parameter(value)
            module.register_parameter(PREFIX + name, found[PREFIX + name])
    module.register_forward_hook(Product(tuple(factors.matrices), factors.scale))
    return found


def folded(matrices: Sequence[Tensor]) -> Tensor:
    """F_n ... F_1 of factors in the order in which they act; the product is taken in float64."""
    product = matrices[0].double()
    for factor in matrices[1:]:
        product = factor.double() @ product
    return product.to(matrices[0].dtype)


def generator_of(seed: int, *what: Any) -> torch.Generator:
    """Random numbers of a run's seed, for one purpose."""
    return torch.Generator().manual_seed(fold(seed, *what))


def kaiming(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """A first factor as LoRA draws it: uniform in +-1 / sqrt(columns)."""
    return (torch.rand(rows, columns, generator=generator) * 2 - 1) / columns**0.5


class FactorObjective(CustomizationObjective):
    """A method that teaches the denoiser by factors of its own; text encoders get what the config says, from peft.

    A subclass says which layers (`targets`), with which `factors`, and what these come to (`delta`).
    """

    def targets(self) -> list[str]:
        """The names of the layers that are taught."""
        return find_targets(self.parts["denoiser"], self.layers())

    def layers(self) -> AdapterConfig:
        adapter = self.config.adapter
        if adapter is None:
            raise ValueError("This method trains the denoiser; give adapter, with a rank for example.")
        config = self.config
        unread = [name for name, given in (("adapter.ranks", adapter.ranks), ("start", config.start)) if given]
        if unread or config.up_rate != 1:
            what = " and ".join([*unread, *(["up_rate"] if config.up_rate != 1 else [])])
            raise ValueError(f"{what}: this method has factors of its own, of one rank and rate; leave it out, or use lora.")
        return adapter

    def factors(self, name: str, module: nn.Linear) -> Factors:
        raise NotImplementedError

    def delta(self, name: str, matrices: Mapping[str, Tensor], factors: Factors) -> Delta:
        """The change of a layer that these matrices, trained and fixed, make."""
        raise NotImplementedError

    def adapted(self) -> dict[str, AdapterConfig]:
        return {part: settings for part, settings in super().adapted().items() if part != "denoiser"}

    def attach(self) -> dict[str, nn.Parameter]:
        network = self.parts["denoiser"]
        self._factors: dict[str, Factors] = {}
        trained: dict[str, nn.Parameter] = {}
        for name in self.targets():
            module: Any = network.get_submodule(name)
            self._factors[name] = self.factors(name, module)
            trained |= {f"denoiser.{name}.{key}": value for key, value in attach(module, self._factors[name]).items()}
        return trained | super().attach()

    def to_adapter(self, values: Mapping[str, Tensor]) -> Adapter:
        layers: dict[str, Delta] = {}
        for name, factors in self._factors.items():
            trained = {key: values.get(f"denoiser.{name}.{PREFIX}{key}", start) for key, start in factors.matrices.items()}
            layers[f"denoiser.{name}"] = self.delta(name, {k: v.detach().cpu() for k, v in trained.items()}, factors)
        rest = super().to_adapter(values)
        return Adapter(self.config.name, layers | dict(rest.layers), words=rest.words)
