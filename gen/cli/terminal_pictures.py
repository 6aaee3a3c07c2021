"""Pictures in a terminal: by the protocols of kitty and iTerm2 where it says that it is one of those, else in half blocks.

A terminal is judged by what it says of itself in the environment; nothing is asked of it, since an answer would end up among
what is typed. Inside of tmux and screen, which pass no pictures on, there are half blocks.
"""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = ("auto", "none", "kitty", "iterm", "blocks", "blocks256")
_CHUNK = 4096  # bytes of base64 in one message to kitty
_CUBE = (0, 95, 135, 175, 215, 255)  # the levels of the 256 colours


def detect(environment: Mapping[str, str] | None = None, terminal: bool | None = None) -> str:
    """The kind that fits where this program prints: one of KINDS but "auto". terminal: whether stderr is one."""
    environment = os.environ if environment is None else environment
    if not (sys.stderr.isatty() if terminal is None else terminal):
        return "none"
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    inside = "TMUX" in environment or term.startswith(("screen", "tmux"))
    if not inside and (term in ("xterm-kitty", "xterm-ghostty") or "KITTY_WINDOW_ID" in environment or program == "ghostty"):
        return "kitty"
    if not inside and (program in ("iTerm.app", "WezTerm", "mintty") or environment.get("LC_TERMINAL") == "iTerm2"):
        return "iterm"
    if environment.get("COLORTERM") in ("truecolor", "24bit"):
        return "blocks"
    return "blocks256" if "256" in term else "none"


def choose(kind: str) -> str:
    """A kind by name, "auto" being what is detected. ValueError for another name."""
    if kind not in KINDS:
        raise ValueError(f"--preview is {kind!r:.80}; give one of {', '.join(KINDS)}.")
    return detect() if kind == "auto" else kind


def show(image: Image, kind: str, columns: int | None = None, file: TextIO | None = None) -> None:
    """Print a picture to stderr; nothing for "none". columns: of the terminal, at most 80 of which half blocks take."""
    file = sys.stderr if file is None else file
    if columns is None:
        import shutil

        columns = shutil.get_terminal_size().columns
    text = {"none": lambda: "", "kitty": lambda: kitty(image), "iterm": lambda: iterm(image)}.get(
        kind, lambda: blocks(image, min(columns, 80), true_colour=kind == "blocks")
    )()
    if text:
        print(text, file=file, flush=True)


def kitty(image: Image) -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol: transmit and display, a PNG in chunks."""
    data = _png(image)
    chunks = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    messages = []
    for number, chunk in enumerate(chunks):
        keys = "a=T,f=100,q=2," if number == 0 else ""
        messages.append(f"\x1b_G{keys}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(messages)


def iterm(image: Image) -> str:
    """https://iterm2.com/documentation-images.html: a file that is shown in place."""
    data = _png(image)
    return f"\x1b]1337;File=inline=1;size={len(base64.b64decode(data))};preserveAspectRatio=1:{data}\x07"


def blocks(image: Image, columns: int, true_colour: bool = True) -> str:
    """Two pixels in each character, the upper half block in front of its background."""
    from PIL.Image import Resampling

    width = max(min(columns, image.width), 1)
    height = max(round(image.height * width / image.width), 1)
    small = image.convert("RGB").resize((width, height), Resampling.LANCZOS)
    lines = []
    for y in range(0, height, 2):
        cells = []
        for x in range(width):
            above = small.getpixel((x, y))
            below = small.getpixel((x, y + 1)) if y + 1 < height else None
            cells.append(f"\x1b[{_colour(38, above, true_colour)}{_background(below, true_colour)}m▀")
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _background(pixel: object, true_colour: bool) -> str:
    return ";49" if pixel is None else f";{_colour(48, pixel, true_colour)}"


def _colour(code: int, pixel: object, true_colour: bool) -> str:
    red, green, blue = cast(tuple[int, int, int], pixel)
    if true_colour:
        return f"{code};2;{red};{green};{blue}"
    near = [min(range(6), key=lambda i: abs(_CUBE[i] - value)) for value in (red, green, blue)]
    return f"{code};5;{16 + 36 * near[0] + 6 * near[1] + near[2]}"


def _png(image: Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
