"""What is typed on the command line, as values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """key=value strings as options: true and false, numbers, several numbers with commas between, else text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"{pair!r} is not an option; write it as name=value, for example eta=0.5.")
        options[name.replace("-", "_")] = _value(value)
    return options


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    parts = [_value(part) for part in text.split(",")] if "," in text else [text]
    return text if any(isinstance(part, str) for part in parts) else parts


def sides(name: str, text: str | None) -> tuple[int, int] | None:
    """(width, height) of "512x128", or of one number for both."""
    if text is None:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"{name} is {text!r}; write pixels as WIDTHxHEIGHT, for example 512x128, or one number for both.")
    width, height = int(parts[0]), int(parts[-1])
    return width, height
