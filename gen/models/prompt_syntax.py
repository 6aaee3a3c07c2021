"""Prompts as AUTOMATIC1111 and ComfyUI users write them: what changes on the way, alternates, is joined, or names a LoRA.

    [a:b:0.5]   a for half of the steps, then b      [a:b:8]   a for 8 steps, then b
    [a::0.5]    a, then nothing                      [b:0.5]   nothing, then b (as is [:b:0.5])
    [a|b]       a and b in turns, step by step       a AND b:0.7   two prompts, predicted apart and added
    a BREAK b   b in a new part of CLIP's 75 tokens  <lora:x:0.8>  the LoRA x at 0.8

Brackets nest. A backslash before a bracket, colon or bar makes it text. What is no such form stays as it is, weights in
brackets (`gen.nn.prompt_weights`) among it. Reading takes time in proportion to the length.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

DEEPEST = 100  # brackets within brackets; further in they are text
SYNTAXES = ("full", "weights")  # of the keyword prompt_syntax: all of it, or weights in brackets alone

_WHEN = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*")
# a LoRA is one mark, with the colons in it
_MARKS = re.compile(r"\\.|<(?:lora|lyco|hypernet):[^<>\n]{1,200}>|[\[\]():|]", re.DOTALL | re.IGNORECASE)
_AND = re.compile(r"\bAND\b")
_ESCAPED = re.compile(r"\\.", re.DOTALL)
_WEIGHT = re.compile(r":\s*([+-]?(?:\d+\.?|\d*\.\d+))\s*$")
_BREAK = re.compile(r"\s*\bBREAK\b\s*")
_LORA = re.compile(r"<(?:lora|lyco):([^<>\n]{1,200})>", re.IGNORECASE)
_HYPERNET = re.compile(r"<hypernet:[^<>\n]{1,200}>", re.IGNORECASE)


# ---- what changes from step to step ----


@dataclass(frozen=True)
class PromptSwitch:
    """[a:b:when]: before for so many steps, then after."""

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    when: str

    @property
    def parts(self) -> tuple[Node, ...]:
        return (*self.before, *self.after)

    @property
    def counts_steps(self) -> bool:
        return "." not in self.when

    def at(self, step: int, steps: int) -> str:
        return _text(self.before if step <= last_step(self.when, steps) else self.after, step, steps)


@dataclass(frozen=True)
class Turns:
    """[a|b]: another one at every step."""

    choices: tuple[tuple[Node, ...], ...]
    counts_steps = True

    @property
    def parts(self) -> tuple[Node, ...]:
        return tuple(node for choice in self.choices for node in choice)

    def at(self, step: int, steps: int) -> str:
        return _text(self.choices[(step - 1) % len(self.choices)], step, steps)


Node = str | PromptSwitch | Turns


@dataclass
class _Open:
    """A bracket that is open: its parts, what separates them, whether something in it fits no form, and whether its text has a
    colon. within: the brackets that are open, this one included."""

    bracket: str
    within: str
    parts: list[list[Node]] = field(default_factory=lambda: [[]])
    separators: list[str] = field(default_factory=list)
    broken: bool = False
    colon: bool = False

    def as_text(self, closing: str = "") -> list[Node]:
        nodes: list[Node] = [self.bracket, *self.parts[0]]
        for separator, part in zip(self.separators, self.parts[1:], strict=True):
            nodes += [separator, *part]
        return [*nodes, closing] if closing else nodes


@dataclass(frozen=True)
class PromptSchedule:
    """A prompt that may change from step to step; `at` says what it is."""

    nodes: tuple[Node, ...]

    @property
    def changes(self) -> bool:
        return not all(isinstance(node, str) for node in self.nodes)

    @property
    def counts_steps(self) -> bool:
        """Whether it changes after a number of steps, and not only after a share of them."""
        return any(node.counts_steps for node in _changing(self.nodes))

    @property
    def fixed(self) -> str:
        """What of it holds for all steps."""
        return "".join(node for node in self.nodes if isinstance(node, str))

    def at(self, step: int, steps: int) -> str:
        """The text of a step, counted from 1, of so many."""
        return _text(self.nodes, step, steps)


def parse_schedule(prompt: str) -> PromptSchedule:
    """Of a prompt without AND."""
    stack = [_Open("", "")]
    at = 0
    for match in _MARKS.finditer(prompt):
        stack[-1].parts[-1].append(prompt[at : match.start()])
        at, mark = match.end(), match[0]
        if mark in ("(", "[") and len(stack) <= DEEPEST:
            stack.append(_Open(mark, stack[-1].within + mark))
        elif mark in (")", "]"):
            _close(stack, mark)
        elif mark in (":", "|") and stack[-1].bracket == "[":
            stack[-1].separators.append(mark)
            stack[-1].parts.append([])
        else:
            top = stack[-1]
            top.broken |= mark == ":" and (top.bracket != "(" or top.colon)
            top.colon |= mark == ":"
            top.parts[-1].append(mark)
    stack[-1].parts[-1].append(prompt[at:])
    while len(stack) > 1:  # never closed: text
        unclosed = stack.pop()
        stack[-1].parts[-1] += _merged(unclosed.as_text())
    return PromptSchedule(_merged(stack[0].parts[0]))


def _close(stack: list[_Open], mark: str) -> None:
    """Close the innermost bracket; what is open inside of it, or is closed without being open, is text and fits no form."""
    opening = {")": "(", "]": "["}[mark]
    if opening not in stack[-1].within:
        stack[-1].broken = True
        stack[-1].parts[-1].append(mark)
        return
    while stack[-1].bracket != opening:
        unclosed = stack.pop()
        stack[-1].parts[-1] += _merged(unclosed.as_text())
        stack[-1].broken = True
    closed = stack.pop()
    node = None if closed.broken or mark == ")" else _form(closed)
    if node is None:
        stack[-1].parts[-1] += _merged(closed.as_text(mark))  # one text, which outer brackets then move as a whole
        stack[-1].colon |= closed.colon or ":" in closed.separators
    else:
        stack[-1].parts[-1].append(node)
    stack[-1].broken |= closed.broken or (mark == "]" and node is None and bool(closed.separators))


def _form(bracket: _Open) -> Node | None:
    """[a:b:when], [b:when] or [a|b]; None for what is none of them."""
    kinds, parts = set(bracket.separators), [_merged(part) for part in bracket.parts]
    if kinds == {"|"}:
        return Turns(tuple(parts))
    number = _WHEN.fullmatch(parts[-1][0]) if len(parts[-1]) == 1 and isinstance(parts[-1][0], str) else None
    if kinds != {":"} or len(parts) > 3 or number is None:
        return None
    return PromptSwitch(parts[0] if len(parts) == 3 else (), parts[-2], number[1])


def last_step(when: str, steps: int) -> int:
    """How many of the steps lie before a switch: a number with a point is a share of them, one without is a number of steps."""
    value = float(when)
    return int(min(value * steps if "." in when else value, steps))


def _changing(nodes: Iterable[Node]) -> Iterator[PromptSwitch | Turns]:
    for node in nodes:
        if not isinstance(node, str):
            yield node
            yield from _changing(node.parts)


def _merged(nodes: Iterable[Node]) -> tuple[Node, ...]:
    """With texts side by side as one."""
    merged: list[Node] = []
    for are_texts, side_by_side in groupby(nodes, lambda node: isinstance(node, str)):
        if not are_texts:
            merged += side_by_side
        elif text := "".join(side_by_side):  # type: ignore[arg-type]
            merged.append(text)
    return tuple(merged)


def _text(nodes: Iterable[Node], step: int, steps: int) -> str:
    return "".join(node if isinstance(node, str) else node.at(step, steps) for node in nodes)


# ---- prompts that are joined, parts, and LoRAs ----


def split_conjunction(prompt: str) -> list[tuple[str, float]]:
    """(prompt, weight) of what AND joins; one of weight 1 where there is no AND."""
    parts = _AND.split(prompt)
    if len(parts) == 1:
        return [(prompt, 1.0)]
    weighted = []
    for part in parts:
        match = _WEIGHT.search(part)
        text, weight = (part, 1.0) if match is None else (part[: match.start()], float(match[1]))
        weighted.append((text.strip(), weight))
    return weighted


def without_breaks(prompt: str) -> str:
    """Without the word BREAK, for text encoders that read a prompt in one piece."""
    return _BREAK.sub(" ", prompt).strip() if "BREAK" in prompt else prompt


def unescaped(prompt: str) -> str:
    """With colons and bars that had a backslash as themselves; brackets keep theirs for `gen.nn.prompt_weights`."""
    return _ESCAPED.sub(lambda match: match[0].removeprefix("\\") if match[0][1:] in (":", "|") else match[0], prompt)


def take_loras(prompt: str) -> tuple[str, dict[str, float]]:
    """(the prompt without its LoRAs, name -> weight). One that is named twice acts with the sum.

    ValueError for a weight that is none."""
    loras: dict[str, float] = {}

    def take(match: re.Match) -> str:
        name, *weights = (part.strip() for part in match[1].split(":"))
        try:
            weight = float(weights[0]) if weights else 1.0
        except ValueError:
            weight = float("nan")
        if len(weights) > 1 or not name or not abs(weight) <= 100:
            raise ValueError(
                f"The prompt has {match[0]!r}; write a LoRA as <lora:NAME:WEIGHT>, with one weight from -100 to 100, "
                "for example <lora:style:0.8>."
            )
        loras[name] = loras.get(name, 0.0) + weight
        return ""

    return _LORA.sub(take, prompt), loras


def warn_foreign(prompts: Sequence[str]) -> None:
    """One warning for what other tools read in the prompts of a call, and nothing here does."""
    if any(_HYPERNET.search(prompt) for prompt in prompts):
        warnings.warn(
            "<hypernet:...> in a prompt is read as plain words: hypernetworks do not open here; leave it out.", stacklevel=3
        )


def warn_unread(prompts: Sequence[str], reader: str) -> None:
    """One warning where prompts that `reader` reads by itself, as they are, have forms that change, join or name LoRAs."""
    if any(_LORA.search(text) or len(split_conjunction(text)) > 1 or parse_schedule(text).changes for text in prompts):
        warnings.warn(
            f"{reader} reads its prompts itself, so [a:b:0.5], [a|b], AND and <lora:...> in them are plain words to it; leave "
            "them out.",
            stacklevel=4,
        )
