"""A LoRA as a network of its own: the frozen base with W + scale B A in place of some weights (arXiv 2106.09685).

It shares the base, which stays as it is, so teacher and student are one copy in memory: call the base for the teacher. Its
parameters and its state dict are the factors alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from distill.networks.lora.targets import find_layers
from distill.networks.replaced_weight import ReplacedWeight
from distill.parallel import recompute
from gen.nn.registry import Config
from samplers.noise import fold


class LoraConfig(Config):
    """scale = alpha / rank; alpha is the rank where it is not given. targets: ends of module names ("attn.qkv"); none: every
    linear layer inside the repeated blocks."""

    rank: int = Field(default=16, gt=0)
    alpha: float | None = Field(default=None, gt=0)
    targets: tuple[str, ...] = ()


class LowRankWeight(ReplacedWeight):
    """A weight W + scale B A (out, in) that a linear layer takes as y = W x + scale B (A x): no dense change is made, and its
    gradient reaches A and B alone, through vectors of the rank's length. Anything else than a linear layer sees the sum.

    It shares W's memory. A and B may be of a finer dtype than W: a small change would drown in bfloat16.
    """

    weight: Tensor
    down: Tensor
    up: Tensor
    scale: float

    @staticmethod
    def of(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> LowRankWeight:
        """weight (out, in), down (rank, in), up (out, rank)."""
        plain = type(weight) in (Tensor, nn.Parameter)  # one in fewer bits has no memory of its own to share
        carrier = weight if plain else torch.empty(1, dtype=weight.dtype, device=weight.device).expand(weight.shape)
        made = carrier.as_subclass(LowRankWeight)
        made.weight, made.down, made.up, made.scale = weight, down, up, scale
        return made

    def whole(self) -> Tensor:
        """The sum (out, in), a tensor like any other."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return (self.weight.to(self.up.dtype) + self.scale * (self.up @ self.down)).to(self.weight.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What `torch.nn.functional.linear` gives for the sum."""
        y = F.linear(x, self.weight, bias)
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.down.dtype)
        # arXiv 2106.09685, equation 3: h = W x + B A x
        return y + (self.scale * F.linear(F.linear(x, self.down), self.up)).to(y.dtype)

    @classmethod
    def operation(cls, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function is F.linear:
            x, weight, *rest = (*args, *(kwargs[name] for name in ("weight", "bias") if name in kwargs))
            if isinstance(weight, cls):
                return weight.linear(x, rest[0] if rest else None)
        return NotImplemented


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
        twin = LoraNetwork.__new__(LoraNetwork)
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
