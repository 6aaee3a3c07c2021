"""A LoRA as a network of its own: the frozen base with W + scale B A in place of some weights (arXiv 2106.09685).

It shares the base, which stays as it is, so teacher and student are one copy in memory: call the base for the teacher. Its
parameters and its state dict are the factors alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from distill.networks.lora.targets import find_layers
from distill.parallel import recompute
from gen.nn.low_rank import LowRankWeight, start_down
from gen.nn.registry import Config


class LoraConfig(Config):
    """scale = alpha / rank; alpha is the rank where it is not given. targets: ends of module names ("attn.qkv"); none: every
    linear layer inside the repeated blocks."""

    rank: int = Field(default=16, gt=0)
    alpha: float | None = Field(default=None, gt=0)
    targets: tuple[str, ...] = ()


class LoraNetwork(nn.Module):
    """`base` with trainable low-rank changes. Called as the base is; the same function as the base at the start (B = 0)."""

    base: nn.Module

    def __init__(self, base: nn.Module, config: LoraConfig):
        super().__init__()
        self.lora, self.scale = config, (config.alpha or config.rank) / config.rank
        object.__setattr__(self, "base", base)  # not a submodule: neither its parameters nor its weights are ours
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for name in find_layers(base, config.targets, key="lora.targets"):
            weight = base.get_parameter(f"{name}.weight")
            down = start_down(name, config.rank, weight.shape[1])
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            self.down[_key(name)] = nn.Parameter(down.to(weight.device, wide))
            self.up[_key(name)] = nn.Parameter(torch.zeros(weight.shape[0], config.rank, dtype=wide, device=weight.device))

    @property
    def names(self) -> list[str]:
        """The layers it changes."""
        return [key.replace("/", ".") for key in self.down]

    @contextmanager
    def weakened(self, share: float) -> Iterator[None]:
        """Inside, the changes count a share of what they do; gradients of such a call must be taken inside, too."""
        scale = self.scale
        self.scale = share * scale
        try:
            yield
        finally:
            self.scale = scale

    def enable_recompute(self) -> int:
        """Gradient checkpointing of the base's blocks; returns how many modules have it."""
        return recompute.enable(self.base)

    @property
    def config(self) -> Any:
        return self.base.config

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return functional_call(self.base, {f"{name}.weight": self.changed(name) for name in self.names}, args, kwargs)

    def changed(self, name: str) -> LowRankWeight:
        """W + scale B A of a layer, kept as its three parts."""
        weight = self.base.get_parameter(f"{name}.weight").detach()
        return LowRankWeight.of(weight, self.down[_key(name)], self.up[_key(name)], self.scale)

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A copy of the base with the changes in its weights."""
        whole = copy.deepcopy(self.base)
        for name in self.names:
            whole.get_parameter(f"{name}.weight").copy_(self.changed(name).whole())
        return whole

    def __deepcopy__(self, memo: dict[int, Any]) -> LoraNetwork:
        """A copy with factors of its own on the same base."""
        twin = type(self).__new__(type(self))
        nn.Module.__init__(twin)
        twin.lora, twin.scale = self.lora, self.scale
        object.__setattr__(twin, "base", self.base)
        twin.down, twin.up = copy.deepcopy(self.down, memo), copy.deepcopy(self.up, memo)
        return twin.train(self.training)

    def save(self, folder: Path, name: str = "lora") -> Path:
        """Write the factors as a peft folder, which `Generator.load_adapter` opens; returns the weights' path."""
        from gen.adapters import Adapter, Delta, write_adapter

        wrapped = "network." if getattr(self.base, "bridged", False) else ""  # our wrapper's name for it is not in the format
        layers = {
            f"denoiser.{layer.removeprefix(wrapped)}": Delta(
                {"down": self.down[_key(layer)].detach().cpu(), "up": self.up[_key(layer)].detach().cpu()}, self.scale
            )
            for layer in self.names
        }
        return write_adapter(Adapter(name, layers), folder, "peft")


def _key(name: str) -> str:
    return name.replace(".", "/")
