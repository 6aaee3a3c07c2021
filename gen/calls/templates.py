"""Prompt templates read into their parts: `{a|b}`, `{2::a|b}`, `{2$$a|b|c}` and `__name__`; `gen.calls.wildcards` says what
they mean.

Reading takes time in proportion to the length. A template without any form is one literal.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from gen.io.validators import check_text

DEEPEST = 50  # braces within braces
SEPARATOR = ", "  # between several options, unless the template says another

_COUNT = re.compile(r"\s*(?:(\d{1,4})|(\d{0,4})-(\d{0,4}))\$\$(?:([^${}|]*)\$\$)?")
_WEIGHT = re.compile(r"\s*(\d+\.?\d*|\.\d+)::")
_MARKS = re.compile(r"\\__|\\\$\{|\\.|__(?P<name>(?:[^\W_]|\*)(?:[\w*./-]{0,200}?(?:[^\W_]|\*))?)__|\$\{|[{}|\[\]]", re.DOTALL)
_ESCAPED = {"\\__": "__", "\\${": "${", "\\{": "{", "\\}": "}"}


@dataclass(frozen=True)
class Wildcard:
    """__name__: one line of a file."""

    name: str


@dataclass(frozen=True)
class Option:
    """One of the options of a choice. weight: how often it is drawn, beside those of the others."""

    weight: float
    nodes: tuple[TemplateNode, ...]


@dataclass(frozen=True)
class Choice:
    """{a|b}: one of several, or from `low` to `high` of them (None: all) with a separator between."""

    options: tuple[Option, ...]
    low: int = 1
    high: int | None = 1
    separator: str | None = None  # None: one, as it is written


TemplateNode = str | Choice | Wildcard


class _Bar:
    """A bar that may separate options."""


@dataclass
class _Brace:
    """A brace that is open. brackets: where its open square brackets begin, among the items."""

    position: int
    low: int = 1
    high: int | None = 1
    separator: str | None = None
    items: list[TemplateNode | _Bar] = field(default_factory=list)
    brackets: list[int] = field(default_factory=list)

    def close_bracket(self) -> None:
        """Bars inside of square brackets belong to them: `[a|b]` takes turns (docs/prompts.md)."""
        if self.brackets:
            start = self.brackets.pop()
            self.items[start:] = ["|" if isinstance(item, _Bar) else item for item in self.items[start:]]

    def choice(self) -> Choice:
        parts: list[list[TemplateNode]] = [[]]
        for item in self.items:
            if isinstance(item, _Bar):
                parts.append([])
            else:
                parts[-1].append(item)
        return Choice(tuple(_option(part) for part in parts), self.low, self.high, self.separator)


def _option(nodes: list[TemplateNode]) -> Option:
    joined = _joined(nodes)
    weight = 1.0
    if joined and isinstance(joined[0], str) and (match := _WEIGHT.match(joined[0])):
        weight = float(match[1])
        joined = _joined([joined[0][match.end() :], *joined[1:]])
    return Option(weight, joined)


def _joined(nodes: list[TemplateNode]) -> tuple[TemplateNode, ...]:
    """Neighbouring literals as one, empty ones left out."""
    out: list[TemplateNode] = []
    for node in nodes:
        if isinstance(node, str) and out and isinstance(out[-1], str):
            out[-1] += node
        elif node != "":
            out.append(node)
    return tuple(out)


@lru_cache(4096)
def parse_template(text: str) -> tuple[TemplateNode, ...]:
    """The parts of a template.

    text: of at most 10,000 characters.
    Raises ValueError for braces that do not pair, counts and weights that allow nothing, and `${`, which begins a variable
    elsewhere.
    """
    check_text("the prompt", text)
    stack, at = [_Brace(0)], 0
    match = _MARKS.search(text)
    while match is not None:
        stack[-1].items.append(text[at : match.start()])
        at, mark = match.end(), match[0]
        frame = stack[-1]
        if match["name"] is not None:
            frame.items.append(Wildcard(match["name"]))
        elif mark[0] == "\\":
            frame.items.append(_ESCAPED.get(mark, mark))
        elif mark == "${":
            raise ValueError(f"{_near(text, match.start())}: variables are not read here; write \\${{ for the characters.")
        elif mark == "{":
            if len(stack) > DEEPEST:
                raise ValueError(f"The prompt nests more than {DEEPEST} braces; leave some out.")
            opened, at = _opened(text, match.start(), at)
            stack.append(opened)
        elif mark == "}":
            if len(stack) == 1:
                raise ValueError(f"{_near(text, match.start())}: this brace closes none; write \\}} for the character.")
            choice = stack.pop().choice()
            if not any(option.weight for option in choice.options):
                raise ValueError(f"{_near(text, match.start())}: all options have weight 0; give one of them another.")
            stack[-1].items.append(choice)
        elif mark == "|":
            frame.items.append(_Bar() if len(stack) > 1 else "|")
        else:
            if mark == "[":
                frame.brackets.append(len(frame.items))
            else:
                frame.close_bracket()
            frame.items.append(mark)
        match = _MARKS.search(text, at)
    if len(stack) > 1:
        raise ValueError(f"{_near(text, stack[-1].position)}: this brace is never closed; write \\{{ for the character.")
    return _joined([*(item for item in stack[0].items if not isinstance(item, _Bar)), text[at:]])


def _opened(text: str, position: int, at: int) -> tuple[_Brace, int]:
    """(the brace that opens there, where its first option begins)."""
    if (count := _COUNT.match(text, at)) is None:
        return _Brace(position), at
    exact, low, high, separator = count.groups()
    least = int(exact or low or 1)
    most = int(exact) if exact else int(high) if high else None
    if most is not None and most < least:
        raise ValueError(f"{_near(text, position)}: from {least} to {most} options are none; write the lower number first.")
    return _Brace(position, least, most, SEPARATOR if separator is None else separator), count.end()


def _near(text: str, position: int) -> str:
    """Where something is wrong, for a sentence."""
    return f"At character {position + 1} of the prompt ({text[position : position + 20]!r})"
