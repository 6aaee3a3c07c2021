"""Several values written as one text: `4,8,20`, `1-16`, `1-7:2`, `0-1:0.25`."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

MOST = 10_000  # values of one text
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(rf"({_NUMBER})\s*-\s*({_NUMBER})(?:\s*:\s*({_NUMBER}))?")


def split_values(name: str, text: str) -> list[str]:
    """Values with commas between; one that holds a comma stands in double quotes. ValueError for none, or an empty one."""
    try:
        rows = list(csv.reader([text], skipinitialspace=True, strict=True))
    except csv.Error:
        raise ValueError(
            f"{name} is {text!r:.200}, in which a double quote is not closed; quote a whole value, or none."
        ) from None
    values = [value.strip() for value in rows[0]] if rows else []
    if not values or not all(values):
        raise ValueError(f"{name} is {text!r:.200}, which leaves a value empty; give values with commas between.")
    return values


def numbers(name: str, text: str, kind: Callable[[str], Any] = int) -> list[Any]:
    """Numbers of "4,8,20", of a range "1-16" (both ends count), or of one by steps "1-7:2"; ranges may stand among numbers.

    name: of what it is, for the errors.
    kind: int or float.
    Raises ValueError for anything else, and for more than MOST numbers.
    """
    found: list[Any] = []
    for part in split_values(name, text):
        match = _RANGE.fullmatch(part)
        texts = [part] if match is None else _steps(name, part, match[1], match[2], match[3], whole=kind is int)
        try:
            found += [kind(one) for one in texts]
        except ValueError:
            whole = "whole numbers" if kind is int else "numbers"
            raise ValueError(
                f"{name} is {text!r:.200}; give {whole} with commas between, or a range: 4,8,20, 1-16 or 1-7:2."
            ) from None
        if len(found) > MOST:
            raise ValueError(f"{name} is {text!r:.200}, which is more than {MOST} values; give fewer.")
    return found


def _steps(name: str, text: str, first: str, last: str, step: str | None, whole: bool) -> list[str]:
    """The numbers of a range, as texts: in decimals, so that 0-1:0.1 ends at 1."""
    low, high = Decimal(first), Decimal(last)
    by = Decimal(step) if step else Decimal(1)
    if by <= 0 or high < low:
        raise ValueError(f"{name} has the range {text!r:.100}; write it upwards, with a step above 0, as in 1-7:2.")
    if (high - low) / by > MOST:
        raise ValueError(f"{name} has the range {text!r:.100}, which is more than {MOST} values; give fewer.")
    values = [low + by * i for i in range(int((high - low) / by) + 1)]
    return [str(int(value)) if value == value.to_integral_value() and whole else str(value) for value in values]
