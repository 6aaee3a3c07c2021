"""Prompts around a concept: the ways in which it is asked for, and ordinary things that are to stay as they are."""

from __future__ import annotations

import re
from collections.abc import Sequence

from customization.erasure.closed_form import ConceptEdit

_ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)
# {} the phrase as it was given, {bare} without its article
TEMPLATES = ("{}", "{bare}", "the {bare}", "a picture of {}", "a drawing of {}", "{} on a white background", "two {bare}")
ORDINARY = (
    "a cat", "a dog", "a horse", "a cow", "a bird", "a fish", "a lion", "an elephant", "a rabbit", "a bear", "a monkey",
    "a snake", "a frog", "a butterfly", "a bee", "a spider", "a whale", "a shark", "a man", "a woman", "a child", "a baby",
    "a person", "a smiling face", "a crying face", "an angry face", "a hand", "an eye", "a heart", "a red heart", "a star",
    "the sun", "the moon", "a cloud", "a rainbow", "a snowman", "a fire", "a tree", "a flower", "a rose", "a cactus", "a leaf",
    "an apple", "a banana", "a lemon", "a strawberry", "a pizza", "a hamburger", "a cake", "a cup of coffee", "bread",
    "a car", "a bus", "a train", "an airplane", "a ship", "a bicycle", "a rocket", "a house", "a castle", "a bridge", "a tent",
    "a mountain", "a beach", "a book", "a pencil", "a clock", "a key", "a lamp", "a phone", "a computer", "a camera",
    "a guitar", "a piano", "a drum", "a ball", "a balloon", "a gift", "a hat", "a shoe", "a shirt", "a crown", "a ring",
    "an umbrella", "a chair", "a bed", "a door", "a window", "a hammer", "a sword", "a bell", "a flag", "a robot", "a ghost",
    "a dragon",
)  # fmt: skip


def bare(phrase: str) -> str:
    """Without its article."""
    return _ARTICLE.sub("", phrase.strip())


def around(phrase: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """The ways in which a phrase is asked for; nothing is asked for by the empty one, whatever stands around."""
    if not phrase.strip():
        return [""] * len(templates)
    return [template.format(phrase.strip(), bare=bare(phrase)) for template in templates]


def words_of(phrase: str) -> set[str]:
    return set(re.findall(r"\w+", bare(phrase).lower()))


def edit_of(concepts: Sequence[str], to: str = "", kept: Sequence[str] = (), ordinary: bool = True) -> ConceptEdit:
    """The prompts by which concepts are forgotten.

    to: what is drawn instead; "": nothing in particular. kept: what stays. ordinary: so do everyday things that share no word
    with the concepts. ValueError for an empty concept, and one that is to be kept.
    """
    for concept in concepts:
        if not words_of(concept):
            raise ValueError(f"The concept {concept!r} has no words; give what is to be forgotten, such as 'a clown'.")
        if any(words_of(concept) == words_of(other) for other in (to, *kept)):
            raise ValueError(f"{concept!r} is to be forgotten, and to be drawn as well; take it out of one of the two.")
    gone = set().union(*(words_of(concept) for concept in concepts))
    others = [phrase for phrase in ORDINARY if not words_of(phrase) & gone] if ordinary else []
    erased = [prompt for concept in concepts for prompt in around(concept)]
    stays = list(dict.fromkeys(prompt for phrase in kept for prompt in around(phrase))) + [p for p in others if p not in kept]
    return ConceptEdit(tuple(erased), tuple(around(to) * len(concepts)), tuple(stays))
