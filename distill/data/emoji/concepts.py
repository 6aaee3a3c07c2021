"""What each emoji is called, and which emoji a picture shows.

A concept is one emoji without skin tone. Its key is the code point sequence in upper-case hexadecimal without the
presentation selector FE0F, so that packs which write the selector and packs which don't agree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.data.emoji.packs import KEYWORDS, NAMES, locate, read_members
from distill.data.errors import DataError

SHORTCODES = ("cldr", "emojibase", "github", "iamcal")
PEOPLE = {"person-role", "person-activity", "person-sport", "person-gesture", "person", "person-symbol", "person-resting"}
CLOCKS_KEPT = {"one o'clock", "three o'clock", "nine o'clock"}


@dataclass(frozen=True)
class Concept:
    """One emoji: `label` is its CLDR name, `names` its shortcodes, `tags` and `keywords` words that people search it by."""

    hex: str
    label: str
    group: str
    subgroup: str
    names: tuple[str, ...]
    tags: tuple[str, ...]
    keywords: tuple[str, ...]

    @property
    def excluded(self) -> str | None:
        """Why the concept is left out of the data, or None."""
        if self.subgroup in PEOPLE or self.subgroup == "family":
            return "a person"
        if self.group == "flags":
            return "a flag"
        if self.group == "symbols" and self.subgroup != "geometric":
            return "a symbol"
        if re.search(r"o'clock|-thirty", self.label) and self.label not in CLOCKS_KEPT:
            return "one of 24 clock faces"
        return None


def clean(text: str) -> str:
    """A name as captions use it: lower case, plain apostrophes, single spaces."""
    return " ".join(text.lower().replace("’", "'").replace("_", " ").split())


def normalise(code: str) -> str:
    return code.upper().replace("-FE0F", "")


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower().replace("’", "").replace("'", "")).strip("-")


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _words(words: list[str]) -> tuple[str, ...]:
    """Cleaned words in their order, once each; emoticons, digits and single letters are not words."""
    kept = [clean(word) for word in words]
    return tuple(dict.fromkeys(w for w in kept if len(w) > 2 and w.isascii() and re.fullmatch(r"[a-z][a-z0-9' .&-]*", w)))


def read_concepts(folder: Path) -> dict[str, Concept]:
    """Every emoji that has a group (no skin tones, no regional indicators), by code point."""
    shortcode_files = [f"en/shortcodes/{name}.json" for name in SHORTCODES]
    base = read_members(locate(NAMES, folder), ["en/data.json", "meta/groups.json", *shortcode_files])
    library = read_members(locate(KEYWORDS, folder), ["dist/emoji-en-US.json"])["dist/emoji-en-US.json"]
    groups = base["meta/groups.json"]
    shortcodes: dict[str, Any] = {}
    for file in shortcode_files:
        for code, names in base[file].items():
            shortcodes.setdefault(normalise(code), []).extend([names] if isinstance(names, str) else names)
    concepts = {}
    for entry in base["en/data.json"]:
        if "group" not in entry or groups["groups"][str(entry["group"])] == "component":
            continue
        code, emoji = normalise(entry["hexcode"]), entry["emoji"]
        keywords = library.get(emoji) or library.get(emoji.replace("\ufe0f", "")) or []
        concepts[code] = Concept(
            code,
            clean(entry["label"]),
            groups["groups"][str(entry["group"])],
            groups["subgroups"][str(entry["subgroup"])],
            _words(sorted(re.sub(r"\d+$", "", name) for name in shortcodes.get(code, []))),
            _words(entry.get("tags", [])),
            _words(keywords),
        )
    labels = [concept.label for concept in concepts.values()]
    if len(set(labels)) != len(labels):
        raise DataError(f"Two emoji share a label: {', '.join(sorted({x for x in labels if labels.count(x) > 1}))}.")
    return concepts


class Matcher:
    """Which concept an icon shows: by the pack's own code point table, else by its name.

    Names are compared with the names that other packs give a code point and with the labels; where a pack has no table
    of its own, also without hyphens and with the shortcodes.
    """

    def __init__(self, concepts: Mapping[str, Concept], tables: list[Mapping[str, str]]):
        """`tables`: the code point -> icon name tables of the packs that have one."""
        self.by_name: dict[str, str] = {}
        self.by_letters: dict[str, str] = {}
        for table in tables:
            for code, name in table.items():
                if normalise(code) in concepts:
                    self.by_name.setdefault(name, normalise(code))
        for code, concept in concepts.items():
            self.by_name.setdefault(slug(concept.label), code)
        for name, code in self.by_name.items():
            self.by_letters.setdefault(_letters(name), code)
        for code, concept in concepts.items():
            for name in concept.names:
                self.by_letters.setdefault(_letters(name), code)

    def match_numbered(self, icons: list[str]) -> list[tuple[str, str, int]]:
        """(icon name, code point, which drawing of it, from 1) for icons called name, name-1, name-2 and so on."""
        bases: dict[str, list[str]] = {}
        for name in icons:
            bases.setdefault(re.sub(r"-\d+$", "", name), []).append(name)
        codes, drawings = self.match(list(bases), {}), []
        for base, code in codes.items():
            drawings += [(name, code, number) for number, name in enumerate(sorted(bases[base]), 1)]
        return drawings

    def match(self, icons: list[str], table: Mapping[str, str]) -> dict[str, str]:
        """Icon name -> code point; every code point once. An exact match goes before a match without hyphens."""
        code_of_icon = {name: normalise(code) for code, name in table.items()}
        matched: dict[str, str] = {}
        taken: set[str] = set()

        def claim(name: str, code: str | None) -> None:
            if code is not None and name not in matched and code not in taken:
                matched[name] = code
                taken.add(code)

        for name in icons:
            claim(name, code_of_icon.get(name))
        for name in icons:
            claim(name, self.by_name.get(name))
        if not table:
            for name in icons:
                claim(name, self.by_letters.get(_letters(name)))
        return matched
