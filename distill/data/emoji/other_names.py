"""Names of the drawn things in other languages, and the emoji themselves, for the text encoder's table of other names.

    python -m distill.data.emoji.other_names [--packages FOLDER] OUT

German, French and Spanish labels and tags come from emojibase-data (CLDR's annotations). A name of several things stands for
the everyday one of them, a tag for a thing only if it is a tag of few.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.data.emoji.archive import DrawingRecord, read_archive
from distill.data.emoji.captions import SPECIFIC, read_common
from distill.data.emoji.concepts import normalise
from distill.data.emoji.data import SHIPPED
from distill.data.emoji.packs import NAMES, fetch, locate, read_members
from distill.data.errors import DataError
from gen.cli.parser import Parser
from gen.nn.other_names import LONGEST_NAME, MOST_WORDS, OtherNames, plain_name

SHARED = 12  # things that may have a tag which stands for the everyday one of them
LANGUAGES = ("de", "fr", "es")
COLOURS = {  # stems or words -> the endings that they are met with
    "red": "rot rote roter rotes roten rouge rouges rojo roja rojos rojas",
    "orange": "orangefarben orangefarbene orangefarbenes anaranjado anaranjada",
    "yellow": "gelb gelbe gelber gelbes gelben jaune jaunes amarillo amarilla amarillos amarillas",
    "green": "grün grüne grüner grünes grünen vert verte verts vertes verde verdes",
    "blue": "blau blaue blauer blaues blauen bleu bleue bleus bleues azul azules",
    "purple": "lila violett violette violettes morado morada morados moradas",
    "pink": "rosafarben rosafarbene rosado rosada rosados rosadas",
    "brown": "braun braune brauner braunes braunen marron marrón marrones",
    "black": "schwarz schwarze schwarzer schwarzes schwarzen noir noire noirs noires negro negra negros negras",
    "white": "weiß weiße weißer weißes weißen blanc blanche blancs blanches blanco blanca blancos blancas",
    "gray": "grau graue grauer graues grauen gris grise grises",
    "teal": "türkis türkise türkises",
}


def table(records: Iterable[DrawingRecord], languages: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    """Name -> label. records: the drawings; languages: per language emojibase's entries (hexcode, label, tags)."""
    label_of = {record.hex: record.label for record in records}
    english = {plain_name(label) for label in label_of.values()}
    rank = {label: place for place, label in enumerate(read_common())}
    found: dict[str, str] = {}
    for code, label in label_of.items():
        found["".join(chr(int(part, 16)) for part in code.split("-"))] = label
    for entries in languages.values():
        drawn = [(label_of[code], entry) for entry in entries if (code := normalise(entry["hexcode"])) in label_of]
        drawn.sort(key=lambda pair: rank.get(pair[0], len(rank)))  # everyday things first
        named: dict[str, list[str]] = {}
        for label, entry in drawn:
            for tag in entry.get("tags", ()):
                named.setdefault(_usable(tag), []).append(label)
        own = {_usable(entry["label"]): label for label, entry in reversed(drawn)}
        tags = {tag: labels[0] for tag, labels in named.items() if len(labels) <= (SHARED if labels[0] in rank else SPECIFIC)}
        for name, label in {**tags, **own}.items():
            if name and plain_name(name) not in english:
                found.setdefault(name, label)
    for colour, forms in COLOURS.items():
        found.update((form, colour) for form in forms.split())
    return dict(sorted(found.items()))


def _usable(name: str) -> str:
    """A name in lower case, or "" for one that is too long or no words."""
    name = " ".join(name.lower().replace("’", "'").split())
    letters = name.replace(" ", "").replace("-", "").replace("'", "")
    return (
        name if letters.isalpha() and len(letters) > 2 and len(name) <= LONGEST_NAME and len(name.split()) <= MOST_WORDS else ""
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m distill.data.emoji.other_names", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a text encoder's folder, which gets other_names.json")
    parser.add_argument("--packages", type=Path, help="folder with the .tgz files; without it they are fetched with npm")
    given = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as fetched:
            folder = given.packages or Path(fetched)
            if given.packages is None:
                fetch([NAMES], folder)
            files = read_members(locate(NAMES, folder), [f"{language}/data.json" for language in LANGUAGES])
        records, _, _ = read_archive(SHIPPED)
        names = table(records, {language: files[f"{language}/data.json"] for language in LANGUAGES})
    except DataError as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 1
    OtherNames(names).save(given.out)
    print(f"{given.out}: {len(names)} names")
    return 0


if __name__ == "__main__":
    sys.exit(main())
