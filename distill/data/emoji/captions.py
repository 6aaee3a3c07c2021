"""What a picture is called: names, synonyms, colour, background and style, drawn at random but reproducibly.

Some (colour, noun) pairs are held out of training under every name of the noun, so that composition can be measured.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.data.errors import DataError
from gen.io.errors import read_text

COMMON_FILE = Path(__file__).with_name("common.txt")
SPECIFIC = 3  # a word names a concept if no more than this many concepts have it
MAX_WORDS = 13  # words and punctuation marks; about 14 word pieces with the usual vocabularies

# share of captions whose noun is the label, an everyday word, another name, "colour + name", the label with two tags
KINDS = {"label": 0.30, "everyday": 0.36, "synonym": 0.16, "rare": 0.04, "coloured": 0.10, "tagged": 0.04}
COLOUR_WORDS = {"gray": ("gray", "grey"), "purple": ("purple", "purple", "violet"), "teal": ("teal", "teal", "turquoise")}

_COLOUR = re.compile(
    r"\b(light blue|dark blue|red|orange|yellow|green|blue|purple|violet|pink|brown|black|white|gr[ae]y|teal|turquoise)\b ?"
)
_UNCOUNTED = {
    *("bread", "popcorn", "sushi", "corn", "maize", "cheese", "fire", "snow", "ice", "wood", "fog", "lightning", "salt"),
    *("chocolate", "coffee", "wine", "beer", "ice cream", "butter", "garlic", "bacon", "spaghetti", "sake", "tea", "sea"),
    *("soft ice cream", "shaved ice", "confetti", "ginger root", "cooked rice", "curry rice", "yarn", "thread", "underwear"),
}
_PLURALS_IN_OTHER_WORDS = {"biceps", "gas", "compass", "lens", "moai", "zzz", "circus", "mantis", "iris", "tennis", "texas"}


@dataclass(frozen=True)
class HeldOut:
    """A colour that pictures of a noun never have in training; `label` is a concept to score such pictures against."""

    colour: str
    noun: str
    label: str
    words: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return f"{article(self.colour)} {self.colour} {self.noun}"


HELD_OUT: tuple[HeldOut, ...] = (
    HeldOut("purple", "car", "automobile", ("car", "automobile", "taxi", "cab", "taxicab", "auto", "suv", "racecar")),
    HeldOut("pink", "elephant", "elephant", ("elephant", "mammoth")),
    HeldOut("blue", "banana", "banana", ("banana", "plantain")),
    HeldOut("green", "dog", "dog face", ("dog", "doggy", "doggo", "doge", "puppy", "puppies", "pup", "poodle", "hound")),
    HeldOut("red", "house", "house", ("house", "home", "hut", "cottage", "cabin", "mansion", "shack")),
    HeldOut("blue", "mushroom", "mushroom", ("mushroom", "toadstool", "fungus", "shroom")),
    HeldOut("purple", "tiger", "tiger face", ("tiger",)),
    HeldOut("red", "frog", "frog", ("frog", "toad")),
    HeldOut("green", "rocket", "rocket", ("rocket", "spaceship", "spacecraft", "space ship")),
    HeldOut("blue", "apple", "red apple", ("apple",)),
)


def held_out_colours(names: Iterable[str]) -> frozenset[str]:
    """The colours that are held out for something with these names; a name counts if it holds the noun as a whole word,
    also in the plural ("police car", "two dogs"), but not inside another word ("pineapple")."""
    text = "\n".join(names).lower()
    return frozenset(
        pair.colour for pair in HELD_OUT if re.search(rf"\b({'|'.join(pair.words)})(s|es)?\b", text.replace("-", " "))
    )


def read_common(path: Path = COMMON_FILE) -> dict[str, tuple[str, ...]]:
    """Label -> everyday words, from lines of `label: word, word`; `#` starts a comment."""
    common: dict[str, tuple[str, ...]] = {}
    for line in read_text(path).splitlines():
        line = line.partition("#")[0].strip()
        if line:
            label, _, words = line.partition(":")
            if label.strip() in common:
                raise DataError(f"{path}: {label.strip()!r} is listed twice.")
            common[label.strip()] = tuple(word.strip() for word in words.split(",") if word.strip())
    return common


def without_colour(name: str) -> str:
    """A name without its colour words ("red heart" -> "heart"), or as it is where nothing would be left."""
    return _COLOUR.sub("", name).strip() or name


@dataclass(frozen=True)
class Names:
    """The words for one concept. `everyday`, `synonyms` (shortcodes, and words that two sources agree on) and `rare` (words
    of one source) are specific enough to stand alone; `tags` are not. The `base_` forms carry no colour word."""

    label: str
    everyday: tuple[str, ...]
    synonyms: tuple[str, ...]
    rare: tuple[str, ...]
    tags: tuple[str, ...]
    base_label: str
    base_everyday: tuple[str, ...]
    base_synonyms: tuple[str, ...]
    held_out: frozenset[str]


def name_concepts(
    described: Mapping[str, tuple[Sequence[str], Sequence[str], Sequence[str]]], common: Mapping[str, tuple[str, ...]]
) -> dict[str, Names]:
    """Label -> Names from label -> (shortcode names, tags, keywords)."""
    counts = Counter(word for names, tags, keywords in described.values() for word in {*names, *tags, *keywords})
    labels, result = set(described), {}
    for label, (codes, tags, keywords) in described.items():
        everyday = common.get(label, ())

        def specific(words: Iterable[str], *used: Sequence[str], label: str = label) -> tuple[str, ...]:
            # the label of another concept would call two different things by one name
            taken = {label, *(word for group in used for word in group)}
            keep = (w for w in dict.fromkeys(words) if counts[w] <= SPECIFIC and w not in labels and not _COLOUR.fullmatch(w))
            return tuple(word for word in keep if word not in taken)

        agreed = set(tags) & set(keywords)
        synonyms = specific([*codes, *(tag for tag in tags if tag in agreed)], everyday)
        rare = specific([*tags, *keywords], everyday, synonyms)
        colourless = tuple(tag for tag in tags if not _COLOUR.search(tag) and tag not in label.split())
        result[label] = Names(
            label,
            everyday,
            synonyms,
            rare,
            colourless,
            without_colour(label),
            _bases(everyday),
            _bases(name for name in synonyms if name in codes),
            held_out_colours([label, *everyday, *codes, *tags, *keywords]),
        )
    return result


def _bases(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(without_colour(name) for name in names))


def words_of(named: Iterable[Names], others: Iterable[str] = ()) -> set[str]:
    """The words of three Latin letters and more that captions of these concepts, in styles and colours called `others`, may
    have (`gen.nn.text_encoder`, which notes the words that are not among them)."""
    texts = [
        text
        for names in named
        for text in (names.label, *names.everyday, *names.synonyms, *names.rare, *names.tags, names.base_label)
    ]
    colours = [word for words in COLOUR_WORDS.values() for word in words]
    return set(re.findall(r"[a-z]{3,}", " ".join([*texts, *colours, *others]).lower()))


def article(name: str) -> str:
    """ "a" or "an" by sound, or "" before plurals and what is not counted."""
    words = name.split()
    head = name.split(" of ")[0].split(" with ")[0]
    last = head.split()[-1]
    if name in _UNCOUNTED or without_colour(name) in _UNCOUNTED or last in ("teeth", "feet", "people"):
        return ""
    plural = last.endswith("s") and not last.endswith(("ss", "us", "is")) and last not in _PLURALS_IN_OTHER_WORDS
    if plural and words[0] != "pair":
        return ""
    first = words[0]
    if re.match(r"(uni|use|usu|eu|ewe|ufo|one\b|once)", first):
        return "a"
    if re.match(r"(hour|honest|heir|honou?r|suv\b|x-|nba|nfl|mri)", first):
        return "an"
    return "an" if first[0] in "aeiou" else "a"


_IRREGULAR = {
    "mouse": "mice", "goose": "geese", "foot": "feet", "tooth": "teeth", "leaf": "leaves", "wolf": "wolves",
    "knife": "knives", "loaf": "loaves", "scarf": "scarves", "elf": "elves", "person": "people", "man": "men",
    "woman": "women", "child": "children", "fish": "fish", "sheep": "sheep", "deer": "deer", "ox": "oxen",
    "squid": "squid", "shrimp": "shrimp", "bison": "bison", "potato": "potatoes", "tomato": "tomatoes",
    "mango": "mangoes", "volcano": "volcanoes", "snowman": "snowmen", "merman": "mermen",
}  # fmt: skip


def pluralize(name: str) -> str:
    """The plural of a name without an article: "red car" -> "red cars", "slice of pizza" -> "slices of pizza"."""
    head, link, rest = name, "", ""
    for word in (" of ", " with ", " on ", " in ", " behind ", " without "):
        if word in head:
            head, _, tail = head.partition(word)
            link, rest = word, tail + link + rest
    before, _, last = head.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2:-1] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return f"{before} {last}".strip() + link + rest


def countable(name: str) -> bool:
    """Whether there can be three of it: a name that stands with "a" or "an"."""
    return article(name) != ""


def caption_length(caption: str) -> int:
    """Words and punctuation marks of a caption."""
    return len(re.findall(r"[a-z0-9]+|[^\sa-z0-9]", caption))


def say_background(background: str | None, rng: random.Random) -> str:
    """What a caption says of the background, to stand after the thing's name; nothing of white."""
    if not background:
        return ""
    on = f" on {article(background)} {background} background"
    return on if rng.random() < 0.7 else f", {background} background"


def short_noun(names: Names, colour: str | None, rng: random.Random) -> str:
    """A name to stand beside another or to be counted: everyday words first, with `colour` where there is one."""
    pool = (names.base_everyday or (names.base_label,)) if colour else (names.everyday or (names.label,))
    noun = rng.choice(pool) if rng.random() < 0.7 else (names.base_label if colour else names.label)
    return f"{rng.choice(COLOUR_WORDS.get(colour, (colour,)))} {noun}" if colour else noun


def write_caption(
    names: Names,
    style: str,
    dominant: str | None,
    colour: str | None,
    background: str | None,
    style_share: float,
    rng: random.Random,
) -> str:
    """One caption. `colour` is what the object was recoloured to, `dominant` its own colour if it has one; the background is
    always named where there is one."""
    noun, bare = _noun(names, dominant, colour, rng)
    place, look = say_background(background, rng), f", {style} style" if rng.random() < style_share else ""
    form = rng.random()
    the = article(noun)
    with_article = f"{the} {noun}" if the else noun
    if bare or form < 0.40:
        phrase = noun
    elif form < 0.84:
        phrase = with_article
    elif form < 0.92:
        phrase = f"{noun} emoji"
    else:
        phrase = f"{'an emoji' if form < 0.96 else 'a picture'} of {with_article}"
    # what must go to keep a caption short: first the style, then the phrasing around the name
    for caption in (phrase + place + look, phrase + place):
        if caption_length(caption) <= MAX_WORDS:
            return caption
    return noun + place


def _noun(names: Names, dominant: str | None, colour: str | None, rng: random.Random) -> tuple[str, bool]:
    """(what the object is called, whether it stands without an article)."""
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    # a label that names a colour knows better than the pixels: a black cat may be drawn in dark blue
    own_colour = names.base_label != names.label
    if colour is None and kind == "coloured" and dominant and not own_colour and dominant not in names.held_out:
        colour = dominant
    if colour is not None:
        word = rng.choice(COLOUR_WORDS.get(colour, (colour,)))
        pools = {"everyday": names.base_everyday, "coloured": names.base_everyday, "synonym": names.base_synonyms}
        return f"{word} {rng.choice(pools.get(kind) or (names.base_label,))}", False
    if kind == "tagged" and names.tags:
        return ", ".join([names.label, *rng.sample(names.tags, min(2, len(names.tags)))]), True
    pools = {"everyday": names.everyday, "synonym": names.synonyms, "rare": names.rare}
    return rng.choice(pools.get(kind) or (names.label,)), kind == "rare"
