"""What a person reads where a browser refuses a file."""

from __future__ import annotations

import pytest

from gen.ui.uploads import refusal_words


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("accept", "notes.txt is no picture; give a PNG"),
        ("max-file-size", "notes.txt has more than 64 MiB"),
        ("max-files", "At most 100 pictures"),
        ("duplicate", "notes.txt was given already"),
    ],
)
def test_a_file_is_refused_with_its_reason(reason, words):
    said = refusal_words([[reason, "notes.txt"], ["accept", "other.txt"]])
    assert said.startswith(words) and said.endswith(".") and ("MiB" in said) == (reason == "max-file-size")


def test_names_from_a_browser_are_made_harmless():
    assert (
        "\x1b" not in refusal_words([["accept", "\x1b[2J" + "x" * 500]]) and len(refusal_words([["accept", "x" * 500]])) < 200
    )
    assert refusal_words([]).startswith("That file")
