"""`fewstep words`: what the default model's data name, and what is said of other words."""

import re
from pathlib import Path

import pytest
import torch

from distill.data.emoji.archive import DrawingRecord
from distill.data.emoji.captions import read_common
from distill.words import Words, draw_sheet, main, overview

ROOT = Path(__file__).parents[2]


class NoEncoder:
    """Says that everything means what the label "rocket" does."""

    def pooled(self, texts):
        return torch.stack([torch.tensor([1.0, 0.0] if text in ("rocket", "qqqvvv") else [0.0, 1.0]) for text in texts])


@pytest.fixture(scope="module")
def words() -> Words:
    return Words(encoder=NoEncoder())


@pytest.mark.parametrize(
    ("text", "kind", "label", "colour", "plural"),
    [
        ("teapot", "a label", "teapot", None, False),
        ("A Teapot", "a label", "teapot", None, False),
        ("teapots", "a label", "teapot", None, True),
        ("taxi", "a label", "taxi", None, False),
        ("kitten", "an everyday word", "cat", None, False),
        ("cars", "an everyday word", "automobile", None, True),  # before the tag "cars" of others
        ("mice", "a label", "mouse", None, True),
        ("squirrel", "another name", "chipmunk", None, False),
        ("a purple car", "an everyday word", "automobile", "purple", False),
        ("a violet car", "an everyday word", "automobile", "purple", False),
        ("red apple", "a label", "red apple", None, False),
        ("a cat on a blue background", "a label", "cat", None, False),
        ("teal", "colour", None, None, False),
        ("3d style", "style", None, None, False),
    ],
)
def test_known_words_are_named_for_what_they_are(words, text, kind, label, colour, plural):
    found = words.look_up(text)
    assert (found.kind, found.colour, found.plural) == (kind, colour, plural)
    assert label in found.labels if label else found.labels == ()


def test_every_label_and_everyday_word_is_known(words):
    assert len(words.labels) == 1139
    assert all(words.look_up(label).labels[0] == label for label in words.labels)
    for label, others in words.common.items():
        for word in (label, *others):
            assert words.look_up(word).kind in ("a label", "an everyday word"), word


def test_a_word_that_is_not_known_is_said_with_what_is_near(words):
    found = words.look_up("qqqvvv")
    assert found.kind == "unknown" and found.labels[0] == "rocket" and found.spelling is None
    assert str(found).startswith("qqqvvv: not known. It reads most like rocket")
    with pytest.raises(ValueError, match="A word is empty"):
        words.look_up(" ")
    assert words.look_up("an elefant").spelling == "elephant"
    assert "did you mean 'giraffe'?" in str(words.look_up("girafe"))


def test_the_list_names_all_of_it(words):
    short, full = overview(words), " ".join(overview(words, every=True).split())
    assert short.startswith(f"{len(words.common)} everyday things, of 1139 (--all)")
    assert all(label in full for label in words.labels)
    assert "purple or violet" in short and "light blue" in short and "noto" in short
    assert set(words.common) <= set(read_common())


def test_the_command_prints_the_list_or_what_was_asked(capsys):
    assert main([]) == 0 and "everyday things" in capsys.readouterr().out
    assert main(["teapot", "kitten"]) == 0
    assert capsys.readouterr().out == "teapot: a label\nkitten: an everyday word of cat, cat face\n"


def test_the_default_models_encoder_says_what_is_near():
    """By its shipped weights a word that is no name lands on related things; embeddings of labels are that encoder's own."""
    words = Words()
    found = words.look_up("feline predator")
    assert found.kind == "unknown" and {"cat", "cat face", "tiger", "leopard", "lion", "black cat"} & set(found.labels)
    assert str(words.look_up("Katze")) == "Katze: read as 'cat', a label"
    assert str(words.look_up("🐱")) == "🐱: read as 'cat face', a label"
    meanings, labels = words._meanings
    own = torch.nn.functional.normalize(words.encoder.pooled(list(labels[:4])), dim=-1)
    assert set(labels) == set(words.labels) and (own * meanings[:4]).sum(1).min() > 0.999


def test_the_sheet_has_a_picture_of_each_everyday_thing(words, tmp_path, monkeypatch):
    from PIL import Image

    asked = {}

    class Drawn:
        @classmethod
        def from_pretrained(cls, model):
            asked["model"] = model
            return cls()

        def __call__(self, prompt, seeds, num_inference_steps):
            asked.update(prompt=prompt, seeds=seeds, steps=num_inference_steps)
            return type("Output", (), {"images": [Image.new("RGB", (16, 16), "red") for _ in prompt]})

    monkeypatch.setattr("gen.generator.Generator", Drawn)
    draw_sheet(words, tmp_path / "sheet.png", "fast", 2, side=24)
    assert asked == {"model": "fast", "prompt": list(words.common), "seeds": list(range(len(words.common))), "steps": 2}
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    red = sum(pixel == (255, 0, 0) for pixel in sheet.get_flattened_data()) if hasattr(sheet, "get_flattened_data") else None
    assert sheet.width == 14 * (24 + 8) + 8 and red in (None, len(words.common) * 24 * 24)


def test_the_page_says_how_many_there_are(words):
    page = (ROOT / "docs" / "words.md").read_text(encoding="utf-8")
    assert re.findall(r"(\d[\d,]*) everyday things", page) == [str(len(words.common))]
    assert f"{len(words.labels):,} labels" in page
    said = re.findall(r"^    (\w+|\S): (.*)$", page, re.MULTILINE)
    assert len(said) == 5 and all(str(Words().look_up(word)) == f"{word}: {rest}" for word, rest in said)
    assert all(colour in page for colour in {*words.colours, *words.backgrounds, *words.styles})


def test_the_table_of_other_names_is_made_of_labels_and_tags():
    """Everyday things first; a tag of many things stands for none, and what is an English label stays that."""
    from distill.data.emoji.other_names import table

    def record(code, label):
        return DrawingRecord(
            file_name=f"images/x/{code}.webp",
            pack="x",
            family="train",
            style="x",
            hex=code,
            label=label,
            group="",
            subgroup="",
            names=(),
            tags=(),
            keywords=(),
            licence="",
        )

    records = [record("1F408", "cat"), record("1F415", "dog"), *(record(f"1F6{n:02X}", f"thing {n}") for n in range(20))]
    entries = [
        {"hexcode": "1F408", "label": "Katze", "tags": ["haustier", "dog"]},
        {"hexcode": "1F415", "label": "Hund", "tags": ["haustier"]},
        *({"hexcode": f"1F6{n:02X}", "label": f"Ding{n}", "tags": ["ding"]} for n in range(20)),
    ]
    made = table(records, {"de": entries})
    assert made["katze"] == "cat" and made["🐈"] == "cat" and made["haustier"] == "cat" and made["rotes"] == "red"
    assert "ding" not in made and "dog" not in made and "ding3" not in made  # many things, an English label, a number
