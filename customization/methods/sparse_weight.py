"""A weight of which some entries train: its gradient is made of those entries alone, one layer at a time.

    W = W_0 with the entries `index` of it replaced by `values`

Between forward and backward nothing of W's size is kept: the layer's whole weight is put together where it is used, and what
the backward pass finds of its gradient is cut down to the trained entries at once. So gradients and optimiser state are as
long as `values`, and beside the model's own weights one layer's are there at a time (SaRA's unstructured backpropagation,
arXiv 2409.06633, section 3.4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.nn.replaced_weight import ReplacedWeight

OPERATIONS = (F.linear, F.conv1d, F.conv2d)  # (x, weight, bias, ...)


class SparseWeight(ReplacedWeight):
    """It shares W_0's memory. Linear layers and convolutions take it as above; anything else sees W, differentiably."""

    base: Tensor
    index: Tensor  # type: ignore[assignment]  # of entries; a tensor's methods of these names are not called
    values: Tensor  # type: ignore[assignment]

    @staticmethod
    def of(base: Tensor, index: Tensor, values: Tensor) -> SparseWeight:
        """base: W_0; index (n,) into it as one long row; values (n,), of a finer dtype perhaps."""
        made = base.detach().as_subclass(SparseWeight)
        made.base, made.index, made.values = base.detach(), index, values
        return made

    def whole(self) -> Tensor:
        """W, a tensor like any other."""
        return replaced(self.base, self.index, self.values)

    @classmethod
    def operation(cls, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if function in OPERATIONS:
            names = ("input", "weight", "bias")
            given: list[Any] = [*args, *(kwargs.get(name) for name in names[len(args) :])]
            x, weight, bias, *rest = given
            options = {name: value for name, value in kwargs.items() if name not in names}
            if isinstance(weight, cls):
                return _Operation.apply(
                    x, weight.values, bias, weight.base, weight.index, lambda x, w, b: function(x, w, b, *rest, **options)
                )
        return NotImplemented


def replaced(base: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """W_0 with some entries replaced."""
    return base.flatten().index_put((index,), values.to(base.dtype)).reshape(base.shape)


class _Operation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        base: Tensor,
        index: Tensor,
        run: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    ) -> Tensor:
        y = run(x, replaced(base, index, values), bias)
        ctx.save_for_backward(x, values, bias, base, index)
        ctx.run, ctx.dtype = run, y.dtype
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, values, bias, base, index = ctx.saved_tensors
        inputs = [x.detach().to(ctx.dtype), replaced(base, index, values).to(ctx.dtype)]
        inputs += [] if bias is None else [bias.detach().to(ctx.dtype)]
        wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], bias is not None and ctx.needs_input_grad[2]]
        with torch.enable_grad():
            chosen = [one.requires_grad_() for one, needed in zip(inputs, wanted, strict=False) if needed]
            y = ctx.run(inputs[0], inputs[1], inputs[2] if bias is not None else None)
            found = list(torch.autograd.grad(y, chosen, grad))
        grads: list[Tensor | None] = [found.pop(0) if needed else None for needed in wanted]
        if grads[0] is not None:
            grads[0] = grads[0].to(x.dtype)
        if grads[1] is not None:
            # arXiv 2409.06633, section 3.4: of the weight's gradient only the trained entries are kept
            grads[1] = grads[1].flatten()[index].to(values.dtype)
        if grads[2] is not None:
            grads[2] = grads[2].to(bias.dtype)
        return (*grads, None, None, None)


class _Nuclear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, start: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
        wide = values.dtype if values.dtype == torch.float64 else torch.float32
        change = torch.zeros(shape.numel(), dtype=wide, device=values.device)
        change[index] = (values - start).to(wide)
        with torch.autocast(values.device.type, enabled=False):
            p, s, qt = torch.linalg.svd(change.reshape(shape[0], -1), full_matrices=False)
            kept = s > 1e-7 * s.max()
            ctx.save_for_backward((p[:, kept] @ qt[kept]).flatten()[index].to(values.dtype))
        return s[kept].sum().to(values.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad * ctx.saved_tensors[0], None, None, None


def nuclear_norm(values: Tensor, start: Tensor, index: Tensor, shape: torch.Size) -> Tensor:
    """|W - W_0|_* of a weight of a shape whose entries `index` went from `start` to `values` (n,); its gradient is P Q^T of the
    singular vectors whose value is not 0, there, so that it is finite at the start."""
    return _Nuclear.apply(values, start, index, shape)
