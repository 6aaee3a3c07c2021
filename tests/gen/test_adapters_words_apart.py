"""Two files that learned one word: both can be in one prompt."""

import torch

from gen.adapters import Adapter
from gen.adapters.words import words_apart


def learned(name: str, *words: str) -> Adapter:
    return Adapter(name, {}, words={word: {"text_encoder": torch.ones(1, 4) * len(name)} for word in words})


def test_a_word_that_is_taken_gets_a_number():
    first = learned("one", "<cat>", "style")
    second, names = words_apart(learned("second", "<Cat>", "style", "<dog>"), [first])
    assert names == {"<Cat>": "<Cat-2>", "style": "style-2"} and set(second.words) == {"<Cat-2>", "style-2", "<dog>"}
    third, names = words_apart(learned("third", "<cat>"), [first, second])
    assert names == {"<cat>": "<cat-3>"} and float(third.words["<cat-3>"]["text_encoder"][0, 0]) == 5.0
    alone, names = words_apart(first, [])
    assert alone is first and names == {}
