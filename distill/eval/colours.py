"""What colour the thing in a picture has, measured from its pixels and nothing else.

Pictures are (B, 3, H, W) in [-1, 1]. Apart from the conversion to hue, nothing is shared with the code that recolours
training pictures, so that the measurement does not repeat its choices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.data.emoji.recolor import hue_difference, rgb_to_hsv

BINS = 24  # of 15 degrees, to find the dominant hue
CHROMATIC = 0.15  # saturation below which a pixel has no hue
AREA = 0.25  # of the object, that the dominant hue must cover to name it
# upper limits in degrees of the words for a clear hue; red again from 345
LIMITS = (15, 40, 68, 165, 195, 250, 300, 345)
WORDS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink")


def colour_word(hue: float, saturation: float, value: float) -> str:
    """The everyday word for a hue in degrees with saturation and value in [0, 1]; pale reds are pink, dark oranges brown."""
    word = next((word for limit, word in zip(LIMITS, WORDS, strict=True) if hue < limit), "red")
    if word == "red" and saturation < 0.5 and value > 0.6:
        return "pink"
    return "brown" if 10 < hue < 45 and value < 0.65 else word


def object_colours(images: Tensor) -> list[str]:
    """The colour word of what stands before the background of each picture: black, gray or white where no hue dominates.

    The background is the median colour of the border, and the object all that clearly differs from it. A picture that is
    all background has the background's colour.
    """
    rgb = (images.detach().float().clamp(-1, 1) + 1) / 2
    border = torch.cat([rgb[:, :, 0], rgb[:, :, -1], rgb[..., 0], rgb[..., -1]], 2).median(2).values
    apart = (rgb - border[:, :, None, None]).abs().amax(1) > 0.12
    apart |= ~apart.any((1, 2), keepdim=True).expand_as(apart)
    hue, saturation, value = rgb_to_hsv(rgb)
    words = []
    for h, s, v, inside in zip(hue, saturation, value, apart, strict=True):
        h, s, v = h[inside], s[inside], v[inside]
        weight = torch.where((s > CHROMATIC) & (v > 0.1), s * v, 0.0)
        histogram = torch.zeros(BINS).index_add_(0, (h * BINS / 360).long() % BINS, weight)
        peak = (histogram + 0.7 * (histogram.roll(1) + histogram.roll(-1))).argmax()
        centre = (peak + 0.5) * 360 / BINS
        near = (hue_difference(h, centre).abs() < 30) & (weight > 0)
        if near.float().mean() < AREA:
            words.append("black" if v.mean() < 0.35 else "white" if v.mean() > 0.85 else "gray")
            continue
        w = weight[near] / weight[near].sum()
        mean_hue = float(centre + (hue_difference(h[near], centre) * w).sum()) % 360
        words.append(colour_word(mean_hue, float((s[near] * w).sum()), float((v[near] * w).sum())))
    return words
