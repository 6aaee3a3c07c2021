"""Names that the default model's text encoder does not have: emoji, and German, French and Spanish words."""

import json

import pytest
import torch

from gen.io.weights import CheckpointError
from gen.models.components import load_component, save_component
from gen.models.pretrained import find_model
from gen.nn.other_names import OtherNames
from tests.gen.conftest import tiny_text_encoder

TABLE = {"katze": "cat", "schwarze katze": "black cat", "gâteau": "cake", "rotes": "red", "🐱": "cat face", "❤": "red heart",
         "🐈‍⬛": "black cat", "🐈": "cat"}  # fmt: skip
KNOWN = {"a", "and", "the", "die", "dog", "on", "cat", "rose"}


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("katze", "cat"),
        ("Katze", "cat"),
        ("eine Katze", "cat"),
        ("die Katze and a dog", "cat and a dog"),
        ("die dog", "die dog"),  # no article before a word that stays
        ("eine schwarze Katze", "black cat"),
        ("a schwarze, katze", "a schwarze, cat"),  # not one name across a comma
        ("rotes gateau", "red cake"),  # without its accent
        ("(Katze:1.2) on", "(cat:1.2) on"),
        ("<Katze> and katze", "<Katze> and cat"),
        ("katzen", "katzen"),
        ("🐱", " cat face "),
        ("a 🐱🐱 on", "a  cat face  cat face  on"),
        ("❤️", " red heart "),
        ("🐱🏽", " cat face "),
        ("🐈‍⬛", " black cat "),  # the longest, not a cat and a square
        ("🐈🦄", " cat 🦄"),
        ("🦄", "🦄"),
        ("naïve a", "naïve a"),
        ("", ""),
        ("a dog", "a dog"),
    ],
)
def test_names_in_the_table_are_exchanged_and_nothing_else(text, read):
    assert OtherNames(TABLE).respell(text, KNOWN.__contains__) == read


def test_a_word_that_is_known_keeps_its_meaning():
    table = OtherNames({"rose": "pink", "chat": "cat", "chat noir": "black cat"})
    assert table.respell("a rose", KNOWN.__contains__) == "a rose"
    assert table.respell("un chat noir", {"chat"}.__contains__) == "black cat"  # noir is not
    assert table.respell("un chat", {"chat"}.__contains__) == "un chat"


@pytest.fixture(scope="module")
def encoder():
    return load_component(find_model("default")[1] / "text_encoder", "text_encoder")


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("🐱", "cat face"), ("❤️", "red heart"), ("a 🚗 on a blue background", "a automobile on a blue background"),
        ("eine Katze", "cat"), ("ein roter Apfel", "red apple"), ("Geburtstagskuchen", "birthday cake"),
        ("Regenbogen", "rainbow"), ("un chat noir", "black cat"), ("un cheval", "horse"),
        ("une étoile", "star"), ("une maison", "house"),
        ("un perro", "dog"), ("un avión", "airplane"), ("una casa roja", "house red"), ("un pingüino", "penguin"),
    ],
)  # fmt: skip
def test_the_default_encoder_reads_the_english_name(encoder, text, english):
    for read in (encoder.encode, lambda texts: (encoder.condition(texts[0]).tokens, encoder.condition(texts[0]).mask)):
        (tokens, mask), (wanted, wanted_mask) = read([text]), read([english])
        assert torch.equal(tokens, wanted) and torch.equal(mask, wanted_mask)
    assert encoder.unseen_words(text) == []


def test_weights_of_words_stay_with_the_word_that_is_read(encoder):
    assert torch.equal(encoder.condition("a dog and (Katze:1.5)").tokens, encoder.condition("a dog and (cat:1.5)").tokens)


def test_every_label_and_everyday_word_of_the_data_is_read_as_it_is(encoder):
    from distill.words import Words

    words = Words()
    names = {*words.labels, *(word for others in words.common.values() for word in others)}
    assert [name for name in names if encoder.respell(name) != name] == []


def test_an_encoder_is_saved_with_its_names(tmp_path):
    encoder = tiny_text_encoder()
    save_component(encoder, tmp_path / "without")
    assert load_component(tmp_path / "without").other_names is None
    encoder.other_names = OtherNames(TABLE)
    save_component(encoder, tmp_path / "with")
    assert load_component(tmp_path / "with").other_names.names == TABLE


@pytest.mark.parametrize(
    "names", [None, [], {"": "cat"}, {"katze": ""}, {"katze": 3}, {"k" * 101: "cat"}, {"katze": "c" * 101}]
)
def test_a_table_of_anything_but_short_texts_is_refused(tmp_path, names):
    (tmp_path / "other_names.json").write_text(json.dumps({"names": names}))
    with pytest.raises(CheckpointError, match="names"):
        OtherNames.load(tmp_path)
