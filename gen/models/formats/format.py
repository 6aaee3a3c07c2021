"""What a published checkpoint format is, and reading a network's sizes from the shapes of its tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gen.models.formats.table import Table

Shapes = Mapping[str, tuple[int, ...]]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One published format.

    kind: our network type.
    signature: names by which a file is known; every one must be there.
    blocks: the prefixes of numbered blocks, all of which have as many.
    infer: (shapes, settings) -> the network's config; ValueError says what is missing or wrong.
    fixed: what the format says of a network without storing it.
    stored: config fields that the tensors or the config beside them tell.
    published: fixed values that a network may differ in with a warning, since they change how weights are used and not what
        they are.
    absent: tensors of ours that the format has no place for.
    ignored: names that files may have and that no network of the kind uses.
    positions: its name of fixed sine-cosine positions, which are checked against ours; optional: the file may lack them.
    config_in, config_out: a diffusers folder's config.json to settings, and back.
    """

    name: str
    description: str
    kind: str
    signature: tuple[str, ...]
    blocks: tuple[str, ...]
    table: Table
    infer: Callable[[Shapes, Settings], dict[str, Any]]
    stored: frozenset[str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    published: frozenset[str] = frozenset()
    absent: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    positions: str | None = None
    positions_optional: bool = False
    config_in: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    config_out: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


def shape_of(shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    """A tensor's shape, which must have this many axes, none of them empty."""
    if name not in shapes:
        raise ValueError(f"lacks {name!r}, from which sizes are read")
    if len(shapes[name]) != axes or 0 in shapes[name]:
        raise ValueError(f"has {name!r} of shape {shapes[name]}, where {axes} axes are needed, none of them empty")
    return shapes[name]


def count_blocks(shapes: Shapes, prefix: str) -> int:
    """How many blocks there are: numbered from 0 without a gap, each with the names and shapes of the first."""
    pattern = re.compile(re.escape(prefix) + r"\.(0|[1-9]\d{0,5})\.(.+)", re.DOTALL)
    blocks: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := pattern.fullmatch(name):
            blocks.setdefault(int(match[1]), {})[match[2]] = shape
    if not blocks or max(blocks) != len(blocks) - 1:
        raise ValueError(f"has the blocks {prefix}.{sorted(blocks)[:5]}..., which are not numbered from 0 without a gap")
    for i, block in sorted(blocks.items()):
        for name in sorted(blocks[0].keys() ^ block.keys()):
            lacking, having = (i, 0) if name in blocks[0] else (0, i)
            raise ValueError(f"lacks '{prefix}.{lacking}.{name}', which block {having} has")
        for name, shape in block.items():
            if shape != blocks[0][name]:
                raise ValueError(f"has '{prefix}.{i}.{name}' of shape {shape}, and in block 0 of shape {blocks[0][name]}")
    return len(blocks)


def check_attention(shapes: Shapes, name: str, dim: int, parts: int) -> None:
    """A projection must be (parts * dim, dim): what the other sizes are checked against before any memory is taken."""
    if shape_of(shapes, name, 2) != (parts * dim, dim):
        raise ValueError(f"has {name!r} of shape {shapes[name]}, where {(parts * dim, dim)} is needed for width {dim}")


def ratio(hidden: int, dim: int) -> float:
    """The mlp_ratio that makes a hidden layer of exactly this width."""
    value = hidden / dim
    return value if int(dim * value) == hidden else (hidden + 0.5) / dim


def side(count: int, what: str) -> int:
    """The side of a square of `count` patches."""
    root = math.isqrt(max(count, 0))
    if not root or root * root != count:
        raise ValueError(f"has room for {count} patches in {what}, which is no square")
    return root


def heads_for(dim: int, published: Mapping[int, int], settings: Settings) -> int:
    """The number of heads, which no tensor tells: of the published sizes by width, or as given."""
    if heads := settings.get("heads"):
        if dim % heads or settings.get("head_dim", dim // heads) != dim // heads:
            raise ValueError(f"has width {dim}, which is not {heads} heads of {settings.get('head_dim', 'a whole number')}")
        return int(heads)
    if dim not in published:
        known = ", ".join(map(str, published))
        raise ValueError(f"has width {dim}, which is no published one ({known}), so its number of heads is unknown; give heads")
    return published[dim]


def given(settings: Settings, name: str, why: str) -> Any:
    if settings.get(name) is None:
        raise ValueError(f"does not tell its {name} ({why}); give {name}")
    return settings[name]
