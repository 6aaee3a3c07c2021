"""A weight that is short for a larger sum: layers compute with its parts, and anything else sees the whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

# of what a tensor is like, the shared memory tells as much as the whole
ABOUT = {
    getattr(Tensor, name).__get__
    for name in ("shape", "dtype", "device", "ndim", "requires_grad", "is_leaf", "layout", "is_cuda")
} | {Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__}


class ReplacedWeight(Tensor):
    """It shares the memory of a frozen weight W. Subclasses give `whole`, the weight that it stands for, and `operation`."""

    def whole(self) -> Tensor:
        """The weight, a tensor like any other."""
        raise NotImplementedError

    @classmethod
    def operation(cls, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a layer's function gives for such a weight, from its parts; NotImplemented for any other function."""
        raise NotImplementedError

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = cls.operation(func, args, kwargs)
        if result is not NotImplemented:
            return result
        if func in ABOUT:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        args, kwargs = tree_map_only(cls, cls.whole, (args, kwargs))
        return func(*args, **kwargs)


@contextmanager
def replaced(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, parameters of a network have other values, by the names of `named_parameters`; outside, their own. For one
    thread at a time: the network itself is changed, so that parts of it may be called (`autoencoder.encode`)."""
    places: list[tuple[dict[str, Any], str]] = []
    for name in weights:
        path, _, last = name.rpartition(".")
        places.append((network.get_submodule(path)._parameters, last))
    before = [place[last] for place, last in places]
    try:
        for (place, last), weight in zip(places, weights.values(), strict=True):
            place[last] = weight
        yield
    finally:
        for (place, last), weight in zip(places, before, strict=True):
            place[last] = weight
