"""The grammar of prompt weights, against the examples that AUTOMATIC1111 documents."""

from __future__ import annotations

from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen.nn.prompt_weights import token_weights, weighted

EXAMPLES = {
    "normal text": [("normal text", 1)],
    "an (important) word": [("an ", 1), ("important", 1.1), (" word", 1)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1),
        ("house", 1.3 * 1.1**2),
        (" ", 1.1),
        ("on", 1),
        (" a ", 1.1),
        ("hill", 0.5 * 1.1),
        (", sun, ", 1.1),
        ("sky", 1.1**4),
        (".", 1.1),
    ],
    "[less] and ]": [("less", 1 / 1.1), (" and ]", 1)],
    "at 10:30) sharp": [("at 10:30) sharp", 1)],
    "(a: b)": [("a: b", 1.1)],
    "(off:0) (against: -.5 )": [("off", 0), (" ", 1), ("against", -0.5)],
    r"back\slash \\": [("back\\slash \\", 1)],
    "": [],
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples(text):
    plain, weights = weighted(text)
    assert len(plain) == len(weights)
    found = []
    for _, group in groupby(zip(plain, weights, strict=True), key=lambda pair: round(pair[1], 9)):
        part = list(group)
        found.append(("".join(character for character, _ in part), part[0][1]))
    assert [part for part, _ in found] == [part for part, _ in EXAMPLES[text]]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in EXAMPLES[text]], rel=1e-12)


@given(st.text(max_size=60))
def test_any_text_escaped_reads_as_itself(text):
    escaped = "".join("\\" + c if c in "()[]\\" else c for c in text)
    assert weighted(escaped) == (text, [1.0] * len(text))


@given(st.text(alphabet="a ()[]:.15-\\", max_size=40))
def test_any_markup_gives_one_weight_per_character_or_a_sentence(text):
    try:
        plain, weights = weighted(text)
    except ValueError as error:
        assert "weights from -10 to 10" in str(error)
    else:
        assert len(plain) == len(weights) and all(abs(weight) <= 10 for weight in weights)


def test_absurd_weights_are_refused():
    with pytest.raises(ValueError, match="weighs a word 1e\\+09 times"):
        weighted("(cat:1000000000)")
    with pytest.raises(ValueError, match="-10 to 10"):
        weighted("(" * 30 + "cat")


def test_a_token_has_the_weight_of_its_first_letter():
    plain, weights = weighted("a (red:1.5) cat")
    spans = [(0, 0), (0, 1), (1, 5), (5, 9), (9, 9)]  # a sentence piece holds the space before the word
    assert token_weights(plain, weights, spans) == [1, 1, 1.5, 1, 1]
