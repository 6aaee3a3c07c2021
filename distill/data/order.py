"""Which picture a sample counter means, and aspect-ratio buckets: pure functions, so that nothing has to be saved.

One bucket: counter c is position c mod N of the permutation of pass c // N. Several: counters come in groups, one bucket each,
a group being the global batch of a step, so that all micro-batches and processes of a step have pictures of one size. In a pass
every bucket of n pictures has ceil(n / group) groups, in a random order among all; its last group starts over with the first
pictures of that pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from samplers.noise import fold


class Order:
    """members[b]: the indices of the pictures in bucket b, none empty."""

    def __init__(self, members: Sequence[Sequence[int]], seed: int, group: int = 1):
        self.members, self.seed, self.group = [list(m) for m in members], seed, group
        self.groups = [(b, part) for b, m in enumerate(self.members) for part in range(math.ceil(len(m) / group))]
        self._permutation = lru_cache(4 + 2 * len(self.members))(self._permute)  # of this pass and the next

    def _permute(self, count: int, *purpose: int | str) -> list[int]:
        generator = torch.Generator().manual_seed(fold(self.seed, "order", *purpose))
        return torch.randperm(count, generator=generator).tolist()

    def locate(self, counter: int) -> tuple[int, int]:
        """(bucket, picture) of a sample."""
        if len(self.members) == 1:
            turn, position = divmod(counter, len(self.members[0]))
            return 0, self.members[0][self._permutation(len(self.members[0]), turn, 0)[position]]
        number, within = divmod(counter, self.group)
        turn, place = divmod(number, len(self.groups))
        bucket, part = self.groups[self._permutation(len(self.groups), turn, "groups")[place]]
        mine = self.members[bucket]
        return bucket, mine[self._permutation(len(mine), turn, bucket)[(part * self.group + within) % len(mine)]]


def bucket_sizes(size: int, step: int, max_ratio: float) -> list[tuple[int, int]]:
    """(height, width) of all buckets: multiples of `step`, the area at most size^2 and as near as the step allows, neither side
    more than max_ratio times the other."""
    sizes = set()
    for width in range(step, size * size // step + 1, step):
        height = size * size // width // step * step
        if height and max(width, height) <= max_ratio * min(width, height):
            sizes |= {(height, width), (width, height)}
    return sorted(sizes)


def nearest_bucket(width: int, height: int, sizes: Sequence[tuple[int, int]]) -> int:
    """The bucket whose aspect ratio is nearest, as a ratio of ratios; of equal ones the largest."""
    aspect = math.log(height / width)
    return min(range(len(sizes)), key=lambda b: (abs(aspect - math.log(sizes[b][0] / sizes[b][1])), -sizes[b][0] * sizes[b][1]))
