"""A picture while it is drawn: shown in a terminal below the line of the progress bar, each over the one before it."""

from __future__ import annotations

import math
import shutil
import struct
import sys
import time
from typing import Any, TextIO

from gen.cli.terminal_pictures import drawn, lines_of

EVERY = 0.3  # seconds between two previews, at least
CELL = 20  # pixels that a line of text is high, where the terminal does not say
ID = 7340  # of the preview among kitty's pictures


class LivePreview:
    """What `callback_on_step_end` of a run is, with `denoised` among its tensors.

    kind: how pictures are shown (`gen.cli.terminal_pictures`).
    every: seconds between two previews.
    """

    def __init__(self, kind: str, file: TextIO | None = None, every: float = EVERY):
        self.kind, self.file, self.every = kind, sys.stderr if file is None else file, every
        self.shown = 0
        self._last = -math.inf

    def __call__(self, generator: Any, step: int, t: Any, tensors: dict[str, Any]) -> None:
        if self.every == math.inf or time.monotonic() - self._last < self.every:
            return
        latents = tensors["denoised"][:1]
        try:
            image = generator.preview(latents)[0]
        except ValueError:  # a layout that only the pipeline knows
            self.every = math.inf
            return
        height, width = latents.shape[-2:]
        if image.size == (width, height):  # a pixel for each of the latents
            image = image.resize((width * generator.factor, height * generator.factor))
        self.show(image)
        self._last = time.monotonic()

    def show(self, image: Any) -> None:
        """Draw below the cursor, which stays where it is. Nothing where there is no room."""
        size = shutil.get_terminal_size()
        cell = cell_height(self.file)
        if self.kind == "none" or (self.kind == "sixel" and cell is None):
            return  # how many lines sixels cover is not known
        lines = lines_of(image, self.kind, size.columns, cell or CELL)
        if lines + 2 > size.lines:
            return
        room = "\n" * (lines + 1) + f"\x1b[{lines + 1}A"  # the screen scrolls now, or not at all
        picture = drawn(image, self.kind, size.columns, lines, ID)
        self.file.write(f"{room}\x1b7\r\n{picture}\x1b8")
        self.file.flush()
        self.shown += 1

    def close(self) -> None:
        """Take the last one away."""
        if self.shown:
            self.file.write(f"\x1b_Ga=d,d=I,i={ID},q=2\x1b\\" if self.kind == "kitty" else "")
            self.file.write("\x1b[J")
            self.file.flush()


def cell_height(file: TextIO) -> int | None:
    """Pixels of a line of text, where the terminal says."""
    try:
        import fcntl
        import termios

        rows, _, _, pixels = struct.unpack("HHHH", fcntl.ioctl(file.fileno(), termios.TIOCGWINSZ, bytes(8)))
    except (ImportError, OSError, ValueError):
        return None
    return pixels // rows if rows and pixels >= rows else None
