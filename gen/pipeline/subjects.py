"""What a call is of: prompts, class labels, seeds and starting noise, one `Item` per picture."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from gen.io.validators import SEED_END, check_int, check_side, check_texts
from gen.models.model import Model, no_text
from gen.pipeline.types import Item
from samplers.lookup import nearest


def read_labels(value: object, classes: Sequence[str] | None, count: int) -> list[int]:
    """Class labels from integers, names or, of ImageNet's, WordNet numbers (n01443537): -1 is unconditional."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if isinstance(value, Tensor):
        values = value.reshape(-1).tolist()
    if not values:
        raise ValueError("class_labels is an empty list; give at least one label.")
    return [_label(label, classes or (), count) for label in values]


def _label(value: object, classes: Sequence[str], count: int) -> int:
    if not isinstance(value, str):
        return check_int("class_labels", value, -1, count - 1)
    if not value:
        return -1
    if value.lstrip("-").isdecimal():
        return check_int("class_labels", int(value), -1, count - 1)
    lowered = [name.lower() for name in classes]
    if lowered.count(value.lower()) > 1:
        numbers = " and ".join(str(i) for i, name in enumerate(lowered) if name == value.lower())
        raise ValueError(f"{value!r} is the name of the labels {numbers}; give the number.")
    if value.lower() in lowered:
        return lowered.index(value.lower())
    if count == 1000 and re.fullmatch(r"[nN]\d{8}", value):
        from gen.models import imagenet

        if (number := imagenet.label(value)) is not None:
            return number
    near = nearest(value.lower(), lowered)
    hint = f" Did you mean {near!r}?" if near else ""
    named = "one of its class names or " if classes else ""
    raise ValueError(f"The model has no class {value!r}: give {named}a label from 0 to {count - 1}.{hint}")


def draw_seeds(count: int, seed: object, seeds: object, generator: object) -> list[int]:
    """One seed per picture: seed, seed + 1, ...; or the given seeds; or drawn from torch generators; or at random."""
    sources = [name for name, value in (("seed", seed), ("seeds", seeds), ("generator", generator)) if value is not None]
    if len(sources) > 1:
        raise ValueError(f"{' and '.join(sources)} are both given; give one of them.")
    if seeds is not None:
        if isinstance(seeds, str) or not isinstance(seeds, Sequence) or len(seeds) != count:
            have = f"{len(seeds)} given" if isinstance(seeds, Sequence) and not isinstance(seeds, str) else repr(seeds)
            raise ValueError(f"seeds must be a list of {count}, one per picture ({have}).")
        return [check_int(f"seeds[{i}]", one, 0, SEED_END - 1) for i, one in enumerate(seeds)]
    if generator is not None:
        return _seeds_from(generator, count)
    first = secrets.randbelow(1 << 32) if seed is None else check_int("seed", seed, 0, SEED_END - 1)
    if first + count > SEED_END:
        raise ValueError(f"seed {first} leaves no room for {count} pictures below {SEED_END}; give a smaller seed.")
    return list(range(first, first + count))


def _seeds_from(generator: object, count: int) -> list[int]:
    values = list(generator) if isinstance(generator, Sequence) else [generator]
    generators = [value for value in values if isinstance(value, torch.Generator)]
    if len(generators) < len(values):
        raise ValueError("generator must be a torch.Generator or a list of them; for a plain number use seed=.")
    if len(generators) not in (1, count):
        raise ValueError(f"generator is a list of {len(generators)}; give one, or {count}: one per picture.")
    sources = generators * count if len(generators) == 1 else generators
    return [int(torch.randint(SEED_END - 1, (), generator=source, device=source.device).item()) for source in sources]


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
        check_side(f"the {name} of latents, in pixels,", length * factor, 0, multiple)
    return latents.float()


def make_items(
    prompts: list[str], negatives: list[str], classes: list[int], per_prompt: int, seeds: list[int], noise: Tensor | None
) -> list[Item]:
    """Each prompt (or class) `per_prompt` times in a row."""
    rows = [i for i in range(len(prompts)) for _ in range(per_prompt)]
    return [
        Item(prompts[row], negatives[row], classes[row], seed, None if noise is None else noise[n])
        for n, (row, seed) in enumerate(zip(rows, seeds, strict=True))
    ]


def read_subjects(model: Model, prompt: object, negative: object, class_labels: object) -> tuple[list, list, list]:
    """(prompts, negative prompts, labels) of equal length."""
    prompts, labels, name = [""] if prompt is None else check_texts("prompt", prompt), [-1], model.name
    if class_labels is not None:
        if not model.classes:
            raise ValueError(f"The model {name!r} takes no class_labels; leave them out.")
        labels = read_labels(class_labels, model.config.classes, model.classes)
    if model.text_encoder is None and any(prompts):
        raise ValueError(no_text(model))
    count = max(len(prompts), len(labels))
    negatives = [""] if negative is None else check_texts("negative_prompt", negative)
    if model.text_encoder is None and any(negatives):
        raise ValueError(f"The model {name!r} reads no text; leave negative_prompt out.")
    for what, values in (("prompt", prompts), ("class_labels", labels), ("negative_prompt", negatives)):
        if len(values) not in (1, count):
            raise ValueError(f"{what} has {len(values)} entries where {count} are asked for; give one for all, or {count}.")
    equal = [values * count if len(values) == 1 else values for values in (prompts, negatives, labels)]
    return equal[0], equal[1], equal[2]
