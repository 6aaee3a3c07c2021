"""What the default model knows: `fewstep words` lists things, colours and styles; `fewstep words cat spaceship` looks words up.

The words are those of the drawings that it was trained on. A word that is none of them is read all the same, and comes out as
something that the text encoder takes it for: the labels that it reads most like are named.
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.data.emoji.archive import read_archive
from distill.data.emoji.captions import COLOUR_WORDS, Names, name_concepts, pluralize, read_common
from distill.data.emoji.data import SHIPPED
from distill.data.emoji.recolor import BACKGROUNDS, COLOURS
from gen.cli.parser import Parser
from samplers.lookup import nearest

KINDS = ("a label", "an everyday word", "another name", "a rarer name", "a tag")  # the best known first
NEAR = 3  # labels that are named for a word that is not known
_BACKGROUND = re.compile(r"(?: on an? |, )([a-z ]+) background$")
_ARTICLE = re.compile(r"^(an?|the|an? (emoji|picture) of( an?)?|some) ")


@dataclass(frozen=True)
class Match:
    """What a text is: one of KINDS, colour, style or, where it is none, unknown.

    labels: of the things that it names, or those it reads most like. plural: of such a name. spelling: a known name that is
    spelled nearly like it. read: the English name that an emoji or a word of another language is exchanged for.
    """

    text: str
    kind: str
    labels: tuple[str, ...] = ()
    colour: str | None = None
    plural: bool = False
    spelling: str | None = None
    read: str | None = None

    def __str__(self) -> str:
        if self.kind in ("colour", "style"):
            return f"{self.text}: a {self.kind}"
        things = ", ".join(self.labels[:8]) + (", ..." if len(self.labels) > 8 else "")
        if self.kind == "unknown":
            hint = f"; did you mean {self.spelling!r}?" if self.spelling else "."
            return f"{self.text}: not known{hint} It reads most like {things}."
        before = f"read as {self.read!r}, " if self.read else ""
        before += (f"the colour {self.colour} and " if self.colour else "") + ("the plural of " if self.plural else "")
        return f"{self.text}: {before}{self.kind}" + ("" if self.labels == (self.read or self.text,) else f" of {things}")


class Words:
    """The words of an archive's drawings; `common`: label -> everyday words of the things that are drawn most often."""

    def __init__(self, archive: Path | str = SHIPPED, encoder: Any = None):
        """encoder: the text encoder that says what is near (`TextEncoder`); None: the default model's, when it is needed."""
        records, _, _ = read_archive(archive)
        described = {record.label: (record.names, record.tags, record.keywords) for record in records}
        common = read_common()
        self.common = {label: words for label, words in common.items() if label in described}
        self.named: dict[str, Names] = name_concepts(described, common)
        self.labels = sorted(described)
        self.styles = sorted({record.style for record in records})
        self.colours = {spelling: name for name in COLOURS for spelling in (name, *COLOUR_WORDS.get(name, ()))}
        self.backgrounds = sorted(BACKGROUNDS)
        self._encoder = encoder

    @cached_property
    def by_name(self) -> dict[str, dict[str, list[str]]]:
        """name -> kind -> labels."""
        found: dict[str, dict[str, list[str]]] = {}
        for label, names in self.named.items():
            groups = ((label,), (*names.everyday, names.base_label), names.synonyms, names.rare, names.tags)
            for kind, words in zip(KINDS, groups, strict=True):
                for word in dict.fromkeys(words):
                    found.setdefault(word, {}).setdefault(kind, []).append(label)
        return found

    @cached_property
    def plurals(self) -> dict[str, str]:
        return {pluralize(name): name for name in self.by_name}

    def look_up(self, text: str) -> Match:
        """What a word, or a few, mean to the model; ValueError for an empty one."""
        if not text.strip():
            raise ValueError("A word is empty; give one, for example: fewstep words cat, or none for the list.")
        plain = _ARTICLE.sub("", " ".join(text.lower().replace("_", " ").split()))
        ground = _BACKGROUND.search(plain)
        if ground is not None and ground[1] in self.backgrounds:
            plain = plain[: ground.start()]
        if found := self._named(text, plain):
            return found
        if plain in self.colours:
            return Match(text, "colour")
        if plain.removesuffix(" style") in self.styles:
            return Match(text, "style")
        first, _, rest = plain.partition(" ")
        if first in self.colours and (found := self._named(text, rest, self.colours[first])):
            return found
        read = " ".join(self.encoder.respell(text).split()) if hasattr(self.encoder, "respell") else text
        if read != text:
            return replace(self.look_up(read), text=text, read=read)
        names = [name for name, kinds in self.by_name.items() if not kinds.keys() <= set(KINDS[3:])]
        return Match(text, "unknown", self.reads_like(plain), spelling=nearest(plain, names))

    def _named(self, text: str, name: str, colour: str | None = None) -> Match | None:
        """The best known thing of a name, in the singular or the plural; None for no name."""
        forms = [
            (single, plural) for single, plural in ((name, False), (self.plurals.get(name), True)) if single in self.by_name
        ]
        if not forms:
            return None
        kind, plural, single = min((KINDS.index(min(self.by_name[s], key=KINDS.index)), plural, s) for s, plural in forms)
        return Match(text, KINDS[kind], tuple(self.by_name[single][KINDS[kind]]), colour, plural)

    @cached_property
    def encoder(self) -> Any:
        if self._encoder is not None:
            return self._encoder
        import gen
        from gen.models.components import load_component

        return load_component(Path(gen.__file__).parent / "weights" / "default" / "text_encoder", "text_encoder")

    @cached_property
    def _meanings(self) -> tuple[Tensor, tuple[str, ...]]:
        """(sentence embeddings (N, D) of length 1, their labels): the shipped evaluation network has them ready."""
        if self._encoder is not None:
            with torch.no_grad():
                return F.normalize(self._encoder.pooled(self.labels), dim=-1), tuple(self.labels)
        from distill.networks.evaluator.network import load_evaluator

        network = load_evaluator()
        return F.normalize(network.label_sentences, dim=-1), network.labels

    @torch.no_grad()
    def reads_like(self, text: str) -> tuple[str, ...]:
        """The labels whose sentence embeddings have the largest cosines with that of a text."""
        meanings, labels = self._meanings
        order = (meanings @ F.normalize(self.encoder.pooled([text]), dim=-1)[0]).topk(min(NEAR, len(labels))).indices
        return tuple(labels[place] for place in order.tolist())


def overview(words: Words, every: bool = False, width: int = 100) -> str:
    """What is known, as text: everyday things (or all labels), colours, backgrounds, styles."""
    things = words.labels if every else list(words.common)
    what = f"All {len(things)} labels" if every else f"{len(things)} everyday things, of {len(words.labels)} (--all)"
    colours = [" or ".join(dict.fromkeys((name, *COLOUR_WORDS.get(name, ())))) for name in COLOURS]
    parts = {
        what: things,
        'Colours, as in "a purple car"': colours,
        'Backgrounds, as in "a cat on a blue background"': words.backgrounds,
        'Styles, as in "a cat, noto style"': words.styles,
    }
    blocks = []
    for title, names in parts.items():
        body = textwrap.fill(", ".join(names), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        blocks.append(f"{title}:\n{body}")
    return "\n".join(blocks)


def draw_sheet(words: Words, path: Path, model: str = "default", steps: int | None = None, side: int = 80) -> None:
    """A PNG with a picture of each everyday thing, drawn by a model under its label, with its place in the list as seed."""
    from PIL import Image

    from gen.generator import Generator
    from gen.io.contact_sheet import contact_sheet, write_png

    labels = list(words.common)
    output = Generator.from_pretrained(model)(prompt=labels, seeds=list(range(len(labels))), num_inference_steps=steps)
    small = [picture.resize((side, side), Image.Resampling.LANCZOS) for picture in output.images]
    sheet = contact_sheet(small, labels, columns=14, font_size=10, max_lines=2)
    write_png(sheet.quantize(256, dither=Image.Dither.NONE), path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = Parser(prog="fewstep words", description="What the default model knows: things, colours, styles.")
    parser.add_argument("words", nargs="*", metavar="WORD", help='looked up, for example cat or "purple car"')
    parser.add_argument("--all", action="store_true", help="list all labels, not the everyday ones alone")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="draw each everyday thing into one PNG")
    parser.add_argument("--model", default="default", help="that draws the sheet (default: default)")
    parser.add_argument("--steps", type=int, help="of the sheet (default: the model's)")
    given = parser.parse_args(arguments)
    known = Words()
    if given.sheet is not None:
        draw_sheet(known, given.sheet, given.model, given.steps)
        print(given.sheet)
    elif given.words:
        print("\n".join(str(known.look_up(word)) for word in given.words))
    else:
        print(overview(known, given.all))
    return 0


if __name__ == "__main__":
    sys.exit(main())
