"""The learned words of adapters that are made of others: each is kept as it is, since a weight does not scale a word."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from customization.algebra.align import names_of
from gen.adapters import Adapter, AdapterError
from gen.adapters.words import KEY

Words = dict[str, dict[str, Tensor]]


def merged_words(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> Words:
    """word -> part -> vectors (n, D) of all adapters but those of weight 0, which do not act. weights: 1 each if None.

    AdapterError where two have learned one word with different vectors: a prompt could mean only one of them."""
    merged: Words = {}
    origin: dict[str, tuple[str, str]] = {}  # word in lower case -> (as it is spelled, whose it is)
    for i, (name, adapter) in enumerate(zip(names_of(adapters), adapters, strict=True)):
        if weights is not None and weights[i] == 0:
            continue
        for word, parts in adapter.words.items():
            spelled, other = origin.setdefault(word.lower(), (word, name))
            if other == name:
                merged[word] = dict(parts)
            elif not _same(merged[spelled], parts):
                raise AdapterError(
                    f"{other} and {name} have both learned the word {word!r}, each in its own way. Give it another name in one "
                    f"of them: fewstep lora convert {name}.safetensors OUT.safetensors --rename-word '{word}=<other>'"
                )
    return merged


def word_keys(adapters: Sequence[Adapter], words: Mapping[str, Mapping[str, Tensor]]) -> dict[tuple[str, str], str]:
    """kohya's keys of these words, as the files that they come from have them."""
    return {
        place: key
        for adapter in adapters
        if adapter.format == "kohya"
        for place, key in adapter.keys.items()
        if place[0].removeprefix(f"{KEY}.") in words
    }


def _same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[part], two[part]) for part in one)
