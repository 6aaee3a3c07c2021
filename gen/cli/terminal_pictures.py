"""Pictures in a terminal: by the protocols of kitty and iTerm2, or as sixels, where it says that it knows one of those, else in
half blocks.

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

KINDS = ("auto", "none", "kitty", "iterm", "sixel", "blocks", "blocks256")
KONSOLE = 220400  # the first version of Konsole that shows sixels, 22.04
WIDEST = 80  # columns of half blocks
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
    if not inside and _knows_sixels(term, environment):
        return "sixel"
    if environment.get("COLORTERM") in ("truecolor", "24bit"):
        return "blocks"
    return "blocks256" if "256" in term else "none"


def _knows_sixels(term: str, environment: Mapping[str, str]) -> bool:
    konsole = environment.get("KONSOLE_VERSION", "")
    return (
        "sixel" in term
        or term.startswith(("foot", "mlterm", "contour"))
        or "MLTERM" in environment
        or (konsole.isdecimal() and int(konsole) >= KONSOLE)
    )


def choose(kind: str) -> str:
    """A kind by name, "auto" being what is detected. ValueError for another name."""
    if kind not in KINDS:
        raise ValueError(f"--preview is {kind!r:.80}; give one of {', '.join(KINDS)}.")
    return detect() if kind == "auto" else kind


def show(image: Image, kind: str, columns: int | None = None, file: TextIO | None = None) -> None:
    """Print a picture to stderr; nothing for "none". columns: of the terminal."""
    file = sys.stderr if file is None else file
    if columns is None:
        import shutil

        columns = shutil.get_terminal_size().columns
    if kind != "none":
        print(drawn(image, kind, columns), file=file, flush=True)


def drawn(image: Image, kind: str, columns: int, lines: int | None = None, number: int | None = None) -> str:
    """What shows a picture at the cursor.

    columns: of the terminal, of which half blocks take at most 80.
    lines: of text that it is scaled to, where the protocol can; None: as large as it is, the cursor behind it.
    number: under which kitty knows it; a later one takes its place.
    """
    if kind == "kitty":
        return kitty(image, "" if lines is None else f"C=1,r={lines},i={number},")
    if kind == "iterm":
        return iterm(image, "" if lines is None else f"height={lines};")
    if kind == "sixel":
        from gen.cli.sixel import sixel

        return sixel(image)
    return blocks(image, min(columns, WIDEST), true_colour=kind == "blocks")


def lines_of(image: Image, kind: str, columns: int, cell: int) -> int:
    """Lines of text that `drawn` covers. cell: pixels of one."""
    if kind in ("blocks", "blocks256"):
        return -(-_block_size(image, min(columns, WIDEST))[1] // 2)
    return -(-image.height // cell)


def kitty(image: Image, keys: str = "") -> str:
    """https://sw.kovidgoyal.net/kitty/graphics-protocol: transmit and display, a PNG in chunks. keys: further ones."""
    own, data = keys, _png(image)
    chunks = [data[i : i + _CHUNK] for i in range(0, len(data), _CHUNK)]
    messages = []
    for number, chunk in enumerate(chunks):
        keys = f"a=T,f=100,q=2,{own}" if number == 0 else ""
        messages.append(f"\x1b_G{keys}m={int(number < len(chunks) - 1)};{chunk}\x1b\\")
    return "".join(messages)


def iterm(image: Image, keys: str = "") -> str:
    """https://iterm2.com/documentation-images.html: a file that is shown in place. keys: further ones."""
    data = _png(image)
    return f"\x1b]1337;File=inline=1;size={len(base64.b64decode(data))};{keys}preserveAspectRatio=1:{data}\x07"


def blocks(image: Image, columns: int, true_colour: bool = True) -> str:
    """Two pixels in each character, the upper half block in front of its background."""
    from PIL.Image import Resampling

    from gen.io.images import flat

    width, height = _block_size(image, columns)
    small = flat(image).resize((width, height), Resampling.LANCZOS)
    lines = []
    for y in range(0, height, 2):
        cells = []
        for x in range(width):
            above = small.getpixel((x, y))
            below = small.getpixel((x, y + 1)) if y + 1 < height else None
            cells.append(f"\x1b[{_colour(38, above, true_colour)}{_background(below, true_colour)}m▀")
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _block_size(image: Image, columns: int) -> tuple[int, int]:
    """(width, height) in pixels of half blocks."""
    width = max(min(columns, image.width), 1)
    return width, max(round(image.height * width / image.width), 1)


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
