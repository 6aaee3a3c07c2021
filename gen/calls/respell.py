"""Sentences about keywords of a call, in the words of whoever gave them: options of a command, or columns of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

# of sentences for Python and the command line alike: "name=value (--option)", "as name (--option)", "(name, --option)"
_SAID_BOTH = re.compile(r"\b(?:(as )[a-z_0-9]+|[a-z_0-9]+=[^\s(]+) \((--[^)]+)\)")
_LISTED_BOTH = re.compile(r"\((?:[a-z_0-9]+(?:, |; ))+(--[^)]+)\)")
_BEFORE = r"(?:leave|give|without|no|as)"


def respell(sentence: str, words: Mapping[str, str]) -> str:
    """A sentence that names keywords, in other words.

    words: keyword -> word.

    A keyword with an underscore is replaced wherever it stands outside of quotes. One that is an English word too ("image",
    "strength") is replaced where a sentence begins with it, in lower case, or with "this" before it, and where it is told to be
    left out or given, or stands alone in parentheses.
    """
    if any(word.startswith("--") for word in words.values()):
        sentence = _LISTED_BOTH.sub(r"(\1)", _SAID_BOTH.sub(lambda match: (match[1] or "") + match[2], sentence))
    for keyword, word in sorted(words.items(), key=lambda pair: -len(pair[0])):
        plain = re.escape(keyword)
        if "_" in keyword:
            sentence = re.sub(rf"(?<![\w'\"\-./]){plain}(?![\w'\"\-/])(=)?", partial(_in_place, word), sentence)
        else:
            this = "|This " if keyword != "model" else ""  # "This model ..." speaks of what is open, not of the option
            sentence = re.sub(rf"^((?:With [^:]*: )?(?:\S+ and )?{this}){plain}(?=[ :\[])", partial(_after, word), sentence)
            after = r"(?= too\b| out\b|[;.,:]| and\b)"
            sentence = re.sub(rf"(\b{_BEFORE} ){plain}{after}|(\(){plain}(?=\))", partial(_after, word), sentence)
    return re.sub(r"(--[\w-]+) \(\1\)", r"\1", sentence)


def _in_place(word: str, match: re.Match[str]) -> str:
    """The word and what joins it to a value: an option stands before its value, a column beside an equals sign."""
    return word + ("" if match[1] is None else " " if word.startswith("--") else "=")


def _after(word: str, match: re.Match[str]) -> str:
    return next(before for before in match.groups() if before is not None) + word
