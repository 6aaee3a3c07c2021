"""Intervals of log-SNR: the part of a run in which a method acts."""

from __future__ import annotations

import math
from typing import TypeAlias

from torch import Tensor

from samplers.path import NoiseLevel

Interval: TypeAlias = tuple[float, float]  # (lowest, highest) log-SNR, both included

EVERYWHERE: Interval = (-math.inf, math.inf)


def contains(interval: Interval, level: NoiseLevel) -> bool:
    """Whether a level of floats lies in the interval; False for levels per sample, as in training."""
    low, high = interval
    return not isinstance(level.logsnr, Tensor) and low <= level.logsnr <= high


def check_interval(interval: Interval, name: str = "guidance interval") -> None:
    """ValueError unless the interval is (lowest, highest) log-SNR with lowest < highest."""
    low, high = interval
    if not low < high:
        raise ValueError(f"The {name} {interval} is empty: give (lowest, highest) log-SNR.")
