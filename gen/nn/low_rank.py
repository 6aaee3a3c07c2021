"""Low-rank changes of weights that a network has for one call: W + scale B A (arXiv 2106.09685), or W + scale D in full."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.nn.replaced_weight import ReplacedWeight
from samplers.noise import fold
from samplers.path import expand

Scale = float | Tensor  # one for a call, or one per sample (B,)


class LowRankWeight(ReplacedWeight):
    """A weight W + scale B A that a layer takes as y = W x + scale B (A x): no dense change is made, and its gradient reaches A
    and B alone, through vectors of the rank's length. Of a convolution, A is one of the same size with `rank` outputs, and B
    one of 1 x 1. Anything else than a layer sees the sum.

    It shares W's memory. A and B may be of a finer dtype than W: a small change would drown in bfloat16.
    """

    weight: Tensor
    down: Tensor
    up: Tensor | None
    scale: Scale

    @staticmethod
    def of(weight: Tensor, down: Tensor, up: Tensor | None, scale: Scale) -> LowRankWeight:
        """weight (out, in, ...), down (rank, in ...), flat, up (out, rank); None: the identity, for a change of full rank, down
        (out, in ...). scale: a number, or one for each sample of what the layer sees (B,)."""
        plain = type(weight) in (Tensor, nn.Parameter)  # one in fewer bits has no memory of its own to share
        carrier = weight if plain else torch.empty(1, dtype=weight.dtype, device=weight.device).expand(weight.shape)
        made = carrier.as_subclass(LowRankWeight)
        made.weight, made.down, made.up, made.scale = weight, down, up, scale
        return made

    def whole(self) -> Tensor:
        """The sum (out, in, ...), a tensor like any other. ValueError where each sample has a scale of its own."""
        if isinstance(self.scale, Tensor):
            raise ValueError("Samples have changes of their own here, and this layer takes one weight for all of them.")
        with torch.autocast(self.weight.device.type, enabled=False):
            change = self.down if self.up is None else self.up @ self.down
            return (self.weight.to(change.dtype) + self.scale * change.view(self.weight.shape)).to(self.weight.dtype)

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """What `torch.nn.functional.linear` gives for the sum."""
        y = F.linear(x, self.weight, bias)
        # arXiv 2106.09685, equation 3: h = W x + B A x
        change = F.linear(self._wide(x), self.down)
        change = change if self.up is None else F.linear(change, self.up)
        return y + (expand(self.scale, change) * change).to(y.dtype)

    def conv2d(self, x: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
        """What `torch.nn.functional.conv2d` gives for the sum. geometry: stride, padding, dilation."""
        y = F.conv2d(x, self.weight, bias, *geometry)
        down = self.down.view(len(self.down), *self.weight.shape[1:])
        change = F.conv2d(self._wide(x), down, None, *geometry)
        change = change if self.up is None else F.conv2d(change, self.up[:, :, None, None])
        return y + (expand(self.scale, change) * change).to(y.dtype)

    def _wide(self, x: Tensor) -> Tensor:
        return x if torch.is_autocast_enabled(x.device.type) else x.to(self.down.dtype)

    @classmethod
    def operation(cls, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        names = {F.linear: ("weight", "bias"), F.conv2d: ("weight", "bias", "stride", "padding", "dilation", "groups")}
        if function not in names:
            return NotImplemented
        usual = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
        given = usual | dict(zip(names[function], args[1:], strict=False)) | kwargs
        x = args[0] if args else kwargs["input"]
        weight = given["weight"]
        if not isinstance(weight, cls) or given["groups"] != 1:
            return NotImplemented
        if function is F.linear:
            return weight.linear(x, given["bias"])
        return weight.conv2d(x, given["bias"], given["stride"], given["padding"], given["dilation"])


def start_down(name: str, rank: int, width: int) -> Tensor:
    """The first A (rank, width) of a layer, a function of its name: uniform within 1 / sqrt(width)."""
    generator = torch.Generator().manual_seed(fold(0, "lora", name))
    # peft's and the paper's code: kaiming_uniform with a = sqrt(5)
    return (2 * torch.rand(rank, width, generator=generator) - 1) * (1 / math.sqrt(width))


class LowRankChanges(nn.Module):
    """Trainable changes of some layers of a network, which is neither held nor changed: `weights` gives what takes the place of
    its own for a call (`gen.nn.replaced_weight.replaced`). At first they change nothing (B = 0, D = 0).

    names: of linear layers and two-dimensional convolutions. rank: of A and B, at most what a layer has. full: names of layers
    whose whole weight may change instead. scale: of all changes of low rank.
    ValueError for a name that is no such layer.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], rank: int, full: Sequence[str] = (), scale: float = 1.0):
        super().__init__()
        self.scale = scale
        self.down, self.up, self.full = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for name in dict.fromkeys((*names, *full)):
            weight = layer_weight(network, name)
            wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
            outputs, width = len(weight), math.prod(weight.shape[1:])
            if name in full:
                self.full[_key(name)] = nn.Parameter(torch.zeros(outputs, width, dtype=wide, device=weight.device))
                continue
            own = min(rank, outputs, width)
            self.down[_key(name)] = nn.Parameter(start_down(name, own, width).to(weight.device, wide))
            self.up[_key(name)] = nn.Parameter(torch.zeros(outputs, own, dtype=wide, device=weight.device))

    @property
    def names(self) -> list[str]:
        """The layers that change."""
        return [key.replace("/", ".") for key in (*self.down, *self.full)]

    def weights(self, network: nn.Module, share: Scale = 1.0) -> dict[str, Tensor]:
        """The weights of a network with a share of the changes, by the names of its parameters. share: a number, or one for
        each sample (B,)."""
        made: dict[str, Tensor] = {}
        for name in self.names:
            weight, key = layer_weight(network, name).detach(), _key(name)
            if key in self.full:
                made[f"{name}.weight"] = LowRankWeight.of(weight, self.full[key], None, share)
            else:
                made[f"{name}.weight"] = LowRankWeight.of(weight, self.down[key], self.up[key], self.scale * share)
        return made


def layer_weight(network: nn.Module, name: str) -> Tensor:
    """The weight of a layer by its name; ValueError where there is no linear layer or convolution of this name."""
    try:
        layer = network.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        raise ValueError(f"{name!r:.200} is no linear layer or two-dimensional convolution of a {type(network).__name__}.")
    return layer.weight


def _key(name: str) -> str:
    return name.replace(".", "/")
