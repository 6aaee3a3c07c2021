"""Checks of numbers, texts, sizes and options that a user gives; every refusal says what would be accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SEED_END = 1 << 63
LARGEST = 1e300  # of a number among options
MAX_PROMPT = 10_000  # characters
MAX_STEPS = 1000
MAX_SCALE = 100.0
MAX_IMAGES = 10_000
MAX_PIXELS = 16_777_216  # 4096 x 4096


def check_int(name: str, value: object, low: int, high: int) -> int:
    """An integer between low and high; True, 3.0 and "3" are not integers."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {value!r}, which is not a whole number; give one from {low} to {high}.")
    if not low <= value <= high:
        raise ValueError(f"{name} is {_short(value)}; give a whole number from {low} to {high}.")
    return value


def _short(value: object) -> str:
    """A value as a sentence can hold it: whole numbers may have thousands of digits, of which Python refuses to write more."""
    if isinstance(value, int) and abs(value) > 1 << 200:
        return f"a whole number of {value.bit_length()} bits"
    return repr(value)


def check_float(name: str, value: object, low: float, high: float) -> float:
    """A finite float between low and high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is not, either
        raise ValueError(f"{name} is {_short(value)}; give a number from {low:g} to {high:g}.")
    return float(value)


def check_interval(name: str, value: object) -> tuple[float, float] | None:
    """(low, high) in log-SNR, low < high; infinite ends are left out by giving None for the whole."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; give two log-SNR values (low, high), or None for all levels.")
    low, high = (check_float(name, v, -1000, 1000) for v in value)
    if low >= high:
        raise ValueError(f"{name} is ({low:g}, {high:g}); its first value must be the lower.")
    return low, high


Option = bool | int | float | str | tuple[int | float, ...]


def check_option_values(name: str, value: object) -> dict[str, Option]:
    """Plain named values, as a recipe can hold them; a list of numbers becomes a tuple."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} is {value!r}; give a dict of names and values.")
    return {key: _option(f"{name}[{key!r}]", option) for key, option in value.items()}


def _option(name: str, value: object) -> Option:
    if isinstance(value, list | tuple):
        for number in value:
            if not isinstance(number, int | float) or not abs(number) <= LARGEST:
                raise _refused_option(name, number)
        return tuple(value)
    if not isinstance(value, bool | int | float | str) or (isinstance(value, int | float) and not abs(value) <= LARGEST):
        raise _refused_option(name, value)
    return value


def _refused_option(name: str, value: object) -> ValueError:
    return ValueError(f"{name} is {_short(value)}; give a finite number, several, True, False or a string.")


def check_text(name: str, value: object) -> str:
    """A prompt: at most MAX_PROMPT characters, all of them real ones."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__} {value!r:.40}; give a string or a list of strings.")
    if len(value) > MAX_PROMPT:
        raise ValueError(f"{name} has {len(value)} characters; at most {MAX_PROMPT} are read.")
    broken = next((i for i, c in enumerate(value) if 0xD800 <= ord(c) <= 0xDFFF), None)
    if broken is not None:
        raise ValueError(f"{name} holds half a surrogate pair at position {broken}, which is not a character; remove it.")
    return value


def check_texts(name: str, value: object) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [check_text(name, value)]
    if not value:
        raise ValueError(f"{name} is an empty list; give at least one string.")
    return [check_text(f"{name}[{i}]", text) for i, text in enumerate(value)]


def check_side(name: str, value: object, default: int, multiple: int) -> int:
    """A height or width in pixels: a multiple of what the networks divide by."""
    value = check_int(name, default if value is None else value, 1, 1_000_000)
    if value % multiple or value == 0:
        below = value // multiple * multiple
        near = " and ".join(str(n) for n in (below, below + multiple) if n > 0)
        raise ValueError(f"{name} is {value}, which is not a multiple of {multiple}; the nearest allowed: {near}.")
    return value


def check_size(height: object, width: object, default: int, multiple: int) -> tuple[int, int]:
    height, width = check_side("height", height, default, multiple), check_side("width", width, default, multiple)
    if height * width > MAX_PIXELS:
        megapixels = height * width / 1e6
        raise ValueError(f"{width} x {height} is {megapixels:.0f} megapixels; at most {MAX_PIXELS / 1e6:.0f} are made at once.")
    return height, width
