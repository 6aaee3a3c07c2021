"""Left or right: what a choice leaves in the file, and the pairs that are drawn for it; no page."""

from __future__ import annotations

import json
import threading

import pytest

from gen.calls.call import Call
from gen.ui.checks import UNREADABLE, FieldError
from gen.ui.preferences import NAME, PairSettings, Preference, Preferences


def test_rows_are_added_and_taken_back(tmp_path):
    preferences = Preferences(tmp_path / "out")
    assert preferences.count() == 0 and not preferences.file.exists()
    rows = [Preference('a "cat"\nat night', "a.png", "b.webp"), Preference("ein Mädchen", "c.png", "d.png")]
    for row in (rows[0], rows[1], rows[0]):
        preferences.add(row)
    assert preferences.file == tmp_path / "out" / NAME and preferences.count() == 3
    read = [json.loads(line) for line in preferences.file.read_text("utf-8").splitlines()]
    assert read[0] == {"prompt": 'a "cat"\nat night', "chosen": "a.png", "rejected": "b.webp"} and read[2] == read[0]
    preferences.take_back(rows[0])  # the last of its kind
    assert [json.loads(line)["chosen"] for line in preferences.file.read_text("utf-8").splitlines()] == ["a.png", "c.png"]
    preferences.take_back(rows[0])
    with pytest.raises(ValueError, match="not in the file"):
        preferences.take_back(rows[0])
    with pytest.raises(ValueError, match="itself"):
        preferences.add(Preference("a", "a.png", "a.png"))
    assert preferences.count() == 1


def test_rows_of_several_pages_are_whole(tmp_path):
    preferences = Preferences(tmp_path)
    rows = [Preference("x" * 500, f"{i}.png", "other.png") for i in range(40)]
    threads = [threading.Thread(target=preferences.add, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    read = [json.loads(line)["chosen"] for line in preferences.file.read_text().splitlines()]
    assert sorted(read) == sorted(row.chosen for row in rows)


def test_pairs_are_two_pictures_of_one_prompt_with_seeds_of_their_own():
    base = Call({"prompt": "of Draw", "seed": 10, "num_images_per_prompt": 7, "sampler": "euler"})
    calls = PairSettings("a cat\n\n a dog ", 3).to_calls(base)
    assert [(one.arguments["prompt"], one.arguments["seed"]) for one in calls] == [("a cat", 10), ("a dog", 12), ("a cat", 14)]
    assert all(one.arguments["num_images_per_prompt"] == 2 and one.arguments["sampler"] == "euler" for one in calls)
    (one,) = PairSettings("", 1).to_calls(Call({"prompt": "of Draw"}))
    assert one.arguments["prompt"] == "of Draw" and "seed" not in one.arguments
    for values, field in ((("", 5), "prompt"), (("a", 0), "pairs"), (("a", UNREADABLE), "pairs"), (("a", 201), "pairs")):
        with pytest.raises(FieldError) as wrong:
            PairSettings(*values).to_calls(Call({}))
        assert wrong.value.field == field
