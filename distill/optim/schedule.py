"""Learning-rate schedules: the factor on the peak rate as a pure function of the step, so that there is nothing to save."""

from __future__ import annotations

import math
from bisect import bisect_right

from distill.config import ScheduleConfig


def lr_factor(step: int, max_steps: int, schedule: ScheduleConfig) -> float:
    """The learning rate at a step (0-based) as a share of the peak: warm-up times the schedule's own shape."""
    dropped = math.prod(factor for first, factor in schedule.drops.items() if step >= first)
    number = bisect_right(schedule.restarts, step)
    first = schedule.restarts[number - 1] if number else 0
    last = schedule.restarts[number] if number < len(schedule.restarts) else max_steps
    step, max_steps = step - first, min(last, max_steps) - first
    warm = dropped * (min(1.0, (step + 1) / schedule.warmup) if schedule.warmup else 1.0)
    if schedule.type == "constant":
        return warm
    if schedule.type == "cosine":
        span = max(1, max_steps - schedule.warmup)
        progress = min(1.0, max(0, step - schedule.warmup) / span)
        return warm * (schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * progress)) / 2)
    if schedule.type == "inverse_sqrt":  # as in EDM2, arXiv 2312.02696, eq. 67
        warm *= math.sqrt(schedule.reference / max(step, schedule.reference))
    return warm * _cooldown(step, max_steps, schedule)


def _cooldown(step: int, max_steps: int, schedule: ScheduleConfig) -> float:
    start = max_steps * (1 - schedule.cooldown)
    if step <= start:
        return 1.0
    return 1 - (1 - schedule.final) * (step - start) / (max_steps - start)
