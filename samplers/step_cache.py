"""What a denoiser remembers from one step of a run to the next: in `Context.store`, keyed by branch, view, adapters and step.

A step only sees what earlier steps left, so repeating it is harmless, and going back to an earlier one forgets what came
after. A new run has a new context and starts with nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from samplers.denoiser import Context, adapters_key


def recall(context: Context, name: Hashable) -> list[tuple[int, Any]]:
    """(step, value) of the remembered steps before this one, oldest first."""
    return [entry for entry in context.store.get(_key(context, name), ()) if entry[0] < context.step]


def remember(context: Context, name: Hashable, value: Any, keep: int = 1) -> None:
    """Leave a value at this step, in place of what it or later steps left; `keep` earlier steps stay."""
    past = recall(context, name)
    context.store[_key(context, name)] = (*past[max(len(past) - keep, 0) :], (context.step, value))


def latest(context: Context, name: Hashable, within: int | None = None) -> tuple[int, Any] | None:
    """(steps ago, value) of the newest of them; None where there is none, or none at most `within` steps old."""
    past = recall(context, name)
    if not past or (within is not None and context.step - past[-1][0] > within):
        return None
    return context.step - past[-1][0], past[-1][1]


def _key(context: Context, name: Hashable) -> Hashable:
    return ("memory", name, context.branch, context.view, adapters_key(context.adapters))


def network_id(denoiser: Any) -> int:
    """What a memory around a denoiser is known by: the network at the bottom, which outlives the wrappers between. Those may be
    made anew at every step, and Python gives the same id to objects that follow one another."""
    while (inner := getattr(denoiser, "denoiser", None)) is not None:
        denoiser = inner
    return id(denoiser)
