"""What is typed on the command line, as values."""

from __future__ import annotations

from gen.calls.values import parse_options as parse_options


def sides(name: str, text: str | None) -> tuple[int, int] | None:
    """(width, height) of "512x128", or of one number for both."""
    if text is None:
        return None
    parts = text.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"{name} is {text!r}; write pixels as WIDTHxHEIGHT, for example 512x128, or one number for both.")
    width, height = int(parts[0]), int(parts[-1])
    return width, height
