"""Names of things as a text encoder's own language does not have them: emoji themselves, and words of other languages.

A table from such names to names that the encoder knows. They are exchanged before the text is read; a word that the encoder
knows already stays, whatever it means elsewhere ("chat" is no cat), and so does all that the table lacks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gen.io.weights import CheckpointError, read_json, write_json

FILE = "other_names.json"
LONGEST_NAME, MOST_NAMES, MOST_WORDS = 100, 100_000, 5  # characters; names in a table; words in a name
# before a name that is exchanged, and dropped with it
ARTICLES = frozenset(
    [
        *("ein", "eine", "einen", "einem", "einer", "der", "die", "das", "den", "dem", "un", "une", "le", "la", "les", "l"),
        *("el", "los", "las", "una", "unos", "unas", "del", "des"),
    ]
)

_TAUGHT = re.compile(r"(<[^<>\n]{1,300}>)")  # of adapters: theirs to read
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_MARKS = "\ufe0e\ufe0f" + "".join(map(chr, range(0x1F3FB, 0x1F400)))  # presentation and skin tone
_SYMBOLS = r"\u203c-\u3299\U0001f000-\U0001faff"  # where emoji are
_JOINED = re.compile(rf"[{_SYMBOLS}][{_SYMBOLS}{_MARKS}\u200d\u20e3]*")


def plain_name(name: str) -> str:
    """One spelling for all: lower case, without accents, one space between words."""
    letters = unicodedata.normalize("NFKD", name.lower())
    return " ".join("".join(c for c in letters if not unicodedata.combining(c)).replace("ß", "ss").split())


def plain_emoji(text: str) -> str:
    """An emoji without the marks that say how it is shown, or in which skin tone."""
    return "".join(character for character in text if character not in _MARKS)


class OtherNames:
    """`respell(text, known)` exchanges names; `known(word)` says which single words stay. names: name -> what is read."""

    def __init__(self, names: Mapping[str, str]):
        self.names = dict(names)
        self._words = {plain_name(name): read for name, read in names.items() if _WORD.match(name)}
        self._emoji = {plain_emoji(name): read for name, read in names.items() if not _WORD.match(name)}

    def respell(self, text: str, known: Callable[[str], bool]) -> str:
        """The text with what the table has; as it is where it has nothing."""
        if text.isascii() and text == text.lower() and all(known(word) for word in _WORD.findall(text)):
            return text  # the common case
        parts = _TAUGHT.split(text)
        parts[::2] = [self._respell(part, known) for part in parts[::2]]
        return "".join(parts)

    def _respell(self, text: str, known: Callable[[str], bool]) -> str:
        text = _JOINED.sub(self._read_emoji, text)
        found = list(_WORD.finditer(text))
        plain = [plain_name(match[0]) for match in found]
        out, end, at = [], 0, 0
        while at < len(found):
            for count in range(min(MOST_WORDS, len(found) - at), 0, -1):
                words = plain[at : at + count]
                read = self._words.get(" ".join(words))
                between = [text[a.end() : b.start()] for a, b in zip(found[at:], found[at + 1 : at + count], strict=False)]
                if read is None or any(gap.strip() for gap in between) or all(known(word) for word in words):
                    continue
                begin = found[at].start()
                if at and plain[at - 1] in ARTICLES and text[found[at - 1].end() : begin] in (" ", "'", "\u2019"):
                    begin = max(end, found[at - 1].start())
                out += [text[end:begin], read]
                end, at = found[at + count - 1].end(), at + count
                break
            else:
                at += 1
        return "".join([*out, text[end:]])

    def _read_emoji(self, match: re.Match[str]) -> str:
        """The longest emoji of a run, one after another, each as its name between spaces."""
        left, out = plain_emoji(match[0]), ""
        if not any(left.startswith(one) for one in self._emoji):
            return match[0]
        while left:
            length = next((n for n in range(min(len(left), 16), 0, -1) if left[:n] in self._emoji), 0)
            out += f" {self._emoji[left[:length]]} " if length else left[0]
            left = left[length or 1 :]
        return out

    def save(self, folder: Path) -> None:
        write_json(Path(folder) / FILE, {"format": "names of things -> what the text encoder reads", "names": self.names})

    @classmethod
    def load(cls, folder: Path) -> OtherNames | None:
        """The table in a text encoder's folder; None where there is none. CheckpointError for anything but short texts."""
        path = Path(folder) / FILE
        if not path.exists():
            return None
        names: Any = read_json(path).get("names")
        if not isinstance(names, dict) or len(names) > MOST_NAMES:
            raise CheckpointError(path, f"has no table `names` of at most {MOST_NAMES:,} names.")
        for name, read in names.items():
            if not isinstance(read, str) or not 0 < len(name) <= LONGEST_NAME or not 0 < len(read) <= LONGEST_NAME:
                raise CheckpointError(path, f"names {name[:40]!r} by something other than 1 to {LONGEST_NAME} characters.")
        return cls(names)
