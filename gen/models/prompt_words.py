"""Words of a prompt that a model never learned, said once: it draws something all the same, and nobody would know why.

Two kinds: words in angle brackets, as adapters are taught them, whose adapter is not loaded; and words that stood in no
caption of the training and that the text encoder has no piece for, so that it spells them.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gen.nn.reference import WORD

_TAUGHT = re.compile(r"<[^<>\s:]{1,100}>")
_IN_BRACKETS = re.compile(r"<[^<>\n]{1,300}>")
_LONGEST = 200  # characters of words that are named
_SUGGESTED = 3  # words for which another spelling is looked for


def warn_words(prompts: Sequence[str], encoder: Any, adapters: Mapping[str, float], loaded: Any) -> None:
    """One warning for all prompts of a call.

    loaded: the `gen.adapters.model.ModelAdapters`, or None.
    adapters: those in force, by weight. With one in force the words of the training say little, as it may have taught others.
    """
    taught = {word.lower() for name in adapters for word in loaded.loaded[name].words} if loaded is not None else set()
    readers = [encoder] if not hasattr(encoder, "modules") else encoder.modules()
    learned = (getattr(reader, "learned", None) for reader in readers)
    taught |= {word.lower() for words in learned if words is not None for word in words.ids}  # for the length of this call
    names = dict.fromkeys(name for prompt in prompts for name in _TAUGHT.findall(prompt) if name.lower() not in taught)
    unseen: dict[str, None] = {}
    if not adapters and hasattr(encoder, "unseen_words"):
        unseen = dict.fromkeys(word for prompt in prompts for word in encoder.unseen_words(_IN_BRACKETS.sub(" ", prompt)))
    notes = []
    if names:
        resembled = f"give the pictures that {WORD} stands for (--reference FILE, references), " if WORD in names else ""
        notes.append(
            f"No adapter in force has taught the model {_listed(names)}; {resembled}load the one that has (--lora FILE, "
            "load_adapter), or write ordinary words"
        )
    if unseen:
        notes.append(
            f"{_listed(unseen)} stood in no caption that the model learned from, so it draws what the letters suggest; "
            f"{_meant(unseen, encoder)}use other words, or teach it (docs/lora.md)"
        )
    if notes:
        warnings.warn(f"{'. '.join(notes)}.", stacklevel=3)


def _listed(words: Iterable[str]) -> str:
    text = ", ".join(map(repr, words))
    return text[:_LONGEST] + "…" * (len(text) > _LONGEST)


def _meant(words: Iterable[str], encoder: Any) -> str:
    """ "did you mean ...? Else " for the first few words that known ones are spelled like; "" where none are."""
    near = [encoder.spelled_like(word) for word in list(words)[:_SUGGESTED]] if hasattr(encoder, "spelled_like") else []
    found = ", ".join(f"{word!r}" for word in near if word)
    return f"did you mean {found}? Else " if found else ""
