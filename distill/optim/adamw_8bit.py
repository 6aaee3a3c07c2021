"""AdamW whose two averages are kept in eight bits (Dettmers et al. 2021, arXiv 2110.02861): blocks of numbers with a scale, on
any device.

A number is a place in a fixed list of 256 of -1 to 1, dense near zero (the paper's dynamic type), times the largest absolute
value of its block. An update computes in float32 and rounds what it keeps. Checkpoints hold the numbers in float32, which
round to the same places again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from distill.optim.kept_state import KeptState
from distill.optimizer_config import AdamW8bitOptions, OptimizerConfig
from distill.parallel.shards import is_sharded, local


def dynamic_map(signed: bool) -> Tensor:
    """The 256 values, rising: 10^-k, k = 0 ... 6, times the middles of equal parts of 0.1 ... 1, twice as many parts for each
    step up; then 0 and 1. Signed ones end at -1, not just above it, so that a block's largest number is kept whatever its
    sign."""
    values = [0.0, 1.0]
    for k in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (6 - k + (not signed)) + 1, dtype=torch.float64)
        middles = 10.0**-k * (edges[:-1] + edges[1:]) / 2
        values += [*middles.tolist(), *((-middles).tolist() if signed else [])]
    values.sort()
    if signed:
        values[0] = -1.0
    return torch.tensor(values, dtype=torch.float32)


class Blocks(NamedTuple):
    """Numbers in eight bits. places: uint8 (blocks, size of one), the last one filled up. scales: float32 (blocks, 1)."""

    places: Tensor
    scales: Tensor


def to_blocks(x: Tensor, block: int, values: Tensor) -> Blocks:
    """The nearest of `values` times each block's largest absolute value. Of values that begin at 0, a number above zero stays
    above it: an update divides by its root."""
    flat = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % block)).view(-1, block)
    scales = flat.abs().amax(1, keepdim=True)
    between = (values[1:] + values[:-1]) / 2
    shares = flat / torch.where(scales > 0, scales, 1)
    places = torch.bucketize(shares, between, out_int32=True)
    return Blocks(torch.where((shares > 0) & (values[0] == 0), places.clamp(min=1), places).to(torch.uint8), scales)


def from_blocks(blocks: Blocks, shape: torch.Size, values: Tensor) -> Tensor:
    numbers = values[blocks.places.int()] * blocks.scales
    return numbers.flatten()[: shape.numel()].view(shape)


SIGNED = {"exp_avg": True, "exp_avg_sq": False}


def park(x: Tensor) -> Tensor:
    """In the CPU's memory, page-locked, from where a GPU fetches it without the CPU's help; a tensor of the CPU's as it is."""
    if x.device.type == "cpu":
        return x
    kept = torch.empty(x.shape, dtype=x.dtype, pin_memory=x.is_cuda)
    return kept.copy_(x, non_blocking=x.is_cuda)  # in the order of the stream, as is the fetch for the next update


def fetch(x: Tensor, device: torch.device) -> Tensor:
    return x.to(device, non_blocking=True)


class AdamW8bit(KeptState, torch.optim.Optimizer):
    """AdamW (decoupled decay, bias corrections) on averages that are kept in blocks."""

    shared: ClassVar[tuple[str, ...]] = ("step",)

    def __init__(self, groups: Any, config: OptimizerConfig):
        self.options: AdamW8bitOptions = config.own()
        self.maps: dict[tuple[bool, torch.device], Tensor] = {}
        shared = {"lr": config.lr, "betas": config.betas, "weight_decay": config.weight_decay, "eps": config.eps}
        super().__init__(groups, shared)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            (beta1, beta2), step = group["betas"], group["step"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                weights, gradient = local(parameter), local(parameter.grad)
                state = self.state[parameter]
                m, v = (self._unpacked(state[name], name, weights) if state else torch.zeros_like(weights) for name in SIGNED)
                m.lerp_(gradient, 1 - beta1)
                v.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                deep = (v / (1 - beta2**step)).sqrt_().add_(group["eps"])
                weights.mul_(1 - group["lr"] * group["weight_decay"])
                weights.addcdiv_(m, deep, value=-group["lr"] / (1 - beta1**step))
                self._pack({"exp_avg": m, "exp_avg_sq": v}, parameter)

    def _map(self, name: str, device: torch.device) -> Tensor:
        key = SIGNED[name], device
        if key not in self.maps:
            self.maps[key] = dynamic_map(SIGNED[name]).to(device)
        return self.maps[key]

    def _pack(self, numbers: Mapping[str, Tensor], parameter: Tensor) -> None:
        for name, x in numbers.items():
            small = x.numel() < self.options.smallest
            kept = x if small else to_blocks(x, self.options.block, self._map(name, x.device))
            if self.options.paged:
                kept = park(kept) if isinstance(kept, Tensor) else Blocks(*map(park, kept))
            self.state[parameter][name] = kept

    def _unpacked(self, kept: Tensor | Blocks, name: str, like: Tensor) -> Tensor:
        if self.options.paged:
            kept = fetch(kept, like.device) if isinstance(kept, Tensor) else Blocks(*(fetch(x, like.device) for x in kept))
        return kept if isinstance(kept, Tensor) else from_blocks(kept, like.shape, self._map(name, like.device))

    def tensors(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        return {name: _cut_as(self._unpacked(state[name], name, local(parameter)), parameter) for name in SIGNED}

    def put(self, slots: Mapping[str, Tensor], parameter: Tensor) -> None:
        self._pack({name: local(slots[name]).float() for name in SIGNED}, parameter)

    def bytes_of(self, parameter: Tensor) -> int:
        if self.options.paged and parameter.device.type != "cpu":
            return 0
        count, block = local(parameter).numel(), self.options.block
        return 2 * (4 * count if count < self.options.smallest else -(-count // block) * (block + 4))


def _cut_as(part: Tensor, parameter: Tensor) -> Tensor:
    """This process's part of a tensor that is cut as the parameter is."""
    if not is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    cut: Any = parameter
    return DTensor.from_local(part, cut.device_mesh, cut.placements, shape=cut.shape, stride=cut.stride())


def adamw_8bit(groups: list[dict[str, Any]], config: OptimizerConfig, steps: int) -> torch.optim.Optimizer:
    return AdamW8bit(groups, config)
