"""Points of the teacher's trajectories that later steps of a run go on from, the same on every process.

A slot holds the counter of the sample whose trajectory it is, from which the source and `Draws` give its picture, caption and
noise again, the number of the level that it has come to and the latent there. Sample c of a run has slot c mod slots, so that
one process or many, a long run or one resumed, find the same point.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


class TrajectoryBank(nn.Module):
    """slots: how many points it holds, at least as many as samples of a step. shape: of a latent (C, H, W)."""

    counter: Tensor
    number: Tensor
    latent: Tensor

    def __init__(self, slots: int, shape: tuple[int, ...]):
        super().__init__()
        self.register_buffer("counter", torch.full((slots,), -1))
        self.register_buffer("number", torch.zeros(slots, dtype=torch.int64))  # 0, clean data: nothing to go on from
        self.register_buffer("latent", torch.zeros(slots, *shape))
        self.pending: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []

    @property
    def slots(self) -> int:
        return len(self.counter)

    def find(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(counter, number of the level, latent) in the slots of samples with these counters (B,); number 0 for empty ones."""
        slot = (index % self.slots).to(self.counter.device)
        return self.counter[slot], self.number[slot], self.latent[slot]

    @torch.no_grad()
    def remember(self, index: Tensor, counter: Tensor, number: Tensor, latent: Tensor) -> None:
        """Where the trajectories of some samples have come to, from the next `learn` on. index (B,): the counters that choose
        the slots; counter (B,): those whose trajectories they are."""
        slot = (index % self.slots).cpu()
        self.pending.append((slot, counter.cpu(), number.cpu(), latent.detach().float().cpu()))

    @torch.no_grad()
    def learn(self) -> None:
        """Take in what was remembered since the last time, on every process. ValueError for two points in one slot."""
        whole = [torch.cat(parts) for parts in zip(*self.pending, strict=True)] if self.pending else None
        self.pending = []
        everyone: list[list[Tensor] | None] = [whole]
        if dist.is_available() and dist.is_initialized():
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, whole)
        found = [parts for parts in everyone if parts is not None]
        if not found:
            return
        slot, counter, number, latent = (torch.cat(parts).to(self.counter.device) for parts in zip(*found, strict=True))
        if len(slot.unique()) < len(slot):
            raise ValueError(
                f"{len(slot)} samples of a step share {self.slots} slots of the bank: set objective.slots to the batch size "
                "or a multiple of it."
            )
        self.counter[slot], self.number[slot], self.latent[slot] = counter, number, latent
