"""Numbers that were typed, checked where they are used: a field itself never changes or forgets what is in it."""

from __future__ import annotations

import math
from typing import Any

UNREADABLE = math.nan  # the value of a number's field that holds no number, such as "e-"


class FieldError(ValueError):
    """A field holds what cannot be. field: its name in the settings."""

    def __init__(self, field: str, message: str):
        super().__init__(message)
        self.field = field


def number_in(name: str, value: Any, low: float, high: float) -> float | None:
    """The number of a field, None for an empty one.

    name: of the field, for FieldError where the value is no number from low to high.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise FieldError(name, f"Give a number from {low:g} to {high:g}.")
    return value


def whole_in(name: str, value: Any, low: int, high: int) -> int | None:
    """The whole number of a field, likewise."""
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or value != value // 1:
        raise FieldError(name, f"Give a whole number from {low} to {high}.")
    return int(value)
