"""What hangs together in a picture."""

from __future__ import annotations

import torch
from torch import Tensor


def connected(inside: Tensor) -> Tensor:
    """(1, 1, H, W) of whole numbers: 0 outside, and in every part that hangs together (corners count) a number of its own, from
    1, in the order of their first pixels.

    Trees of pixels are hung under one another along all neighbours at once, and flattened (Shiloach and Vishkin 1982, "An
    O(log n) parallel connectivity algorithm"): a few rounds over the pixels, however a part winds.
    """
    height, width = inside.shape[2:]
    mask = inside[0, 0]
    place = torch.arange(height * width, device=inside.device).view(height, width)
    ends: list[tuple[Tensor, Tensor]] = []
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows, lower = slice(0, height - down), slice(down, height)
        columns = slice(max(-right, 0), width - max(right, 0))
        others = slice(max(right, 0), width - max(-right, 0))
        both = mask[rows, columns] & mask[lower, others]
        ends.append((place[rows, columns][both], place[lower, others][both]))
    one, other = (torch.cat(list(side)) for side in zip(*ends, strict=True))
    root = place.flatten()
    while len(one):
        above, below = torch.minimum(root[one], root[other]), torch.maximum(root[one], root[other])
        root = root.scatter_reduce(0, below, above, "amin")
        while not torch.equal(nearer := root[root], root):
            root = nearer
        apart = root[one] != root[other]
        one, other = one[apart], other[apart]
    found = torch.zeros_like(inside, dtype=torch.long)
    found[inside] = root[mask.flatten()].unique(return_inverse=True)[1] + 1
    return found
