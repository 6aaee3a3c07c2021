"""Text features that a generator keeps from call to call: those asked for last, within a number of bytes."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from samplers.denoiser import Condition


class PromptMemory:
    """Conditions by key. What was not asked for the longest goes first when they come to more than `limit` bytes."""

    def __init__(self, limit: int):
        self.limit, self.used = limit, 0
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


def size_of(condition: Condition) -> int:
    """Bytes of a condition's tensors."""
    sizes: list[int] = []
    condition.map(lambda v: sizes.append(v.nbytes) or v)  # type: ignore[func-returns-value]
    return sum(sizes)
