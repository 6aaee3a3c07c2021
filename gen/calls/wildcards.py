"""Wildcards and variants: many prompts from one, in the syntax of dynamic-prompts.

    __animal__        a line of animal.txt of the folder of wildcards; __birds/owl__ of a folder in it; __birds/*__ of any there
    {a|b|c}           one of them                  {2::a|b}          a twice as often
    {2$$a|b|c}        two, with commas between     {1-2$$ and $$a|b} one or two, with " and " between
    \\{ \\} \\__        the characters themselves

Forms nest, and lines of files may hold forms. Square and round brackets stay what they are in prompts (docs/prompts.md): a bar
inside of `[a|b]` belongs to the bracket, within braces too. What is drawn is a function of (seed, row) and nothing else;
`Combinations` has all prompts by number instead. Source: the syntax guide of sd-dynamic-prompts (docs/SYNTAX.md there).
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import factorial
from typing import Any, cast

from gen.calls.templates import SEPARATOR, Choice, Option, TemplateNode, Wildcard, parse_template
from gen.calls.wildcard_files import WildcardFiles
from gen.io.validators import MAX_PROMPT

MAX_FORMS = 10_000  # that one prompt may come to, those of files within files among them
DEEPEST_FILES = 30  # files that name files
MAX_COMBINATIONS = 10**12
NO_FILES = WildcardFiles(None)


def is_template(text: str) -> bool:
    """Whether it has forms; escapes alone make no template."""
    return any(not isinstance(node, str) for node in parse_template(text))


def expand(template: str, seed: int, row: int = 0, files: WildcardFiles = NO_FILES) -> str:
    """One prompt of a template, drawn at random.

    template: a prompt with forms; one without any comes back with its escapes resolved.
    seed, row: what is drawn is a function of these two whole numbers.
    files: what `__name__` names.
    Raises ValueError for a form that cannot be read, a name without a file, files that name one another in a circle, and more
    than 10,000 characters.
    """
    digest = hashlib.sha256(f"{seed}:{row}".encode()).digest()
    return _Drawer(files, random.Random(int.from_bytes(digest, "big"))).sequence(parse_template(template), 0)


class Combinations(Sequence[str]):
    """All prompts of a template by number, made when they are asked for; repeated ones count.

    The last form changes the fastest, and several options of one choice come in every order. Options of weight 0 are left out.
    template, files: as of `expand`, which says what is refused; ValueError for more than 10^12 prompts too.
    """

    def __init__(self, template: str, files: WildcardFiles = NO_FILES):
        self._counter, self._nodes = _Counter(files), parse_template(template)
        self._total = self._counter.sequence(self._nodes, 0)

    def __len__(self) -> int:
        return self._total

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._total))]
        if not -self._total <= index < self._total:
            raise IndexError(f"The template has {self._total} prompts, and no number {index}.")
        return _Picker(self._counter).sequence(self._nodes, index % self._total, 0)


@dataclass
class _Budget:
    """What one prompt may come to, so that files that name one another cost no more than a long prompt."""

    forms: int = 0
    characters: int = 0

    def form(self, depth: int) -> None:
        self.forms += 1
        if depth > DEEPEST_FILES:
            raise ValueError(f"Wildcards name one another more than {DEEPEST_FILES} deep; look for a circle in their files.")
        if self.forms > MAX_FORMS:
            raise ValueError(f"The prompt comes to more than {MAX_FORMS} wildcards and choices; use fewer.")

    def text(self, text: str) -> str:
        self.characters += len(text)
        if self.characters > MAX_PROMPT:
            raise ValueError(f"The prompt comes to more than {MAX_PROMPT} characters; at most so many are read.")
        return text


def _options(choice: Choice, files: WildcardFiles) -> tuple[tuple[Option, ...], int]:
    """(those that can be drawn, how much deeper they lie): the lines of a file where `{2$$__name__}` asks for several of it
    without a repeat."""
    options, deeper = choice.options, 0
    if choice.separator is not None and len(options) == 1 and len(options[0].nodes) == 1:
        only = options[0].nodes[0]
        if isinstance(only, Wildcard):
            options, deeper = files.options(only.name), 1
    return tuple(option for option in options if option.weight), deeper


def _bounds(choice: Choice, available: int) -> tuple[int, int]:
    """How many options are taken: no more than there are."""
    return min(choice.low, available), available if choice.high is None else min(choice.high, available)


def _separated(choice: Choice, texts: Sequence[str]) -> str:
    """As it is written where one is drawn; several without the spaces that stand around the bars."""
    return texts[0] if choice.separator is None else choice.separator.join(text.strip() for text in texts)


@dataclass
class _Drawer:
    """Replaces forms at random. depth: of files within files."""

    files: WildcardFiles
    random: random.Random
    budget: _Budget = field(default_factory=_Budget)

    def sequence(self, nodes: Sequence[TemplateNode], depth: int) -> str:
        return "".join(self.node(node, depth) for node in nodes)

    def node(self, node: TemplateNode, depth: int) -> str:
        if isinstance(node, str):
            return self.budget.text(node)
        self.budget.form(depth)
        if isinstance(node, Wildcard):
            return self.sequence(self.pick(list(self.files.options(node.name))).nodes, depth + 1)
        options, deeper = _options(node, self.files)
        left = list(options)
        low, high = _bounds(node, len(left))
        number = low + int(self.random.random() * (high - low + 1))
        return _separated(node, [self.sequence(self.pick(left).nodes, depth + deeper) for _ in range(number)])

    def pick(self, options: list[Option]) -> Option:
        """One, by weight, which is taken out of the list."""
        place, last = self.random.random() * sum(option.weight for option in options), 0
        for i, option in enumerate(options):
            if option.weight:
                last = i
                if place < option.weight:
                    break
                place -= option.weight
        return options.pop(last)


@dataclass
class _Counter:
    """How many prompts parts of a template have. known: those of the lines of wildcards, by name."""

    files: WildcardFiles
    known: dict[str, tuple[list[Option], list[int]]] = field(default_factory=dict)

    def sequence(self, nodes: Sequence[TemplateNode], depth: int) -> int:
        total = 1
        for node in nodes:
            total *= self.node(node, depth)
            if total > MAX_COMBINATIONS:
                raise ValueError(f"The template has more than {MAX_COMBINATIONS:.0e} prompts; leave some options out.")
        return total

    def node(self, node: TemplateNode, depth: int) -> int:
        if isinstance(node, str):
            return 1
        counts = self.options(node, depth)[1]
        low, high = self.bounds(node, counts)
        return sum(ordered(counts, number) for number in range(low, high + 1))

    def bounds(self, node: Choice | Wildcard, counts: Sequence[int]) -> tuple[int, int]:
        return (1, 1) if isinstance(node, Wildcard) else _bounds(node, len(counts))

    def options(self, node: Choice | Wildcard, depth: int) -> tuple[list[Option], list[int]]:
        """(those that can be drawn, how many prompts each has)."""
        _Budget().form(depth)
        if isinstance(node, Choice):
            options, deeper = _options(node, self.files)
            if deeper:
                return self.options(cast(Wildcard, node.options[0].nodes[0]), depth)
            return list(options), [self.sequence(option.nodes, depth) for option in options]
        if node.name not in self.known:
            drawable = [option for option in self.files.options(node.name) if option.weight]
            self.known[node.name] = drawable, [self.sequence(option.nodes, depth + 1) for option in drawable]
        return self.known[node.name]


def _symmetric(counts: Sequence[int], number: int) -> list[int]:
    """Elementary symmetric polynomials of the counts, of degrees 0 to `number`."""
    sums = [1] + [0] * number
    for count in counts:
        for k in range(number, 0, -1):
            sums[k] += sums[k - 1] * count
    return sums


def ordered(counts: Sequence[int], number: int) -> int:
    """How many ordered choices of `number` different options there are, where option i has counts[i] texts."""
    return factorial(number) * _symmetric(counts, number)[number]


@dataclass
class _Picker:
    """The prompt of a number."""

    counter: _Counter
    budget: _Budget = field(default_factory=_Budget)

    def sequence(self, nodes: Sequence[TemplateNode], index: int, depth: int) -> str:
        texts = []
        for node in reversed(nodes):
            index, own = divmod(index, self.counter.node(node, depth))
            texts.append(self.node(node, own, depth))
        return "".join(reversed(texts))

    def node(self, node: TemplateNode, index: int, depth: int) -> str:
        if isinstance(node, str):
            return self.budget.text(node)
        self.budget.form(depth)
        options, counts = self.counter.options(node, depth)
        low, high = self.counter.bounds(node, counts)
        for number in range(low, high + 1):
            if index < (total := ordered(counts, number)):
                texts = self.several(list(options), list(counts), number, index, depth + 1)
                return texts[0] if isinstance(node, Wildcard) else _separated(node, texts)
            index -= total
        raise AssertionError("the number of a prompt is below their count")

    def several(self, options: list[Option], counts: list[int], number: int, index: int, depth: int) -> list[str]:
        """The ordered choice of a number: its first option changes the slowest."""
        texts = []
        for left in range(number - 1, -1, -1):
            sums, others, place = _symmetric(counts, left), 1, 0
            for count in counts:
                without = 1  # of the other options, by degree: e_k without c is e_k - c e_(k-1) without c
                for k in range(1, left + 1):
                    without = sums[k] - count * without
                others = factorial(left) * without
                if index < count * others:
                    break
                index, place = index - count * others, place + 1
            own, index = divmod(index, others)
            texts.append(self.sequence(options.pop(place).nodes, own, depth))
            counts.pop(place)
        return texts


__all__ = ["SEPARATOR", "Combinations", "WildcardFiles", "expand", "is_template"]
