"""Syntax of other tools in prompts: said in one warning, and only where it is there."""

import warnings

import pytest

from gen.models.prompt_syntax import foreign_syntax

FOREIGN = {
    "a cat <lora:style:0.8>": "<lora:...> loads",
    "<hypernet:x:1> a cat": "<hypernet:...> loads",
    "<LyCO:thing> a cat": "<LyCO:...> loads",
    "a [cat:dog:0.5] here": "[a:b:0.5]",
    "a [dog:10]": "[a:b:0.5]",
    "a [cat|dog|cow]": "[a|b]",
    "a cat AND a dog": "AND joins",
    "a cat BREAK a dog": "BREAK begins",
}
PLAIN = [
    "a cat", "(cat:1.2)", "[cat]", "((a)) [[b]]", "a new <cat> here", "salt and pepper", "SAND", "unBREAKable", "a | b",
    "1 < 2 > 0", "AND", "at 10:30", "[a: b]", "<new>", "a [cat] and [a dog]: 3", r"\\[a\\]",
]  # fmt: skip


@pytest.mark.parametrize("prompt", FOREIGN)
def test_what_other_tools_read_as_more_is_named(prompt):
    [found] = foreign_syntax(prompt)
    assert found.startswith(FOREIGN[prompt])


@pytest.mark.parametrize("prompt", PLAIN)
def test_plain_prompts_and_weights_are_not(prompt):
    assert foreign_syntax(prompt) == []


def test_break_is_known_to_clip():
    assert foreign_syntax("a cat BREAK a dog", breaks=True) == []


def test_a_call_warns_once_for_all_its_prompts(tiny):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        prompts = ["a cat <lora:x:0.8>", "a [cat|dog]", "a cat <lora:x:0.8>"]
        tiny(prompts, seed=1, output_type="latent", progress=False)
    [text] = [str(one.message) for one in said if "read as plain words" in str(one.message)]
    assert "--lora FILE:WEIGHT" in text and "[a|b]" in text


def test_prompts_of_any_length_are_read_in_no_time():
    """Each would take minutes under an expression that tries every end of every beginning."""
    for piece in ("[", "[a", "[a:", "[a|", "<lora:", " AND", "[:1", "[a: "):
        assert isinstance(foreign_syntax(piece * 5_000), list)


def test_words_that_the_encoder_does_not_know_are_named(tiny):
    with pytest.warns(UserWarning, match="does not know '日', '本'"):
        tiny.text_encoder.encode(["a red 日本"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.text_encoder.encode(["a red heart"])
