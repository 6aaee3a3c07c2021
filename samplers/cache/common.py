"""What caches share: when they may act, and what they refuse."""

from __future__ import annotations

import math

from torch import Tensor


def check_stride(stride: int, name: str = "stride") -> None:
    if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
        raise ValueError(f"The cache's {name} must be a whole number of at least 1 (1 caches nothing), got {stride!r}.")


def check_one_shape(start: Tensor, end: Tensor, method: str) -> None:
    """Raises ValueError where the tokens that leave the blocks differ in shape from those that enter."""
    if start.shape != end.shape:
        raise ValueError(
            f"{method} adds what the blocks of a network add, but this network's change the shape of the tokens from "
            f"{tuple(start.shape)} to {tuple(end.shape)}: use a cache of outputs (reuse, easy) with it."
        )


def check_threshold(threshold: float) -> None:
    if isinstance(threshold, bool) or not 0 <= threshold < math.inf:
        raise ValueError(f"The cache's threshold must be a finite number of at least 0 (0 caches nothing), got {threshold!r}.")
