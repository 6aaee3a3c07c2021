"""A pool of many small discriminators on the features of a frozen network, of which a step asks a few.

Heads differ in what they see: the block whose tokens they read, the noise level at which, whether the network was told the
condition, and whether they judge the whole picture or every place. Several of each kind stand side by side, and a share of them
begins anew at every step, so that no head stays long enough to learn the data by heart. Source: NitroFusion, arXiv 2412.02030.

Heads of one block are one tensor: those that a step does not ask have a gradient of zero. Train them by an Adam with
betas: [0, ...], or momentum moves them all the same. A head that begins anew keeps the second moment that the
optimiser has there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.parallel.shards import local, shard_like
from samplers.noise import fold


class HeadKind(NamedTuple):
    """What a head judges: whole pictures by the mean of their tokens, or every place; by features of the condition, or not."""

    whole: bool
    conditional: bool


KINDS = (HeadKind(True, True), HeadKind(False, True), HeadKind(False, False))


class HeadPool(nn.Module):
    """widths: D of the tokens of each block. levels: how many noise levels there are heads for. members: heads of one block,
    level and kind. hidden: width of a head, which is a two-layer perceptron on normalised tokens."""

    def __init__(self, widths: Sequence[int], levels: int, members: int, hidden: int):
        super().__init__()
        self.levels, self.members, self.hidden = levels, members, hidden
        self.each = levels * len(KINDS) * members  # heads of a block
        self.blocks = nn.ModuleList(nn.ParameterDict(self._new(block, width, 0)) for block, width in enumerate(widths))

    @property
    def size(self) -> int:
        """How many heads there are."""
        return self.each * len(self.blocks)

    def _new(self, block: int, width: int, time: int) -> dict[str, Tensor]:
        """Initial weights of a block's heads, the same whenever they are asked for. time: which of their lives it is."""
        generator = torch.Generator().manual_seed(fold(0, "pool", block, time))

        def uniform(*shape: int, inputs: int) -> Tensor:
            return (2 * torch.rand(shape, generator=generator) - 1) * inputs**-0.5

        return {
            "first": uniform(self.each, width, self.hidden, inputs=width),
            "bias": torch.zeros(self.each, self.hidden),
            "last": uniform(self.each, self.hidden, inputs=self.hidden),
            "shift": torch.zeros(self.each),
        }

    def asked(self, key: int, count: int) -> tuple[int, Tensor]:
        """(the level that a step looks at, the numbers (kinds, count) of the heads that it asks in every block). key: of the
        step; the same for both networks' updates and on all processes."""
        generator = torch.Generator().manual_seed(key)
        level = int(torch.randint(self.levels, (), generator=generator))
        rows = [torch.randperm(self.members, generator=generator)[:count] for _ in KINDS]
        starts = [(level * len(KINDS) + kind) * self.members for kind in range(len(KINDS))]
        return level, torch.stack([row + start for row, start in zip(rows, starts, strict=True)])

    def forward(self, features: Sequence[Tensor], asked: Tensor) -> Tensor:
        """Logits (B, N), above 0 for real, every head counting alike.

        features: tokens (B, L, D) of every block of the network that was told the condition, then of the one that was not.
        asked: as `asked` gives.
        """
        told, untold = features[: len(self.blocks)], features[len(self.blocks) :]
        found = []
        for block, *pair in zip(self.blocks, told, untold, strict=True):
            weights = cast("nn.ParameterDict", block)
            normalised = [F.layer_norm(tokens, tokens.shape[-1:]) for tokens in pair]
            for kind, numbers in zip(KINDS, asked.to(pair[0].device), strict=True):
                tokens = normalised[0 if kind.conditional else 1]
                length = tokens.shape[1]
                tokens = tokens.mean(1, keepdim=True) if kind.whole else tokens
                h = torch.einsum("bld,mdh->bmlh", tokens, weights["first"][numbers]) + weights["bias"][numbers][:, None]
                logits = torch.einsum("bmlh,mh->bml", F.silu(h), weights["last"][numbers]) + weights["shift"][numbers][:, None]
                found.append(logits.float().expand(-1, -1, length).flatten(1))
        return torch.cat(found, 1)

    @torch.no_grad()
    def refresh(self, step: int, share: float) -> Tensor:
        """Let a share of the heads begin anew after a step (0-based). -> their numbers, counted through the blocks.

        The heads of step n are a function of n. Fractions add up: of 40 heads and a share of 0.01, two in five steps.
        """
        count = math.floor((step + 1) * share * self.size) - math.floor(step * share * self.size)
        generator = torch.Generator().manual_seed(fold(0, "refresh", step))
        chosen = torch.randperm(self.size, generator=generator)[:count]
        for number, block in enumerate(self.blocks):
            rows = chosen[chosen // self.each == number] % self.each
            if not len(rows):
                continue
            weights = cast("nn.ParameterDict", block)
            for name, fresh in self._new(number, weights["first"].shape[1], step + 1).items():
                old = weights[name]
                begins = torch.zeros(fresh.shape, dtype=torch.bool)
                begins[rows] = True
                renewed, where = (local(shard_like(value, old.detach())) for value in (fresh.to(old.dtype), begins))
                own = local(old.detach())
                own.copy_(torch.where(where, renewed, own))
        return chosen
