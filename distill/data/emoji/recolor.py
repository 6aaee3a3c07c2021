"""Give a picture's object another colour: the pixels near its dominant hue move to the hue that is asked for.

Pictures are RGB (B, 3, H, W) in [0, 1], with alpha apart and not multiplied in. Hue is in degrees, saturation and value in
[0, 1] (the hexcone model: A. R. Smith, "Color gamut transform pairs", 1978).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# colour -> (hue, saturation factor, value factor, value offset): value' = factor * value + offset
COLOURS: dict[str, tuple[float, float, float, float]] = {
    "red": (0, 1.0, 1.0, 0.0),
    "orange": (28, 1.0, 1.0, 0.0),
    "yellow": (50, 1.0, 1.0, 0.0),
    "green": (125, 0.9, 0.8, 0.0),
    "blue": (215, 1.0, 0.95, 0.0),
    "purple": (275, 0.8, 0.8, 0.0),
    "pink": (335, 0.55, 0.5, 0.5),
    "brown": (22, 0.75, 0.55, 0.0),
    "black": (0, 0.0, 0.25, 0.0),
    "white": (0, 0.0, 0.45, 0.5),
    "gray": (0, 0.0, 0.65, 0.0),
    "teal": (178, 0.9, 0.75, 0.0),
}
# colour -> RGB in 0..255
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (222, 60, 60),
    "orange": (245, 150, 60),
    "yellow": (250, 220, 90),
    "green": (90, 180, 100),
    "blue": (80, 140, 230),
    "light blue": (180, 215, 250),
    "purple": (150, 100, 210),
    "pink": (250, 170, 200),
    "brown": (140, 95, 60),
    "black": (20, 20, 24),
    "gray": (150, 150, 150),
    "teal": (60, 180, 180),
}

BIN = 15.0  # degrees, of the histogram that finds the dominant hue
INNER, OUTER = 42.0, 62.0  # degrees from the dominant hue: wholly and not at all part of the object
SPREAD = 0.35  # share of the object's own hue variation that is kept, so that shading stays alive


@dataclass(frozen=True)
class Palette:
    """What recolouring must know of N pictures, each (N,): the dominant hue, its mean saturation and value, and which kind
    of picture it is. `hued`: one hue dominates. `plain`: next to no colour (then the whole is tinted). Neither: no colour
    can be called the object's."""

    hue: Tensor
    saturation: Tensor
    value: Tensor
    hued: Tensor
    plain: Tensor
    names: tuple[str | None, ...]

    @property
    def recolourable(self) -> Tensor:
        return self.hued | self.plain


def rgb_to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, 3, ...) in [0, 1] -> hue in [0, 360], saturation, value, each (B, ...)."""
    r, g, b = rgb.unbind(1)
    # the three cases of the hexcone are told apart by arithmetic: a torch.where costs as much as ten of these lines
    upper, lower = torch.maximum(g, b), torch.minimum(g, b)
    blue_over_green = _above(b, g)
    not_red = _above(upper, r)
    value, middle = torch.maximum(r, upper), torch.minimum(r, upper)
    chroma = value - torch.minimum(middle, lower)
    sector = blue_over_green * (2 * not_red - 1) - not_red / 3
    hue = (sector + (middle - lower) / (6 * chroma).clamp_min(1e-6)).abs() * 360
    return hue, chroma / value.clamp_min(1e-6), value


def _above(a: Tensor, b: Tensor) -> Tensor:
    """1 where a > b, else 0, as floats."""
    return ((a - b) * 1e9).clamp(0, 1)


def hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of `rgb_to_hsv`: three (B, ...) tensors, hue in [0, 360] -> (B, 3, ...)."""
    h, chroma = hue / 60, value * saturation
    ramps = ((h - 3).abs() - 1, 2 - (h - 2).abs(), 2 - (h - 4).abs())
    return torch.stack([value - chroma + chroma * ramp.clamp(0, 1) for ramp in ramps], 1)


def hue_difference(a: Tensor, b: Tensor) -> Tensor:
    """a - b in degrees, the shorter way round, in [-180, 180]."""
    difference = a - b
    return difference - 360 * torch.round(difference / 360)


def colour_name(hue: float, saturation: float, value: float) -> str | None:
    """The everyday word for a colour that covers most of a picture, or None where it is too dull to have one."""
    if saturation < 0.35:
        return None
    if 12 < hue < 45 and value < 0.62:
        return "brown"
    if hue < 13 or hue >= 334:
        return "red" if saturation > (0.5 if hue < 13 or hue >= 348 else 0.65) else "pink"
    limits = ((38, "orange"), (62, "yellow"), (165, "green"), (192, "teal"), (248, "blue"), (295, "purple"))
    return next((name for limit, name in limits if hue < limit), "pink")


def measure(pictures: Tensor) -> Palette:
    """The palette of (N, 4, H, W) uint8 pictures, from every fourth pixel in each direction."""
    parts = [_measure(chunk) for chunk in pictures[:, :, 1::4, 1::4].split(256)]
    hue, saturation, value, hued, plain = (torch.cat(column) for column in zip(*parts, strict=True))
    rows = zip(hue.tolist(), saturation.tolist(), value.tolist(), hued.tolist(), strict=True)
    names = tuple(colour_name(h, s, v) if has_hue else None for h, s, v, has_hue in rows)
    return Palette(hue, saturation, value, hued, plain, names)


def _measure(pictures: Tensor) -> tuple[Tensor, ...]:
    rgba = pictures.float() / 255
    alpha = rgba[:, 3]
    hue, saturation, value = rgb_to_hsv(rgba[:, :3])
    bins = int(360 / BIN)
    histogram = torch.zeros(len(rgba), bins)
    index = (hue / BIN).long().clamp_max(bins - 1).flatten(1)
    histogram.scatter_add_(1, index, (alpha * saturation * value).flatten(1))
    smooth = histogram + 0.7 * (histogram.roll(1, 1) + histogram.roll(-1, 1))
    peak = (smooth.argmax(1).float() + 0.5) * BIN
    area = alpha.sum((1, 2)).clamp_min(1)
    coloured = alpha * (saturation > 0.2) * (value > 0.15)
    near = coloured * (hue_difference(hue, peak[:, None, None]).abs() < 45)
    share, total = near.sum((1, 2)) / area, coloured.sum((1, 2)) / area
    mean = (rgba[:, :3] * near[:, None]).sum((2, 3)) / near.sum((1, 2)).clamp_min(1e-6)[:, None]
    mean_hue, mean_saturation, mean_value = rgb_to_hsv(mean)
    plain = total < 0.15
    light = alpha * _colourless(saturation, value)
    mean_light = (light * value).sum((1, 2)) / light.sum((1, 2)).clamp_min(1e-6)
    mean_value = torch.where(plain, mean_light, mean_value)
    hued = (share > 0.4) & (share > 0.7 * total) & ~plain
    return torch.where(plain, peak, mean_hue), mean_saturation, mean_value, hued, plain


def _colourless(saturation: Tensor, value: Tensor) -> Tensor:
    """How far a pixel of a plain object is to be tinted, in [0, 1]: light and grey wholly, outlines not at all."""
    return ((0.35 - saturation) / 0.1).clamp(0, 1) * ((value - 0.3) / 0.15).clamp(0, 1)


def recolour(rgb: Tensor, palette: Palette, rows: Tensor, colours: list[str]) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] with the object of picture i in `colours[i]`.

    `rows` (B,): where in the palette each picture is.
    """
    target = torch.tensor([COLOURS[colour] for colour in colours])[..., None, None]
    target_hue, saturation_factor, value_factor, value_offset = target.unbind(1)
    hue, saturation, value = rgb_to_hsv(rgb)
    plain = palette.plain[rows].to(rgb.dtype)[:, None, None]

    distance = hue_difference(hue, palette.hue[rows][:, None, None])
    member = ((OUTER - distance.abs()) / (OUTER - INNER)).clamp(0, 1)
    member = member * ((saturation - 0.1) / 0.1).clamp(0, 1) * ((value - 0.05) / 0.1).clamp(0, 1)
    # dull and dark objects are lifted: a dark green times "yellow" would be olive
    vivid = (0.75 / palette.saturation[rows].clamp_min(0.1)).clamp(1, 2)[:, None, None]
    bright = (0.9 / palette.value[rows].clamp_min(0.1)).clamp(1, 2.4)[:, None, None]
    new_hue = target_hue + SPREAD * distance
    new_hue = new_hue - 360 * torch.floor(new_hue / 360)
    new_saturation = (saturation * vivid).clamp(0, 1) * saturation_factor
    new_value = (value * bright).clamp(0, 1) * value_factor + value_offset

    # a plain object has no hue to move: its light, colourless pixels are tinted
    new_hue = torch.lerp(new_hue, target_hue, plain)
    new_saturation = torch.lerp(new_saturation, 0.75 * saturation_factor, plain)
    member = torch.lerp(member, _colourless(saturation, value), plain)[:, None]

    new = hsv_to_rgb(new_hue, new_saturation, new_value.clamp(0, 1))
    return torch.lerp(rgb, new, member)


def composite(rgb: Tensor, alpha: Tensor, backgrounds: Tensor) -> Tensor:
    """Straight-alpha (B, 3, H, W) and (B, 1, H, W) over (B, 3) colours, all in [0, 1] -> (B, 3, H, W)."""
    return torch.lerp(backgrounds[:, :, None, None], rgb, alpha)
