"""A denoiser with a joint adapter that trains as one network: called with pictures and their maps as rows of one batch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from distill.parallel import recompute
from gen.nn.joint import JointAdapter, JointAttention
from gen.nn.replaced_weight import replaced
from samplers.denoiser import Condition, Context
from samplers.hooks import check_reached


class JoinedNetwork(nn.Module):
    """`base`, frozen, with an `adapter` (`gen.nn.joint`) that joins the first half of the rows, pictures, to their maps.

    count: of pictures, where a batch holds pictures and maps several times, as guidance stacks its branches; half of its
    rows if None.
    """

    base: nn.Module

    def __init__(self, base: nn.Module, adapter: JointAdapter, count: int | None = None):
        super().__init__()
        object.__setattr__(self, "base", base)  # not a submodule: neither its parameters nor its weights are ours
        self.adapter, self.count = adapter, count

    @property
    def config(self) -> Any:
        return self.base.config

    def enable_recompute(self) -> int:
        """Gradient checkpointing of the base's blocks; returns how many modules have it."""
        return recompute.enable(self.base)

    def forward(self, x: Tensor, time: Tensor, condition: Condition, context: Context | None = None) -> Tensor:
        count = self.count or len(x) // 2
        is_map = (torch.arange(len(x), device=x.device) // count % 2).to(x.dtype)
        hooked = JointAttention(self.adapter, count).hooked(context or Context())
        with replaced(self.base, self.adapter.weights(self.base, is_map)):
            out: Tensor = self.base(x, time, condition, hooked)
        check_reached(hooked, "heads", "A joint adapter")
        return out

    def __deepcopy__(self, memo: dict[int, Any]) -> JoinedNetwork:
        """A copy with an adapter of its own on the same base."""
        return JoinedNetwork(self.base, copy.deepcopy(self.adapter, memo), self.count).train(self.training)
