"""A picture of spectra: singular values of every layer on a logarithmic axis, and the norms of the layers."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from customization.algebra.spectrum import Spectrum

SCALE = 2  # lines are drawn at twice the size and shrunk, which smooths them
PANEL, HEIGHT, LEFT, TOP, BOTTOM, GAP = 520, 420, 64, 40, 56, 20
DECADES = 4
GREY, GRID = (110, 110, 110), (225, 225, 225)


def colour(i: int, n: int) -> tuple[int, int, int]:
    """From blue at the first layer to red at the last."""
    r, g, b = colorsys.hsv_to_rgb(0.66 * (1 - i / max(n - 1, 1)), 0.75, 0.85)
    return int(255 * r), int(255 * g), int(255 * b)


class _Panel:
    """Axes with a box: data -> pixels, grid lines with labels."""

    def __init__(self, draw: ImageDraw.ImageDraw, left: int, title: str, x: tuple[float, float], y: tuple[float, float]):
        self.draw, self.x, self.y = draw, x, y
        self.left, self.right = left + LEFT, left + PANEL
        self.top, self.bottom = TOP, HEIGHT - BOTTOM
        self.text((self.left + self.right) / 2, 20, title, "mm", 14, (0, 0, 0))

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return SCALE * (self.left + across * (self.right - self.left)), SCALE * (self.bottom - up * (self.bottom - self.top))

    def text(self, x: float, y: float, text: str, anchor: str, size: int = 11, fill: tuple[int, int, int] = GREY) -> None:
        self.draw.text((SCALE * x, SCALE * y), text, fill, ImageFont.load_default(SCALE * size), anchor)

    def grid(self, xs: Sequence[float], ys: Sequence[tuple[float, str]], label: str) -> None:
        for y, name in ys:
            (_, height), (start, _) = self.at(self.x[0], y), self.at(self.x[0], y)
            self.draw.line((start, height, SCALE * self.right, height), GRID, SCALE)
            self.text(self.left - 6, height / SCALE, name, "rm")
        for x in xs:
            across, _ = self.at(x, self.y[0])
            self.draw.line((across, SCALE * self.top, across, SCALE * self.bottom), GRID, SCALE)
            self.text(across / SCALE, self.bottom + 10, f"{x:g}", "mt")
        self.text((self.left + self.right) / 2, self.bottom + 32, label, "mt")
        self.draw.rectangle(
            (SCALE * self.left, SCALE * self.top, SCALE * self.right, SCALE * self.bottom), outline=GREY, width=SCALE
        )


def plot_spectra(spectra: Sequence[Spectrum], title: str = "") -> Image.Image:
    """Left: singular values of each layer over their index, relative to the layer's first. Right: each layer's norm.

    Layers are coloured from blue, the first, to red, the last. ValueError where no layer has singular values.
    """
    shown = [one for one in spectra if one.spectral]
    if not shown:
        raise ValueError("No layer changes a weight, so there is no spectrum to draw.")
    head = 28 if title else 0
    sheet = Image.new("RGB", (SCALE * (2 * (PANEL + GAP)), SCALE * HEIGHT), "white")
    draw = ImageDraw.Draw(sheet)
    longest = max(len(one.s) for one in shown)
    left = _Panel(draw, 0, "singular values / the largest", (1, max(longest, 2)), (-DECADES, 0))
    left.grid(ticks(1, max(longest, 2)), [(-d, "1" if d == 0 else f"1e-{d}") for d in range(DECADES + 1)], "index")
    for i, one in enumerate(shown):
        points = [left.at(n + 1, max(math.log10(s / one.spectral), -DECADES)) for n, s in enumerate(one.s) if s]
        if len(points) > 1:
            draw.line(points, colour(i, len(shown)), SCALE, "curve")
        else:
            x, y = points[0]
            draw.ellipse((x - SCALE, y - SCALE, x + SCALE, y + SCALE), colour(i, len(shown)))
    most = max(one.norm for one in shown)
    right = _Panel(draw, PANEL + GAP, "norm of the change, layer by layer", (0, len(shown)), (0, 1.05 * most))
    right.grid(ticks(0, len(shown)), [(y, f"{y:.3g}") for y in ticks(0, most)], "layer")
    for i, one in enumerate(shown):
        (x0, y0), (x1, y1) = right.at(i + 0.1, one.norm), right.at(i + 0.9, 0)
        draw.rectangle((x0, y0, max(x1, x0 + 1), y1), colour(i, len(shown)))
    small = sheet.resize((sheet.width // SCALE, sheet.height // SCALE), Image.Resampling.LANCZOS)
    if not title:
        return small
    whole = Image.new("RGB", (small.width, small.height + head), "white")
    whole.paste(small, (0, head))
    ImageDraw.Draw(whole).text((whole.width / 2, head / 2 + 4), title[:120], (0, 0, 0), ImageFont.load_default(15), "mm")
    return whole


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from low to high, at most about `most` of them."""
    raw = (high - low) / most
    step = 10 ** math.floor(math.log10(raw))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= raw)
    first = math.ceil(low / step) * step
    return [first + i * step for i in range(int((high - first) / step + 1e-9) + 1)]
