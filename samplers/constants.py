"""Small constants on a device, copied there once in a process: a copy in every step would make the host wait in every step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def constant(values: Sequence[float], device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers as a tensor (len(values),), not to be changed: every caller shares it. dtype: as torch.tensor chooses if None."""
    return _constant(tuple(values), device, dtype)


@lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], device: torch.device, dtype: torch.dtype | None) -> Tensor:
    with torch.inference_mode(False):  # a tensor of that mode could not take part in a gradient later
        return torch.tensor(values, device=device, dtype=dtype)
