"""A weight that is short for a larger sum: layers compute with its parts, and anything else sees the whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
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
