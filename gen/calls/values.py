"""Values of options as people type them, `eta=0.5`, read and written so that they come back the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """key=value strings as options: true and false, numbers, several numbers with commas between, else text."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"{pair!r} is not an option; write it as name=value, for example eta=0.5.")
        options[name.replace("-", "_")] = parse_value(value)
    return options


def parse_value(text: str) -> Any:
    """true and false, numbers, several numbers with commas between, else text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    parts = [parse_value(part) for part in text.split(",")] if "," in text else [text]
    return text if any(isinstance(part, str) for part in parts) else parts


def write_value(value: Any) -> str:
    """What `parse_value` reads as this value; ValueError where nothing is."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, list | tuple):
        text, value = ",".join(map(write_value, value)), list(value)
    else:
        text = str(value)
    back = parse_value(text)
    if back != value or type(back) is not type(value):
        raise ValueError(f"The value {value!r:.80} cannot be typed after name=.")
    return text


def write_options(options: Mapping[str, Any]) -> list[str]:
    """What `parse_options` reads as these."""
    return [f"{name}={write_value(value)}" for name, value in options.items()]
