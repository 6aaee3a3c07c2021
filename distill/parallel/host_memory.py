"""Freed memory that a training process keeps, on a CPU.

A step allocates what the step before has freed. glibc gives large pieces back to the system when they are freed and fetches
them anew, page by page, and every fresh page is a fault and is filled with zeros: up to a tenth of a step's time, more where
tensors have over 32 MiB, as those never stay.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # malloc.h


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, up to its largest use so far, for all that it allocates later. Whether it does: only
    glibc can be told."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None or mallopt(_TRIM_THRESHOLD, 2**31 - 1) != 1:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 2**31 - 1) or mallopt(_MMAP_MAX, 0))  # old versions bound the threshold
