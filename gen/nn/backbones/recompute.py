"""Gradient checkpointing that sees the same weights twice.

A block's inside is computed again in the backward pass, so that only its input is kept. By then a weight that was put
into the block for the forward pass alone (by `functional_call`: a LoRA's product, a norm that trains, a detached copy, a shard
that was gathered) is gone from it; without it the gradients would be those of other weights. So what a block held in the
forward pass is kept, by reference, and put back for the second evaluation; so are the modes under which it was called, which
choose kernels (`gen.models.bridge.routed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

Weights = dict[tuple[nn.Module, str], Tensor]


def checkpointed(block: nn.Module, *args: Any, **options: Any) -> Any:
    """`block(*args, **options)`, of which nothing but the inputs is kept for the backward pass."""
    if not torch.is_grad_enabled():
        return block(*args, **options)
    held, modes = _held(block), _get_current_function_mode_stack()

    def evaluate(*args: Any) -> Any:
        with _put_back(held), _entered(modes):
            return block(*args, **options)

    return checkpoint(evaluate, *args, use_reentrant=False)


def _held(block: nn.Module) -> Weights:
    """The weights and buffers in a block now. Modules that gather their own shards are left out: their hooks do that again."""
    tensors: Weights = {}

    def visit(module: nn.Module) -> None:
        if hasattr(module, "set_requires_gradient_sync"):  # FSDP2's
            return
        for registered in (module._parameters, module._buffers):
            tensors.update({(module, name): value for name, value in registered.items() if value is not None})
        for child in module.children():
            visit(child)

    visit(block)
    return tensors


@contextmanager
def _put_back(held: Mapping[tuple[nn.Module, str], Tensor]) -> Iterator[None]:
    """Inside, modules have the weights that they had; nothing is done about those that are still there."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    for (module, name), value in held.items():
        place = module._parameters if name in module._parameters else module._buffers
        if place.get(name) is not value:
            replaced.append((place, name, place.get(name)))
            place[name] = value  # type: ignore[assignment]
    try:
        yield
    finally:
        for place, name, value in replaced:
            place[name] = value


@contextmanager
def _entered(modes: Sequence[TorchFunctionMode]) -> Iterator[None]:
    """Inside, the modes of the forward pass are there; nothing is done about those that still are."""
    there = _get_current_function_mode_stack()
    with ExitStack() as stack:
        for mode in modes:
            if not any(mode is other for other in there):
                stack.enter_context(mode)
        yield
