"""The element that is painted on: a picture with layers of a brush, boxes and borders (`static/painter.js`)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nicegui import ui

BRUSH, SMALLEST, LARGEST = 24, 2, 400  # pixels of the picture
MOST_PAINTED = 900_000  # characters of all layers: what a message may hold
_WAIT = 30.0  # seconds for the browser to answer
COLOURS = ("#ff5a5f", "#2f80ed", "#27ae60", "#f2a900", "#9b51e0", "#00a3a3", "#eb5ba5", "#8d6e63")


@dataclass(frozen=True)
class PaintedLayer:
    """A layer that is not empty. box: left, top, width, height in pixels; png: else a picture, white where it is painted."""

    box: tuple[int, int, int, int] | None = None
    png: bytes | None = None


class PaintCanvas(ui.element, component="static/painter.js"):
    """A picture to paint on.

    mode: "mask" and "sheet" are painted on, the second without its picture; "extend" has borders to drag; "view" nothing.
    tool: "brush", "erase" or "box". size: of the brush, in pixels of the picture.
    Events: "painted" {layer, share}, "extended" {left, ...}, "loaded" {width, height}, "brush" +1 or -1, "tool" name.
    """

    def __init__(self, label: str):
        super().__init__()
        self._props |= {"src": "", "mode": "mask", "tool": "brush", "size": BRUSH, "active": 0, "width": 0, "height": 0}
        self._props |= {"label": label, "layers": [{"colour": COLOURS[0], "label": ""}], "extend": {}}
        self.on("brush", lambda event: self.set_brush(self.size + event.args * max(round(self.size * 0.2), 1)))
        self.on("tool", lambda event: self.show(tool=event.args))

    @property
    def size(self) -> int:
        """Of the brush, in pixels."""
        return int(self._props["size"])

    def show(self, **props: Any) -> None:
        """Other values of src, mode, tool, active, width, height, layers or extend."""
        changed = {name: value for name, value in props.items() if self._props.get(name) != value}
        if changed:
            self._props |= changed
            self.update()

    def set_brush(self, size: float | None) -> None:
        """In pixels, kept within bounds."""
        self.show(size=round(min(max(size or BRUSH, SMALLEST), LARGEST)))

    async def layers(self) -> list[PaintedLayer | None]:
        """What is painted on each, None on the empty ones. ValueError where it is too much, or the page does not answer."""
        try:
            given = await self.run_method("export_layers", timeout=_WAIT)
        except TimeoutError:
            raise ValueError("The page did not answer with what is painted; try again.") from None
        return read_layers(given)


def read_layers(given: Any) -> list[PaintedLayer | None]:
    """What a browser says is painted; ValueError for anything else."""
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) > 64:
        raise ValueError("The page said nothing that can be read of what is painted; load it again.")
    if sum(len(str(one.get("png", ""))) for one in given if isinstance(one, Mapping)) > MOST_PAINTED:
        raise ValueError("What is painted is too intricate to be sent; use a larger brush, or boxes.")
    return [None if one is None else _layer(one) for one in given]


def _layer(one: Any) -> PaintedLayer:
    box, png = (one.get("box"), one.get("png")) if isinstance(one, Mapping) else (None, None)
    whole = isinstance(box, list) and len(box) == 4 and all(isinstance(side, int | float) and side >= 0 for side in box)
    if whole:
        left, top, width, height = (round(side) for side in box or ())
        return PaintedLayer(box=(left, top, width, height))
    head, _, data = str(png).partition(",")
    try:
        if head == "data:image/png;base64":
            return PaintedLayer(png=base64.b64decode(data, validate=True))
    except binascii.Error:
        pass
    raise ValueError("A layer is neither a box nor a picture; load the page again.")
