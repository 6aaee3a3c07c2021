"""The 1000 classes of ImageNet (ILSVRC 2012) in the order of their labels: WordNet's number and first name of each."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def _rows() -> tuple[tuple[str, str], ...]:
    lines = (Path(__file__).parent / "imagenet.txt").read_text("utf-8").splitlines()
    return tuple((number, name) for number, _, name in (line.partition(" ") for line in lines))


def names() -> tuple[str, ...]:
    """Of the labels 0 to 999: tench, goldfish, great white shark, ..."""
    return tuple(name for _, name in _rows())


def label(number: str) -> int | None:
    """The label of a WordNet number such as n01443537; None if it is not among the classes."""
    return next((i for i, (known, _) in enumerate(_rows()) if known == number.lower()), None)
