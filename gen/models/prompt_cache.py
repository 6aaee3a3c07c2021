"""Text features that a generator keeps from call to call: those asked for last, within a number of bytes."""

from __future__ import annotations

from collections.abc import Collection, Hashable

import torch
from torch import Tensor, nn

from gen.nn.batch_invariance import without_mode
from samplers.denoiser import Condition

PROBES = 16  # values of each tensor that are looked at


class PromptCache:
    """Conditions by key. What was not asked for the longest goes first when they come to more than `limit` bytes."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
        self._weights: tuple | None = None
        self._kept: dict[Hashable, tuple[Condition, int]] = {}  # the one asked for last at the end

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, key: Hashable) -> Condition:
        entry = self._kept[key] = self._kept.pop(key)
        return entry[0]

    def add(self, key: Hashable, condition: Condition, needed: Collection[Hashable] = ()) -> None:
        """Keep one more; those `needed` stay whatever they come to."""
        size = size_of(condition)
        self._kept[key] = condition, size
        self.used += size
        for old in [old for old in self._kept if old != key and old not in needed]:
            if self.used <= self.limit:
                return
            self.used -= self._kept.pop(old)[1]

    def clear(self) -> None:
        self._kept.clear()
        self.used = 0

    def read_with(self, weights: tuple | None) -> None:
        """Let go of what was read with other weights (`fingerprint`), also by another `Generator` that shares this cache."""
        if weights != self._weights:
            self.clear()
            self._weights = weights


def size_of(condition: Condition) -> int:
    """Bytes of a condition's tensors."""
    sizes: list[int] = []
    condition.map(lambda v: sizes.append(v.nbytes) or v)  # type: ignore[func-returns-value]
    return sum(sizes)


@torch.no_grad()
def fingerprint(network: nn.Module) -> tuple:
    """What changes when the weights of a network do: where they lie, how often they were written to, and a few values of each,
    as writing through `.data` is not counted."""
    tensors = [*network.parameters(), *network.buffers()]
    with without_mode():
        return tuple((v.data_ptr(), _version(v)) for v in tensors), _probes([v for v in tensors if v.is_floating_point()])


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _probes(tensors: list[Tensor]) -> tuple[float, ...]:
    """In one transfer from the device."""
    picked = [v.detach().reshape(-1)[:: max(v.numel() // PROBES, 1)][:PROBES].float() for v in tensors if v.numel()]
    return tuple(torch.cat(picked).tolist()) if picked else ()
