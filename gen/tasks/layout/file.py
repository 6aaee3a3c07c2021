"""Layouts from files: YAML or JSON, whose errors name the line, and painted pictures, whose colours are regions.

Files are read as plain data: no aliases, no duplicate keys, at most 1 MB; pictures that they name lie beside them or below.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image, ImageColor
from pydantic import ValidationError
from torch import Tensor

from gen.io.errors import decode_text, read_bytes
from gen.io.plain_yaml import PlainLoader
from gen.tasks.layout.spec import LayoutSpec, RegionSpec, UnknownPrompt, explained

MAX_BYTES = 1 << 20
NEAR = 48.0  # in RGB: a pixel farther than this from every colour of the table is background
Where = tuple[str | int, ...]


class LayoutError(ValueError):
    """A layout file that cannot be used; the message names file, line and key."""


@dataclass(frozen=True)
class _Parsed:
    """Plain values, and the line on which each key's value begins."""

    value: Any
    lines: Mapping[Where, int]

    def line(self, where: Where) -> int:
        """That of the value, or of the nearest thing around it."""
        while where and where not in self.lines:
            where = where[:-1]
        return self.lines.get(where, 1)


def read_layout(path: Path | str) -> LayoutSpec:
    """The layout of a YAML or JSON file; LayoutError says which file, line and key is wrong, and why."""
    path = Path(path)
    parsed = _parse(path)
    if not isinstance(parsed.value, dict):
        raise LayoutError(f"{path} holds no layout; write keys such as background and regions.")
    values = _with_files(path, parsed)
    try:
        spec = LayoutSpec(**values)
    except ValidationError as error:
        raise _wrong(path, parsed, *explained(error.errors()[0])) from None
    for i, region in enumerate(spec.parts):
        if region.use is not None and region.use not in spec.prompts:
            parts, kind = ("layers", "layer") if spec.layers else ("regions", "region")
            raise _wrong(path, parsed, (parts, i, "use"), str(UnknownPrompt(i, region.use, list(spec.prompts), kind)))
    return spec


def painted_layout(painting: Any, prompts: Mapping[str, str], background: str | None = None, **more: Any) -> LayoutSpec:
    """A layout from a painting (file, PIL picture or array) and a table from colours to prompts; the picture has its size.

    Colours are names or #rrggbb. What is painted in none of them is background.
    """
    if not prompts:
        raise ValueError("A painting needs a table from its colours to prompts; give at least one colour.")
    picture = _picture(painting)
    regions = [RegionSpec(prompt=prompt, colour=colour) for colour, prompt in prompts.items()]
    size = {"height": picture.shape[0], "width": picture.shape[1]} | more
    return LayoutSpec(background=background, painting=picture, regions=tuple(regions), **size)


def colour_masks(painting: Any, colours: Sequence[str], height: int, width: int) -> dict[str, Tensor]:
    """colour -> mask (1, 1, H, W). Every pixel goes to the nearest colour of the table, if there is one near enough."""
    picture = _picture(painting)
    if picture.shape[:2] != (height, width):
        raise ValueError(
            f"The painting is {picture.shape[1]} x {picture.shape[0]} pixels, but the picture {width} x {height}; "
            "scale one of them so that they agree."
        )
    distinct = list(dict.fromkeys(colours))
    table = np.array([rgb(colour) for colour in distinct], dtype=np.float32)
    if len({tuple(row) for row in table.tolist()}) < len(distinct):
        raise ValueError(f"Two of the colours {', '.join(distinct)} are the same; every region needs a colour of its own.")
    distance = ((picture[:, :, None].astype(np.float32) - table) ** 2).sum(-1)
    nearest, near = distance.argmin(-1), distance.min(-1) <= NEAR**2
    masks = {}
    for i, colour in enumerate(distinct):
        mask = (nearest == i) & near
        if not mask.any():
            raise ValueError(f"Nothing in the painting is {colour}; it has {_commonest(picture)}.")
        masks[colour] = torch.from_numpy(mask).float()[None, None]
    return masks


def rgb(colour: str) -> tuple[int, int, int]:
    try:
        return ImageColor.getrgb(colour)[:3]
    except ValueError:
        raise ValueError(f"{colour!r} is no colour; write a name such as red, or #rrggbb.") from None


def _picture(painting: Any) -> np.ndarray:
    """(H, W, 3) bytes, transparent pixels white."""
    from gen.io.images import read_picture

    if isinstance(painting, np.ndarray) and painting.dtype == np.uint8 and painting.ndim == 3 and painting.shape[2] == 3:
        return painting
    tensor = read_picture("The painting", painting, "RGB")
    return (tensor[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()


def _commonest(picture: np.ndarray) -> str:
    packed = picture.reshape(-1, 3).astype(np.uint32) @ np.array([65536, 256, 1], dtype=np.uint32)
    return ", ".join(f"#{int(value):06x}" for value, _ in Counter(packed.tolist()).most_common(6))


def _with_files(path: Path, parsed: _Parsed) -> dict[str, Any]:
    """The values with pictures in place of their names."""
    values = dict(parsed.value)
    if isinstance(values.get("painting"), str):
        values["painting"] = _open(path, values["painting"], parsed, ("painting",))
    for parts in ("regions", "layers"):
        if isinstance(listed := values.get(parts), list):
            values[parts] = [
                {**region, "mask": _open(path, region["mask"], parsed, (parts, i, "mask"))}
                if isinstance(region, dict) and isinstance(region.get("mask"), str)
                else region
                for i, region in enumerate(listed)
            ]
    return values


def _open(path: Path, name: str, parsed: _Parsed, where: Where) -> Image.Image:
    from gen.io.errors import RecipeError
    from gen.io.images import FORMATS, open_picture

    if "\0" in name:
        raise _wrong(path, parsed, where, f"{name!r} is no name of a file.")
    folder = path.parent.resolve()
    file = Path(os.path.realpath(folder / name))
    if Path(name).is_absolute() or not file.is_relative_to(folder):
        raise _wrong(path, parsed, where, f"{name!r} lies outside the layout's folder; put the picture beside the layout.")
    try:
        return open_picture(file, FORMATS, decode=True)
    except RecipeError as error:
        raise _wrong(path, parsed, where, str(error)) from None


def _wrong(path: Path, parsed: _Parsed, where: Where, message: str) -> LayoutError:
    key = ".".join(map(str, where)) or "the layout"
    return LayoutError(f"{path}, line {parsed.line(where)}, {key}: {message}")


def _parse(path: Path) -> _Parsed:
    try:
        if not path.is_file():
            raise LayoutError(f"{path} is not a file; give a layout in YAML or JSON.")
        if path.stat().st_size > MAX_BYTES:
            raise LayoutError(f"{path} is larger than {MAX_BYTES >> 20} MB, which no layout is.")
        text = decode_text(read_bytes(path, MAX_BYTES))
    except UnicodeDecodeError:
        raise LayoutError(f"{path} is not UTF-8 text; save it as such.") from None
    except OSError as error:
        raise LayoutError(f"{path} cannot be read ({error.strerror}).") from None
    loader = PlainLoader(text)
    lines: dict[Where, int] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            raise LayoutError(f"{path} is empty; give a layout in YAML or JSON.")
        return _Parsed(_plain(path, loader, node, (), lines), lines)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f", line {mark.line + 1}" if mark else ""
        raise LayoutError(f"{path}{place}: {error.problem or 'it is not YAML'}.") from None
    except Exception as error:  # YAML makes numbers of text, which raises what int() raises
        if isinstance(error, LayoutError):
            raise
        raise LayoutError(f"{path} is not YAML or JSON ({' '.join(str(error).split())[:500]}).") from None
    finally:
        loader.dispose()


def _plain(path: Path, loader: yaml.SafeLoader, node: yaml.Node, where: Where, lines: dict[Where, int]) -> Any:
    """A node as dicts, lists and scalars, with the lines noted."""
    lines[where] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(loader.construct_object(key_node)) if isinstance(key_node, yaml.ScalarNode) else "?"
            if key in mapping:
                raise LayoutError(f"{path}, line {key_node.start_mark.line + 1}: the key {key!r} appears twice.")
            mapping[key] = _plain(path, loader, value_node, (*where, key), lines)
            lines[(*where, key)] = key_node.start_mark.line + 1
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(path, loader, item, (*where, i), lines) for i, item in enumerate(node.value)]
    return loader.construct_object(node)
