"""Pictures as sixels: the graphics of DEC's VT340, which foot, Konsole, mlterm, contour and xterm show.

https://vt100.net/docs/vt3xx-gp/chapter14.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

COLOURS = 256
BAND = 6  # rows of pixels in a line of sixels


def sixel(image: Image) -> str:
    """A picture in at most 256 colours of its own, each channel in hundredths."""
    import numpy as np
    from PIL.Image import Quantize

    from gen.io.images import flat

    small = flat(image).quantize(COLOURS, method=Quantize.MEDIANCUT)
    indices, palette = np.asarray(small), np.array(small.getpalette()).reshape(-1, 3)
    used = np.unique(indices)
    registers = "".join(f"#{i};2;{';'.join(str(round(value * 100 / 255)) for value in palette[i])}" for i in used)
    bands = [_band(indices[top : top + BAND]) for top in range(0, image.height, BAND)]
    return f'\x1bP0;1q"1;1;{image.width};{image.height}{registers}{"-".join(bands)}\x1b\\'


def _band(rows: np.ndarray) -> str:
    """Up to six rows of colour indices (h, W): a line for each colour, one over the other."""
    import numpy as np

    bits = 1 << np.arange(len(rows))[:, None]  # the uppermost pixel is the lowest bit
    lines = []
    for colour in np.unique(rows):
        columns = ((rows == colour) * bits).sum(0)
        lines.append(f"#{colour}{_runs(np.trim_zeros(columns, 'b'))}")
    return "$".join(lines)


def _runs(columns: np.ndarray) -> str:
    """Sixels, where one repeats with its count before it."""
    import numpy as np

    starts = np.flatnonzero(np.diff(columns, prepend=-1))
    counts = np.diff(starts, append=len(columns))
    parts = []
    for value, count in zip(columns[starts], counts, strict=True):
        character = chr(63 + int(value))
        parts.append(f"!{count}{character}" if count > 3 else character * int(count))
    return "".join(parts)
