"""A LoRA as a network of its own: the frozen base with W + scale B A in place of some weights (arXiv 2106.09685).

It shares the base, which stays as it is, so teacher and student are one copy in memory: call the base for the teacher. Its
parameters and its state dict are the factors alone.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from gen.nn.registry import Config
from samplers.lookup import nearest
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
            near = nearest(target, ends)
            hint = f"did you mean {near!r}?" if near else f"its layers end in {', '.join(ends[:8])}."
            raise ValueError(f"lora.targets names {target!r}, but no linear layer of this network ends in it; {hint}")
    return [name for name in linear if any(f".{name}".endswith(f".{target}") for target in targets)]


class LowRankWeight(Tensor):
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
        made = weight.as_subclass(LowRankWeight)
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
        return y + (self.scale * F.linear(F.linear(x, self.down), self.up)).to(y.dtype)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if func is F.linear:
            x, weight, *rest = (*args, *(kwargs[name] for name in ("weight", "bias") if name in kwargs))
            if isinstance(weight, cls):
                return weight.linear(x, rest[0] if rest else None)
        if func in _ABOUT:  # of what it is like, W tells as much as the sum
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        args, kwargs = tree_map_only(cls, cls.whole, (args, kwargs))
        return func(*args, **kwargs)


_ABOUT = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "layout", "is_cuda")
} | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__}


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

    def enable_recompute(self) -> int:
        """Gradient checkpointing of the base's blocks; returns how many modules have it."""
        from distill.parallel import recompute

        return recompute.enable(self.base)

    @property
    def config(self) -> Any:
        return self.base.config

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return functional_call(self.base, {f"{name}.weight": self.changed(name) for name in self.names}, args, kwargs)

    def changed(self, name: str) -> LowRankWeight:
        """W + scale B A of a layer, kept as its three parts."""
        weight = self.base.get_submodule(name).weight.detach()
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
