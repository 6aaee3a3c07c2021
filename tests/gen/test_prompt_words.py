"""Words that a model never learned are noted, once, and no others."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch

import gen
from distill.data.emoji.captions import words_of
from distill.data.emoji.data import COLOURS, EmojiData
from gen.adapters import Adapter
from gen.models.components import load_component, save_component
from gen.models.prompt_words import warn_words

DEFAULT = Path(gen.__file__).parent / "weights" / "default" / "text_encoder"
ROOT = Path(gen.__file__).parents[1]


@pytest.fixture(scope="module")
def encoder():
    return load_component(DEFAULT, "text_encoder")


@pytest.fixture(scope="module")
def emoji() -> EmojiData:
    return EmojiData()


@pytest.fixture
def knowing(tiny, monkeypatch):
    """The tiny model, which knows "quokka" from a caption."""
    monkeypatch.setattr(tiny.text_encoder, "caption_words", frozenset({"quokka"}))
    tiny._encoded.clear()
    yield tiny
    tiny._encoded.clear()


def notes(generator, prompts, **options) -> list[str]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        generator(prompts, seed=1, num_inference_steps=1, output_type="latent", progress=False, **options)
    return [str(one.message) for one in said if "caption" in str(one.message) or "No adapter" in str(one.message)]


def test_the_shipped_list_is_of_the_words_of_all_captions(encoder, emoji):
    """Of them all, those that are no word piece."""
    words = words_of(emoji.names, [*COLOURS, *(record.style for record in emoji.records)])
    assert encoder.caption_words == {word for word in words if not encoder.word_pieces.has(word)}


def test_no_caption_of_the_training_is_noted(encoder, emoji):
    count = len(emoji.records)
    captions = [emoji.caption(emoji.variant(counter % count, counter % 5), counter) for counter in range(2 * count)]
    assert [text for text in captions if encoder.unseen_words(text)] == []


def test_no_prompt_of_the_docs_is_noted(encoder):
    prompts = (ROOT / "docs" / "prompts.txt").read_text().splitlines()
    prompts += re.findall(r'fewstep image "([^"]+)"', (ROOT / "README.md").read_text())
    assert len(prompts) > 20
    assert [text for text in prompts if encoder.unseen_words(re.sub("<[^<>]*>", "", text))] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a numbat, and a Zxqwv", ["numbat", "Zxqwv"]),
        ("two cats, hedgehogs and a running dog", []),  # plurals and the like of words that are known
        ("a café", []),
        ("3 x 128x128 日本 !!", []),
    ],
)
def test_words_that_are_spelled_and_never_stood_in_a_caption(encoder, text, words):
    assert encoder.unseen_words(text) == words


def test_a_call_notes_once_what_its_prompts_have(knowing):
    [said] = notes(knowing, ["a wombat cat", "a dragonfruit", "a wombat cat", "a quokka"])
    assert said.startswith("'wombat', 'dragonfruit' stood in no caption") and "quokka" not in said
    assert notes(knowing, ["a wombat cat", "a quokka"]) == []  # they are read already
    assert notes(knowing, ["a cat"], negative_prompt="ugliest wombat") == []
    [long] = notes(knowing, [" ".join(f"a{a}{b}zz" for a in "bcdfghjklm" for b in "bcdfghjklm")])
    assert len(long) < 400 and "…" in long


def test_words_of_adapters_that_are_not_in_force_are_noted(knowing):
    taught = Adapter("new", {}, {}, words={"<new>": {"text_encoder": torch.zeros(1, 16)}})
    [said] = notes(knowing, ["a <new> wombat"])
    assert "taught the model '<new>'; load the one that has (--lora FILE" in said and "'wombat'" in said
    assert ["(--reference FILE" in one for one in notes(knowing, ["a <ref> cat"])] == [True] and "--reference" not in said
    assert notes(knowing, ["a <hypernet:x:0.8> cat"]) == []  # which has a note of its own
    try:
        knowing.load_adapter(taught)
        assert notes(knowing, ["a <NEW> wombat"]) == []  # what an adapter taught is not in the list
        [said] = notes(knowing, ["a <newer> cat"])
        assert "'<newer>'" in said
    finally:
        knowing.unload_adapter("new")


def test_an_encoder_without_the_list_notes_nothing_and_one_with_it_keeps_it(tiny, tmp_path):
    assert tiny.text_encoder.caption_words is None and tiny.text_encoder.unseen_words("a wombat") == []
    encoder = load_component(DEFAULT, "text_encoder")
    save_component(encoder, tmp_path)
    assert load_component(tmp_path, "text_encoder").caption_words == encoder.caption_words


def test_a_word_that_is_nearly_spelled_like_a_known_one_gets_that_suggested(encoder):
    assert encoder.spelled_like("squirel") == "squirrel" and encoder.spelled_like("umbrela") == "umbrella"
    assert encoder.spelled_like("qxzvkw") is None
    with pytest.warns(UserWarning, match=r"'squirel' stood in no caption .*; did you mean 'squirrel'\? Else use other words"):
        warn_words(["a squirel"], encoder, {}, None)
    with pytest.warns(UserWarning, match="the letters suggest; use other words"):
        warn_words(["a qxzvkw"], encoder, {}, None)
