"""ADM's U-Nets and upsamplers as their authors publish them (guided-diffusion; arXiv 2105.05233).

A file does not tell the size of pictures, nor how many heads attention has: `PUBLISHED` repeats the flags that belong to each
published network, which its widths tell apart. Of another network, give heads and size.
"""

from __future__ import annotations

import re
from typing import Any

from gen.models.formats.format import Format, Settings, Shapes, given, shape_of
from gen.models.formats.table import Row, Table

Widths = tuple[float, ...]
SIZES: dict[Widths, int] = {  # multipliers of each picture size, in guided-diffusion's script_util.py
    (1, 2, 3, 4): 64,
    (1, 1, 2, 3, 4): 128,
    (1, 1, 2, 2, 4, 4): 256,
    (0.5, 1, 1, 2, 2, 4, 4): 512,
}
# upsamplers have the same multipliers at both sizes, and attention at 32, 16 and 8 pixels, or at 32 and 16
UPSAMPLERS: dict[tuple[int, ...], int] = {(8, 16, 32): 256, (16, 32): 512}
BY_CHANNELS: dict[str, Any] = {"head_dim": 64}
# (size, dim, channels of an enlarged picture) -> flags of its README
PUBLISHED: dict[tuple[int, int, int], dict[str, Any]] = {
    (64, 192, 0): BY_CHANNELS | {"heads_first": False},
    (128, 256, 0): {"heads": 4},
    (256, 256, 0): BY_CHANNELS,
    (512, 256, 0): BY_CHANNELS,
    (256, 192, 3): {"heads": 4},
    (512, 192, 3): BY_CHANNELS,
}
_BLOCK = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "modulation", "out_layers.0": "norm2"}
_BLOCK |= {"out_layers.3": "conv2", "skip_connection": "skip"}
PARTS = {**_BLOCK, "norm": "norm", "qkv": "qkv", "proj_out": "proj"}


def way(theirs: str, ours: str, resampling: str) -> list[Row]:
    """Rows of numbered steps, each of up to three parts one after another. resampling: their name of a convolution between
    resolutions."""
    parts = {**PARTS, resampling: "conv"}
    names = [(f"{{i}}.{place}.{one}.*", f"{{i}}.{place}.{own}.*") for place in range(3) for one, own in parts.items()]
    return [(f"{theirs}.{name}", f"{ours}.{own}") for name, own in names]


DOWN: list[Row] = [
    ("time_embed.0.*", "time_embed.0.*"),
    ("time_embed.2.*", "time_embed.2.*"),
    ("input_blocks.0.0.*", "down_blocks.0.0.*"),
    *way("input_blocks", "down_blocks", "op"),
    *[(f"middle_block.{place}.{one}.*", f"mid_block.{place}.{own}.*") for place in range(3) for one, own in PARTS.items()],
]
TABLE: Table = [
    *DOWN,
    ("label_emb.weight", "label_embed.weight"),
    *way("output_blocks", "up_blocks", "conv"),
    ("out.0.*", "norm.*"),
    ("out.2.*", "head.*"),
]


def count(shapes: Shapes, prefix: str) -> int:
    """How many steps `prefix` has: numbered from 0 without a gap."""
    numbers = {
        int(n) for name in shapes if name.startswith(f"{prefix}.") and (n := name.split(".")[1]).isdecimal() and len(n) < 5
    }
    if not numbers or max(numbers) != len(numbers) - 1:
        raise ValueError(f"has the steps {prefix}.{sorted(numbers)[:5]}..., which are not numbered from 0 without a gap")
    return len(numbers)


def way_down(shapes: Shapes, blocks: int) -> dict[str, Any]:
    """What both networks share, by shapes, of a network with so many blocks at each resolution."""
    dim, steps = shape_of(shapes, "time_embed.0.weight", 2)[1], count(shapes, "input_blocks")
    if blocks < 1 or steps % (blocks + 1):
        raise ValueError(f"has {steps} steps on the way down, which are not some resolutions of {blocks} blocks each")
    levels, widths, attention = steps // (blocks + 1), [], []
    for level in range(levels):
        first = 1 + level * (blocks + 1)
        width, _, _, _ = shape_of(shapes, f"input_blocks.{first}.0.out_layers.3.weight", 4)
        widths.append(width / dim)
        if f"input_blocks.{first}.1.qkv.weight" in shapes:
            attention.append(2**level)
    told = shape_of(shapes, "input_blocks.1.0.emb_layers.1.weight", 2)[0]
    return {
        "dim": dim,
        "multipliers": tuple(widths),
        "blocks": blocks,
        "attention": tuple(attention),
        "scale_shift": told == 2 * round(widths[0] * dim),
        "resample_blocks": levels == 1 or f"input_blocks.{blocks + 1}.0.op.weight" not in shapes,
    }


def size_of(sizes: dict[str, Any], settings: Settings, beside: int = 0) -> int:
    """The side of its pictures: as given, or as published for these widths. beside: channels of an enlarged picture."""
    if settings.get("size"):
        return int(settings["size"])
    published = UPSAMPLERS.get(sizes["attention"]) if beside else SIZES.get(sizes["multipliers"])
    return published or int(given(settings, "size", "its widths are those of no published network"))


def infer(shapes: Shapes, settings: Settings) -> dict[str, Any]:
    # the first resolution on the way up ends with what enlarges, a convolution or a block behind the first part
    enlarging = re.compile(r"output_blocks\.(\d{1,4})\.[12]\.(conv|in_layers\.0)\.weight")
    ends = [int(match[1]) for name in shapes if (match := enlarging.fullmatch(name))]
    blocks = min(ends) if ends else count(shapes, "output_blocks") - 1
    sizes = way_down(shapes, blocks)
    out, _, _, _ = shape_of(shapes, "out.2.weight", 4)
    _, read, _, _ = shape_of(shapes, "input_blocks.0.0.weight", 4)
    channels = 3 if out in (3, 6) else out
    if read not in (channels, 2 * channels) or out not in (channels, 2 * channels):
        raise ValueError(
            f"reads {read} channels and gives {out}, which is no picture of {channels}, with a variance or another"
        )
    beside, size = read - channels, size_of(sizes, settings, read - channels)
    flags = PUBLISHED.get((size, sizes["dim"], beside))
    if settings.get("heads") or flags is None:
        flags = {"heads": int(given(settings, "heads", "it has the widths of no published network"))}
    classes = shape_of(shapes, "label_emb.weight", 2)[0] if "label_emb.weight" in shapes else 0
    learned = {"channels": channels, "beside": beside, "learned_variance": out == 2 * channels, "num_classes": classes}
    return {"type": "adm", "size": size, **learned, **sizes, **flags}


SHARED = ("size", "channels", "dim", "multipliers", "blocks", "attention", "scale_shift", "resample_blocks")
TOLD = frozenset((*SHARED, "heads", "head_dim", "heads_first"))

FORMAT = Format(
    name="adm",
    description="ADM (guided-diffusion) as its authors publish it",
    kind="adm",
    signature=("input_blocks.0.0.weight", "output_blocks.0.0.in_layers.0.weight", "middle_block.1.qkv.weight", "out.2.weight"),
    blocks=("input_blocks", "output_blocks"),
    table=TABLE,
    infer=infer,
    stored=TOLD | {"beside", "learned_variance", "num_classes"},
)
