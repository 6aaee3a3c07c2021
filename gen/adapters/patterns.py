"""Module names by pattern, as peft's configs have them: regular expressions that come from a file, matched in bounded time.

Python's own engine tries one way after another and can take years for a pattern that a file chooses. Here a pattern is a tree
whose nodes map the set of places where it may begin to the set of places where it may end, which takes time in the length of
both. Read are characters, `.`, classes, `\\d \\w \\s` and their opposites, `^`, `$`, groups, `|`, `* + ? {m,n}` (greedy or not)
and lookahead; back references, lookbehind and flags are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cached_property, lru_cache

Places = frozenset[int]
Node = Callable[[str, Places], Places]  # (text, where it begins) -> where it ends

SPECIAL = frozenset("^$*+?[]\\(){}|")
MAX_LENGTH = 300
MAX_WORK = 500_000_000  # length of the patterns times that of the names, over all of a file's layers
MAX_REPEATS = 64
MAX_DEPTH = 3  # of repetitions inside repetitions


class Patterns(dict):
    """A table of module names or patterns, as `rank_pattern` and `alpha_pattern` of peft are. A pattern fits a module's whole
    name, or the end of it from a dot; the first of the table that fits counts."""

    @cached_property
    def _sorted(self) -> tuple[dict[str, int], list[tuple[int, str]]]:
        """(plain names -> their places in the table, the others with theirs)."""
        plain = {key: i for i, key in enumerate(self) if not set(key) & SPECIAL}
        return plain, [(i, key) for i, key in enumerate(self) if key not in plain]

    def find(self, path: str) -> str | None:
        """The key that is for a module, None for none. ValueError (a clause) for patterns that are not read."""
        plain, others = self._sorted
        ends = (path[i:] for i in (0, *(i + 1 for i, c in enumerate(path) if c == ".")))
        first, end_of_match = min(((plain[end], end) for end in ends if end in plain), default=(len(self), None))
        for place, pattern in others:
            if place > first:
                break
            self.__dict__["work"] = self.__dict__.get("work", 0) + len(pattern) * len(path)
            if self.__dict__["work"] > MAX_WORK:
                raise ValueError("more patterns than can be tried on so many layers")
            try:
                if matches(pattern, path):
                    return pattern
            except ValueError as error:
                raise ValueError(f"the pattern {pattern[:60]!r} with {error}") from None
        return end_of_match


def matches(pattern: str, path: str) -> bool:
    """Does a pattern fit a module's whole name, or the end of it from a dot? ValueError (a clause) for one that is not read."""
    starts = frozenset({0, *(i + 1 for i, c in enumerate(path) if c == ".")})
    return len(path) in parse(pattern)(path, starts)


@lru_cache(maxsize=1024)
def parse(pattern: str) -> Node:
    """A pattern as a node. ValueError (a clause) for one that is not read."""
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"longer than {MAX_LENGTH} characters")
    parser = _Parser(pattern)
    node = parser.alternatives()
    if parser.at < len(pattern):
        raise ValueError("an unbalanced )")
    return node


class _Parser:
    def __init__(self, pattern: str):
        self.pattern, self.at, self.depth = pattern, 0, 0

    def peek(self) -> str:
        return self.pattern[self.at : self.at + 1]

    def take(self, text: str) -> bool:
        matches = self.pattern.startswith(text, self.at)
        self.at += len(text) * matches
        return matches

    def alternatives(self) -> Node:
        options = [self.sequence()]
        while self.take("|"):
            options.append(self.sequence())
        if len(options) == 1:
            return options[0]
        return lambda text, places: frozenset().union(*(node(text, places) for node in options))

    def sequence(self) -> Node:
        nodes: list[Node] = []
        while self.peek() not in ("", "|", ")"):
            nodes.append(self.repeated())

        def run(text: str, places: Places) -> Places:
            for node in nodes:
                if not places:
                    break
                places = node(text, places)
            return places

        return run

    def repeated(self) -> Node:
        start, inner_depth = self.at, self.depth
        self.depth = 0
        node = self.atom()
        least, most = self.bounds()
        repeats = (least, most) != (1, 1)
        depth = self.depth + (repeats and most != 1)
        self.depth = max(inner_depth, depth)
        if depth > MAX_DEPTH:
            raise ValueError(f"repetitions inside repetitions in {self.pattern[start : self.at]!r}")
        return _repeat(node, least, most) if repeats else node

    def bounds(self) -> tuple[int, int | None]:
        """(least, most) of a repetition, (1, 1) where none stands here."""
        limits: tuple[int, int | None] = (1, 1)
        if self.take("*"):
            limits = 0, None
        elif self.take("+"):
            limits = 1, None
        elif self.take("?"):
            limits = 0, 1
        elif counted := re.compile(r"\{(\d{0,4})(,?)(\d{0,4})\}").match(self.pattern, self.at):
            low, comma, high = counted.groups()
            if not low and not high:
                return limits  # a brace that counts nothing is a character
            self.at = counted.end()
            limits = int(low or 0), (int(high) if high else None) if comma else int(low)
            if max(limits[0], limits[1] or 0) > MAX_REPEATS:
                raise ValueError(f"more than {MAX_REPEATS} repetitions")
            if limits[1] is not None and limits[1] < limits[0]:
                raise ValueError(f"{counted[0]!r}, which asks for at least {limits[0]} and at most {limits[1]}")
        else:
            return limits
        if self.take("?"):  # not greedy: the same set of ends
            return limits
        if self.peek() in ("*", "+"):
            raise ValueError("a repetition of a repetition")
        return limits

    def atom(self) -> Node:
        if self.take("("):
            return self.group()
        if self.take("["):
            return _one(self.character_class())
        if self.take("^"):
            return lambda text, places: places & {0}
        if self.take("$"):
            return lambda text, places: places & {len(text)}
        if self.take("."):
            return _one(lambda c: True)
        if self.peek() in ("*", "+", "?"):
            raise ValueError(f"a {self.peek()} that repeats nothing")
        if self.take("\\"):
            return self.escape_node()
        c = self.peek()
        self.at += 1
        return _one(lambda other: other == c)

    def group(self) -> Node:
        look = next((sign for sign in ("?=", "?!") if self.take(sign)), "")
        if not look and not self.take("?:") and self.peek() == "?":
            named = re.compile(r"\?P<\w+>").match(self.pattern, self.at)
            if named is None:
                raise ValueError(f"the group ({self.pattern[self.at : self.at + 3]}, which is not read")
            self.at = named.end()
        node = self.alternatives()
        if not self.take(")"):
            raise ValueError("a ( without its )")
        if not look:
            return node
        positive = look == "?="
        return lambda text, places: frozenset(p for p in places if bool(node(text, frozenset({p}))) == positive)

    def escape_node(self) -> Node:
        if self.take("b"):
            return lambda text, places: frozenset(p for p in places if _boundary(text, p))
        return _one(self.escape())

    def escape(self) -> Callable[[str], bool]:
        """What the character after a backslash stands for."""
        c = self.peek()
        self.at += 1
        kinds: dict[str, Callable[[str], bool]] = {"d": str.isdecimal, "w": _is_word, "s": str.isspace}
        if c.lower() in kinds:
            kind = kinds[c.lower()]
            return kind if c.islower() else lambda other: not kind(other)
        if not c or c.isalnum():
            raise ValueError(f"the escape \\{c}, which is not read")
        return lambda other: other == c

    def character_class(self) -> Callable[[str], bool]:
        inverted = self.take("^")
        tests: list[Callable[[str], bool]] = []
        first = True
        while first or self.peek() != "]":
            c = self.peek()
            if not c:
                raise ValueError("a [ without its ]")
            self.at += 1
            first = False
            if c == "\\":
                tests.append(self.escape())
                continue
            if self.peek() == "-" and self.pattern[self.at + 1 : self.at + 2] not in ("", "]", "\\"):
                high = self.pattern[self.at + 1]
                self.at += 2
                if high < c:
                    raise ValueError(f"the range {c}-{high}, which is empty")
                tests.append(lambda other, low=c, high=high: low <= other <= high)  # type: ignore[misc]
            else:
                tests.append(lambda other, c=c: other == c)  # type: ignore[misc]
        self.at += 1
        return lambda other: any(test(other) for test in tests) != inverted


def _one(test: Callable[[str], bool]) -> Node:
    """A character that passes a test."""
    return lambda text, places: frozenset(p + 1 for p in places if p < len(text) and test(text[p]))


def _repeat(node: Node, least: int, most: int | None) -> Node:
    def run(text: str, places: Places) -> Places:
        for _ in range(least):
            places = node(text, places)
        reached, new, left = places, places, most
        while new and (left is None or left > least):
            new = node(text, new) - reached
            reached |= new
            left = None if left is None else left - 1
        return reached

    return run


def _is_word(c: str) -> bool:
    return c.isalnum() or c == "_"


def _boundary(text: str, place: int) -> bool:
    before = place > 0 and _is_word(text[place - 1])
    return before != (place < len(text) and _is_word(text[place]))
