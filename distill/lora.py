"""A LoRA as a network of its own: the frozen base with W + scale B A in place of some weights (arXiv 2106.09685).

It shares the base, which stays as it is, so teacher and student are one copy in memory: call the base for the teacher. Its
parameters and its state dict are the factors alone.
"""

from __future__ import annotations

import copy
import difflib
import math
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from gen.components import Config
from samplers.noise import fold


class LoraConfig(Config):
    """scale = alpha / rank; alpha is the rank where it is not given. targets: ends of module names ("attn.qkv"); none: every
    linear layer inside the repeated blocks."""

    rank: int = Field(16, gt=0)
    alpha: float | None = Field(None, gt=0)
    targets: tuple[str, ...] = ()


def find_targets(base: nn.Module, targets: tuple[str, ...]) -> list[str]:
    """Names of the linear layers of `base` that end in one of `targets`. ValueError for one that no layer ends in."""
    linear = [name for name, module in base.named_modules() if isinstance(module, nn.Linear)]
    if not targets:
        found = [name for name in linear if any(part.isdigit() for part in name.split("."))]
        if not found:
            raise ValueError("This network has no linear layers in repeated blocks; name the layers in lora.targets.")
        return found
    for target in targets:
        if not any(f".{name}".endswith(f".{target}") for name in linear):
            ends = sorted({end for name in linear for end in (name, name.rpartition(".")[2], ".".join(name.split(".")[-2:]))})
            near = difflib.get_close_matches(target, ends, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"its layers end in {', '.join(ends[:8])}."
            raise ValueError(f"lora.targets names {target!r}, but no linear layer of this network ends in it; {hint}")
    return [name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)]


class LoraNetwork(nn.Module):
    """`base` with trainable low-rank changes. Called as the base is; the same function as the base at the start (B = 0)."""

    def __init__(self, base: nn.Module, config: LoraConfig):
        super().__init__()
        self.lora, self.scale = config, (config.alpha or config.rank) / config.rank
        object.__setattr__(self, "base", base)  # not a submodule: neither its parameters nor its weights are ours
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name in find_targets(base, config.targets):
            weight = base.get_submodule(name).weight
            generator = torch.Generator().manual_seed(fold(0, "lora", name))
            bound = 1 / math.sqrt(weight.shape[1])  # peft's and the paper's code: kaiming_uniform with a = sqrt(5)
            down = (2 * torch.rand(config.rank, weight.shape[1], generator=generator) - 1) * bound
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            self.down[_key(name)] = nn.Parameter(down.to(weight.device, wide))
            self.up[_key(name)] = nn.Parameter(torch.zeros(weight.shape[0], config.rank, dtype=wide, device=weight.device))

    @property
    def names(self) -> list[str]:
        """The layers it changes."""
        return [key.replace("/", ".") for key in self.down]

    @property
    def config(self) -> Any:
        return self.base.config

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return functional_call(self.base, self.weights(), args, kwargs)

    def weights(self) -> dict[str, Tensor]:
        """The changed weights by name."""
        changed = {}
        for name in self.names:
            weight, down, up = self.base.get_submodule(name).weight.detach(), self.down[_key(name)], self.up[_key(name)]
            with torch.autocast(weight.device.type, enabled=False):  # a small change would drown in bfloat16
                changed[f"{name}.weight"] = (weight.to(up.dtype) + self.scale * (up @ down)).to(weight.dtype)
        return changed

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A copy of the base with the changes in its weights."""
        whole = copy.deepcopy(self.base)
        for name, value in self.weights().items():
            whole.get_parameter(name).copy_(value)
        return whole

    def __deepcopy__(self, memo: dict[int, Any]) -> LoraNetwork:
        """A copy with factors of its own on the same base."""
        twin = LoraNetwork.__new__(LoraNetwork)
        nn.Module.__init__(twin)
        twin.lora, twin.scale = self.lora, self.scale
        object.__setattr__(twin, "base", self.base)
        twin.down, twin.up = copy.deepcopy(self.down, memo), copy.deepcopy(self.up, memo)
        return twin.train(self.training)

    def save(self, folder: Path, name: str = "lora") -> Path:
        """Write the factors as a peft folder, which `Generator.load_adapter` opens; returns the weights' path."""
        from gen.adapters import Adapter, Delta, write_adapter

        layers = {
            f"denoiser.{layer}": Delta(
                {"down": self.down[_key(layer)].detach().cpu(), "up": self.up[_key(layer)].detach().cpu()}, self.scale
            )
            for layer in self.names
        }
        return write_adapter(Adapter(name, layers), folder, "peft")


def _key(name: str) -> str:
    return name.replace(".", "/")
