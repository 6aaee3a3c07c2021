"""The sizes that models were trained at. PixArt and SDXL: one for each of a list of aspect ratios, all of about as many pixels.

SDXL's list: arXiv 2307.01952, appendix I; PixArt takes part of it, and half, a quarter and twice of that (arXiv 2310.00426).
"""

from __future__ import annotations

import warnings

from gen.io.validators import check_size
from gen.models.folder import ModelConfig

Size = tuple[int, int]  # height, width

LEAST, MOST = 0.5, 2.0  # of the pixels that a model was trained on: where pictures still hold together, by eye

_WIDE = (
    (512, 2048), (512, 1856), (576, 1792), (576, 1728), (576, 1664), (640, 1600), (640, 1536), (704, 1472), (704, 1408),
    (704, 1344), (768, 1344), (768, 1280), (832, 1216), (832, 1152), (896, 1152), (896, 1088), (960, 1088), (960, 1024),
)  # fmt: skip
_TALL = (
    (1024, 960), (1088, 960), (1088, 896), (1152, 896), (1152, 832), (1216, 832), (1280, 768), (1344, 768), (1408, 704),
    (1472, 704), (1536, 640), (1600, 640), (1728, 576), (2048, 512),
)  # fmt: skip
_BASE = (*_WIDE, (1024, 1024), *_TALL)
_LARGE = {(512, 1984), (512, 1920), (1664, 576), (1792, 576), (1856, 512), (1920, 512), (1984, 512)}  # at 2048 only
_LARGE_BASE = sorted({*_BASE, *_LARGE}, key=lambda size: size[0] / size[1])


def _scaled(sizes: tuple[Size, ...] | list[Size], by: float) -> tuple[Size, ...]:
    return tuple((int(height * by), int(width * by)) for height, width in sizes)


TABLES: dict[int, tuple[Size, ...]] = {
    256: _scaled(_BASE, 0.25),
    512: _scaled(_BASE, 0.5),
    1024: _BASE,
    2048: _scaled(_LARGE_BASE, 2),
}


def nearest(height: int, width: int, table: int) -> Size:
    """The size in TABLES[table] whose aspect ratio, rounded to two digits as in the published lists, is nearest."""
    return min(TABLES[table], key=lambda size: abs(round(size[0] / size[1], 2) - height / width))


def made_at(
    config: ModelConfig, name: str, height: int | None, width: int | None, binned: object
) -> tuple[int | None, int | None, Size | None]:
    """(height, width to make a picture at, height and width to cut it to: None where they are the same). binned: at the
    nearest of the model's sizes; None is as the model does by default."""
    binned = config.defaults.use_resolution_binning if binned is None else binned
    if not isinstance(binned, bool):
        raise ValueError(f"use_resolution_binning is {binned!r}; give True or False.")
    table = config.size_bins
    if not binned:
        return height, width, None
    if table is None:
        raise ValueError(
            f"The model {name!r} has no list of sizes that it was trained at; leave use_resolution_binning (--bins) out."
        )
    requested = check_size(height, width, config.sample_size, 1)
    bucket = nearest(*requested, table)
    return *bucket, requested if bucket != requested else None


def warn_size(config: ModelConfig, name: str, height: int, width: int) -> None:
    """A warning, with the way out, where a picture has so many more or fewer pixels than those that the model was trained on
    that it repeats things or loses them."""
    side = config.sample_size
    share = height * width / side**2
    if LEAST <= share <= MOST:
        return
    start = f"The model {name!r} was made for pictures of {side} x {side}; at {width} x {height} it "
    if share > MOST:
        way = "repeats things and loses their shape. Make it with panorama (many things), or make a small one and upscale it."
    else:
        way = f"loses the shape of things. Make the picture at {side} x {side} and scale it down."
    warnings.warn(start + way, stacklevel=4)
