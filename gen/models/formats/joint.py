"""What the formats of networks of text and patches share: sizes from shapes, and diffusers' config.json, read strictly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gen.models.formats.format import Settings, Shapes, heads_for, shape_of
from gen.models.formats.table import nearest

# config fields that tensors or a config beside them tell, or that are ours alone: how much text there is room for
STORED = frozenset(
    ("size", "patch", "channels", "dim", "depth", "heads", "text_tokens", "text_dim", "null_length", "pooled_dim", "scalars")
)
IGNORED = ("_class_name", "_diffusers_version", "_name_or_path", "_library_name")
HEAD = 64  # channels of a head where no norm and no config tells: Stable Diffusion 3


def numbered(shapes: Shapes, prefix: str) -> int:
    """How many blocks there are, numbered from 0 without a gap; 0 for none."""
    pattern = re.compile(re.escape(prefix) + r"\.(0|[1-9]\d{0,5})\..+", re.DOTALL)
    found = {int(match[1]) for name in shapes if (match := pattern.fullmatch(name))}
    if found and max(found) != len(found) - 1:
        raise ValueError(f"has the blocks {prefix}.{sorted(found)[:5]}..., which are not numbered from 0 without a gap")
    return len(found)


def first_blocks(shapes: Shapes, pattern: str, depth: int) -> int:
    """How many blocks have a tensor, `pattern` with {i} for the block; ValueError unless they are the first."""
    having = [i for i in range(depth) if pattern.replace("{i}", str(i)) in shapes]
    if having != list(range(len(having))):
        raise ValueError(f"has {pattern!r} in the blocks {having}; only the first blocks may have it")
    return len(having)


def head_count(shapes: Shapes, norm: str, dim: int, settings: Settings) -> int:
    """The number of heads: from the width of a norm of theirs, or as given, or by the published width of a head."""
    if norm in shapes:
        (width,) = shape_of(shapes, norm, 1)
        settings = {"heads": dim // width, "head_dim": width} if not settings.get("heads") else settings
    return heads_for(dim, {dim: max(1, dim // HEAD)}, settings)


def patch_sizes(shapes: Shapes, first: str, last: str, patch: int) -> tuple[int, int]:
    """(width, channels) by the layers that read patches and make them; ValueError where they are for other patches."""
    dim, read = shape_of(shapes, first, 2)
    made = shape_of(shapes, last, 2)[0]
    if made != read or read % patch**2:
        raise ValueError(
            f"reads {read} numbers of a patch and makes {made}; both must be as many, for {patch} x {patch} pixels"
        )
    return dim, read // patch**2


def told_axes(settings: Settings, usual: tuple[int, ...], width: int) -> tuple[int, ...]:
    """How many channels of a head, `width` in all, turn with each axis of positions, as given or as usual."""
    axes = tuple(settings.get("axes") or usual)
    if sum(axes) != width:
        raise ValueError(f"has heads of {width} channels, and the axes of its positions are {axes}; give axes")
    return axes


def told_text(settings: Settings, room: int, usual: int) -> dict[str, int]:
    """text_tokens and null_length. room: how much text the model is made for; usual: how long its empty prompt is."""
    given = int(settings.get("text_tokens") or 0)
    return {"text_tokens": max(room, given), "null_length": int(settings.get("null_length") or given or usual)}


def read_config(
    value: Mapping[str, Any], kind: str, numbers: Mapping[str, tuple[str, Any]], needed: Mapping[str, Any], told: set[str]
) -> dict[str, Any]:
    """Settings of a diffusers config.

    kind: the class that it must name.
    numbers: setting -> (their key, their default), whole numbers from 1.
    needed: keys that must have one of these values, where they are there.
    told: keys that the tensors tell.
    ValueError for a class, key or value that does not belong.
    """
    if value.get("_class_name") != kind:
        raise ValueError(f"has _class_name {value.get('_class_name')!r}; {kind} can be read")
    keys = [*IGNORED, *(key for key, _ in numbers.values()), *needed, *told]
    for key in sorted(value.keys() - set(keys)):
        raise ValueError(f"has the key {key!r}, which is not known{nearest(key, keys)}")
    for key, allowed in needed.items():
        if key in value and value[key] not in allowed:
            raise ValueError(f"has {key} {value[key]!r}; only {' or '.join(map(repr, allowed))} can be read")
    settings: dict[str, Any] = {}
    for ours, (theirs, default) in numbers.items():
        number = value.get(theirs, default)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"has {theirs} {number!r}, where a whole number from 1 is needed")
        settings[ours] = number
    return settings


def axes_of(value: Mapping[str, Any], key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """How many channels of a head turn with each axis."""
    axes = value.get(key, list(default))
    if not isinstance(axes, list | tuple) or len(axes) != 3 or not all(type(n) is int and n > 0 and n % 2 == 0 for n in axes):
        raise ValueError(f"has {key} {axes!r}, where three even whole numbers above 0 are needed")
    return tuple(axes)
