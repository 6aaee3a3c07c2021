"""Networks that are built to be filled from a file: without drawing their first weights, and no larger than the file.

Both are modes of the thread that builds (`torch.overrides.TorchFunctionMode`), so other threads may build, draw or train.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

SLACK = 1 << 20  # numbers that a network may have beside its file's: tables that are computed and not stored


_state = threading.local()


class TooLarge(ValueError):
    """A config asks for more than the weights that are to fill it."""


class _NoInitialisation(TorchFunctionMode):
    """Random draws into a tensor give zeros; those of `torch.nn.init`'s own rules leave it as it is."""

    RULES: ClassVar = {nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_}
    DRAWS: ClassVar = {Tensor.normal_, Tensor.uniform_}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in self.RULES or func in self.DRAWS:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if func in self.RULES:
                return tensor
            with torch.no_grad():
                return tensor.zero_()  # within whatever bounds the caller draws again for
        return func(*args, **(kwargs or {}))


def initialise(rule: Callable[..., Any], tensor: Tensor | None, **options: Any) -> None:
    """A first value of a weight, by a function of `torch.nn.init`; nothing for None, the bias of a layer without one, and
    nothing inside `no_initialisation`, where not even the weight's memory is touched."""
    if tensor is not None and not getattr(_state, "skipping", False):
        rule(tensor, **options)


def xavier_linears(network: nn.Module) -> None:
    """Xavier's rule for the weights of all linear layers of a network, and biases of zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            initialise(nn.init.xavier_uniform_, module.weight)
            initialise(nn.init.zeros_, module.bias)


class _NoLargerThan(TorchFunctionMode):
    """Counts the numbers of new tensors, and refuses the one that goes beyond the limit before it has memory."""

    FACTORIES: ClassVar = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full}

    def __init__(self, limit: int):
        super().__init__()
        self.left = limit

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in self.FACTORIES:
            size: Any = (kwargs or {}).get("size", args)
            size = size[0] if len(size) and isinstance(size[0], Sequence) else size
            shape = [side for side in size if isinstance(side, int)]
            self.left -= math.prod(shape)
            if self.left < 0:
                raise TooLarge(f"asks for a tensor {tuple(shape)}, with which the network is larger than its weights")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_initialisation() -> Iterator[None]:
    """Inside, nothing is drawn in this thread: weights that a file will overwrite need not be drawn first, which takes
    longer than reading them. (The meta device would do, but its first use imports for two seconds.)"""
    before, _state.skipping = getattr(_state, "skipping", False), True
    try:
        with _NoInitialisation():
            yield
    finally:
        _state.skipping = before


@contextmanager
def sizes_only() -> Iterator[None]:
    """Inside, models that this thread opens have no weights: their tensors are on the meta device, and files are not read
    beyond their headers."""
    before, _state.sizes = getattr(_state, "sizes", False), True
    try:
        yield
    finally:
        _state.sizes = before


def wants_sizes_only() -> bool:
    """Is this inside of `sizes_only`?"""
    return getattr(_state, "sizes", False)


@contextmanager
def opening_on(device: torch.device) -> Iterator[None]:
    """Inside, networks that this thread opens have their weights on a device, to which each tensor goes as it is read."""
    before, _state.device = opening_device(), device
    try:
        yield
    finally:
        _state.device = before


def opening_device() -> torch.device:
    """That of `opening_on`; the CPU outside of it."""
    return getattr(_state, "device", torch.device("cpu"))


def place_unfilled(network: nn.Module) -> nn.Module:
    """The network with parameters on `opening_device`, which a file is to fill: what they hold is not copied."""
    device = opening_device()
    for module in network.modules() if device.type != "cpu" else ():
        for name, value in module._parameters.items():
            if value is not None:
                empty = torch.empty(value.shape, dtype=value.dtype, device=device)
                module._parameters[name] = nn.Parameter(empty, requires_grad=value.requires_grad)
        for name, held in module._buffers.items():
            module._buffers[name] = None if held is None else held.to(device)
    return network


@contextmanager
def no_larger_than(shapes: Mapping[str, Sequence[int]], factor: int = 1) -> Iterator[None]:
    """Inside, new tensors of this thread may hold `factor` times as many numbers as a file's (its shapes by name) and
    `SLACK` more. TooLarge, in words that follow the name of a config, refuses the next one before it is allocated."""
    with _NoLargerThan(factor * sum(math.prod(shape) for shape in shapes.values()) + SLACK):
        yield


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside, parameters of new networks are on the meta device; buffers are as ever."""
    from accelerate import init_empty_weights

    with init_empty_weights():
        yield
