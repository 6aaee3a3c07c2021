"""What a call to `Generator` asks for, checked before any work; every refusal says what would be accepted."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from gen.generator import Generator

SEED_END = 1 << 63
LARGEST = 1e300  # of a number among options
MAX_PROMPT = 10_000  # characters
MAX_STEPS = 1000
MAX_SCALE = 100.0
MAX_IMAGES = 10_000
MAX_PIXELS = 16_777_216  # 4096 x 4096


@dataclass(frozen=True)
class Item:
    """One picture to make. label -1 is unconditional; `latent` (C, h, w) is its unit noise where the caller gave it."""

    prompt: str
    negative_prompt: str
    label: int
    seed: int
    latent: Tensor | None = None


def whole(name: str, value: object, low: int, high: int) -> int:
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


def real(name: str, value: object, low: float, high: float) -> float:
    """A finite float between low and high."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # NaN is not, either
        raise ValueError(f"{name} is {_short(value)}; give a number from {low:g} to {high:g}.")
    return float(value)


def interval(name: str, value: object) -> tuple[float, float] | None:
    """(low, high) in log-SNR, low < high; infinite ends are left out by giving None for the whole."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; give two log-SNR values (low, high), or None for all levels.")
    low, high = (real(name, v, -1000, 1000) for v in value)
    if low >= high:
        raise ValueError(f"{name} is ({low:g}, {high:g}); its first value must be the lower.")
    return low, high


Option = bool | int | float | str | tuple[int | float, ...]


def options(name: str, value: object) -> dict[str, Option]:
    """Plain named values, as a recipe can hold them; a list of numbers becomes a tuple."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{name} is {value!r}; give a dict of names and values.")
    return {key: _option(f"{name}[{key!r}]", one) for key, one in value.items()}


def _option(name: str, value: object) -> Option:
    several = isinstance(value, list | tuple)
    for one in value if several else [value]:
        if not isinstance(one, int | float if several else bool | int | float | str) or (
            isinstance(one, int | float) and not abs(one) <= LARGEST
        ):
            given = _short(one) if several else _short(value)
            raise ValueError(f"{name} is {given}; give a finite number, several, True, False or a string.")
    return tuple(value) if several else value


def text(name: str, value: object) -> str:
    """A prompt: at most MAX_PROMPT characters, all of them real ones."""
    if not isinstance(value, str):
        raise ValueError(f"{name} is {type(value).__name__} {value!r:.40}; give a string or a list of strings.")
    if len(value) > MAX_PROMPT:
        raise ValueError(f"{name} has {len(value)} characters; at most {MAX_PROMPT} are read.")
    broken = next((i for i, c in enumerate(value) if 0xD800 <= ord(c) <= 0xDFFF), None)
    if broken is not None:
        raise ValueError(f"{name} holds half a surrogate pair at position {broken}, which is not a character; remove it.")
    return value


def texts(name: str, value: object) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return [text(name, value)]
    if not value:
        raise ValueError(f"{name} is an empty list; give at least one string.")
    return [text(f"{name}[{i}]", one) for i, one in enumerate(value)]


def side(name: str, value: object, default: int, multiple: int) -> int:
    """A height or width in pixels: a multiple of what the networks divide by."""
    value = whole(name, default if value is None else value, 1, 1_000_000)
    if value % multiple or value == 0:
        below = value // multiple * multiple
        near = " and ".join(str(n) for n in (below, below + multiple) if n > 0)
        raise ValueError(f"{name} is {value}, which is not a multiple of {multiple}; the nearest allowed: {near}.")
    return value


def size(height: object, width: object, default: int, multiple: int) -> tuple[int, int]:
    height, width = side("height", height, default, multiple), side("width", width, default, multiple)
    if height * width > MAX_PIXELS:
        megapixels = height * width / 1e6
        raise ValueError(f"{width} x {height} is {megapixels:.0f} megapixels; at most {MAX_PIXELS / 1e6:.0f} are made at once.")
    return height, width


def labels(value: object, classes: Sequence[str] | None, count: int) -> list[int]:
    """Class labels from integers, names or, of ImageNet's, WordNet numbers (n01443537): -1 is unconditional."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if isinstance(value, Tensor):
        values = value.reshape(-1).tolist()
    if not values:
        raise ValueError("class_labels is an empty list; give at least one label.")
    return [_label(one, classes or (), count) for one in values]


def _label(value: object, classes: Sequence[str], count: int) -> int:
    if not isinstance(value, str):
        return whole("class_labels", value, -1, count - 1)
    if not value:
        return -1
    if value.lstrip("-").isdecimal():
        return whole("class_labels", int(value), -1, count - 1)
    lowered = [name.lower() for name in classes]
    if lowered.count(value.lower()) > 1:
        several = " and ".join(str(i) for i, name in enumerate(lowered) if name == value.lower())
        raise ValueError(f"{value!r} is the name of the labels {several}; give the number.")
    if value.lower() in lowered:
        return lowered.index(value.lower())
    if count == 1000 and re.fullmatch(r"[nN]\d{8}", value):
        from gen.models import imagenet

        if (found := imagenet.label(value)) is not None:
            return found
    near = get_close_matches(value.lower(), lowered, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    named = "one of its class names or " if classes else ""
    raise ValueError(f"The model has no class {value!r}: give {named}a label from 0 to {count - 1}.{hint}")


def draw_seeds(count: int, seed: object, seeds: object, generator: object) -> list[int]:
    """One seed per picture: seed, seed + 1, ...; or the given seeds; or drawn from torch generators; or at random."""
    given = [name for name, value in (("seed", seed), ("seeds", seeds), ("generator", generator)) if value is not None]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are both given; give one of them.")
    if seeds is not None:
        if isinstance(seeds, str) or not isinstance(seeds, Sequence) or len(seeds) != count:
            have = f"{len(seeds)} given" if isinstance(seeds, Sequence) and not isinstance(seeds, str) else repr(seeds)
            raise ValueError(f"seeds must be a list of {count}, one per picture ({have}).")
        return [whole(f"seeds[{i}]", one, 0, SEED_END - 1) for i, one in enumerate(seeds)]
    if generator is not None:
        return _seeds_from(generator, count)
    first = secrets.randbelow(1 << 32) if seed is None else whole("seed", seed, 0, SEED_END - 1)
    if first + count > SEED_END:
        raise ValueError(f"seed {first} leaves no room for {count} pictures below {SEED_END}; give a smaller seed.")
    return list(range(first, first + count))


def _seeds_from(generator: object, count: int) -> list[int]:
    several = list(generator) if isinstance(generator, Sequence) else [generator]
    if not all(isinstance(one, torch.Generator) for one in several):
        raise ValueError("generator must be a torch.Generator or a list of them; for a plain number use seed=.")
    if len(several) not in (1, count):
        raise ValueError(f"generator is a list of {len(several)}; give one, or {count}: one per picture.")
    sources = several * count if len(several) == 1 else several
    return [torch.randint(SEED_END - 1, (), generator=one, device=one.device).item() for one in sources]


def unit_noise(latents: object, count: int, channels: int, factor: int, multiple: int) -> Tensor | None:
    """Caller's starting noise (count, channels, h, w), unit variance; None if not given."""
    if latents is None:
        return None
    if not isinstance(latents, Tensor) or latents.ndim != 4 or latents.shape[:2] != (count, channels):
        shape = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
        raise ValueError(f"latents must be a tensor ({count}, {channels}, h, w) of unit noise; {shape} given.")
    if not latents.is_floating_point() or not torch.isfinite(latents).all():
        raise ValueError("latents must hold finite floating-point numbers; NaN, infinities or integers were given.")
    for name, length in zip(("height", "width"), latents.shape[2:], strict=True):
        side(f"the {name} of latents, in pixels,", length * factor, 0, multiple)
    return latents.float()


def items(
    prompts: list[str], negatives: list[str], classes: list[int], per_prompt: int, seeds: list[int], noise: Tensor | None
) -> list[Item]:
    """Each prompt (or class) `per_prompt` times in a row."""
    rows = [i for i in range(len(prompts)) for _ in range(per_prompt)]
    return [
        Item(prompts[row], negatives[row], classes[row], seed, None if noise is None else noise[n])
        for n, (row, seed) in enumerate(zip(rows, seeds, strict=True))
    ]


def subjects(generator: Generator, prompt: object, negative: object, class_labels: object) -> tuple[list, list, list]:
    """(prompts, negative prompts, labels) of equal length."""
    prompts, given, name = [""] if prompt is None else texts("prompt", prompt), [-1], generator.name
    if class_labels is not None:
        if not generator.classes:
            raise ValueError(f"The model {name!r} takes no class_labels; leave them out.")
        given = labels(class_labels, generator.config.classes, generator.classes)
    if generator.text_encoder is None and any(prompts):
        raise ValueError(no_text(generator))
    count = max(len(prompts), len(given))
    negatives = [""] if negative is None else texts("negative_prompt", negative)
    if generator.text_encoder is None and any(negatives):
        raise ValueError(f"The model {name!r} reads no text; leave negative_prompt out.")
    for what, values in (("prompt", prompts), ("class_labels", given), ("negative_prompt", negatives)):
        if len(values) not in (1, count):
            raise ValueError(f"{what} has {len(values)} entries where {count} are asked for; give one for all, or {count}.")
    equal = [values * count if len(values) == 1 else values for values in (prompts, negatives, given)]
    return equal[0], equal[1], equal[2]


def no_text(generator: Generator) -> str:
    """Why a model takes no prompt, and what to do."""
    instead = "give class_labels instead" if generator.classes else "it is unconditional, so leave the prompt out"
    return f"The model {generator.name!r} reads no text; {instead}."
