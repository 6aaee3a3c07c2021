"""What prompts say beside their words, against what AUTOMATIC1111's parser makes of the same texts."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen.models import prompt_syntax
from gen.models.prompt_syntax import last_step, parse_schedule, split_conjunction, take_loras, unescaped, without_breaks

# prompt -> (last step, text), of 10 steps: AUTOMATIC1111's own documented examples, then others put through its grammar
SCHEDULES = {
    "test": [(10, "test")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3]": [(3, "a "), (10, "a b")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [unbalanced": [(10, "a [unbalanced")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[a|(b:1.1)]": [(i, "(b:1.1)" if i % 2 == 0 else "a") for i in range(1, 11)],
    "[fe|]male": [(i, "male" if i % 2 == 0 else "female") for i in range(1, 11)],
    "[fe|||]male": [(1, "female"), (4, "male"), (5, "female"), (8, "male"), (9, "female"), (10, "male")],
    "a [b::0.25] c": [(2, "a b c"), (10, "a  c")],
    "[:b:4]": [(4, ""), (10, "b")],
    "[a:b:1.0]": [(10, "a")],
    "[a:b:1]": [(1, "a"), (10, "b")],
    "[a:b:0]": [(10, "b")],
    "[a:b:-2]": [(10, "b")],
    "[a:b:99]": [(10, "a")],
    "[[a|b]:c:2]": [(1, "a"), (2, "b"), (10, "c")],
    r"\[a:b:3\]": [(10, r"\[a:b:3\]")],
    r"[a\:x:b:3]": [(3, r"a\:x"), (10, "b")],
    "[a:b]": [(10, "[a:b]")],
    "[a] (b:1.2) ((c))": [(10, "[a] (b:1.2) ((c))")],
    "at 10:30 [x:y:z:3]": [(10, "at 10:30 [x:y:z:3]")],
    "[a ( b:c:3]": [(10, "[a ( b:c:3]")],
}


@pytest.mark.parametrize("prompt", SCHEDULES)
def test_a_prompt_changes_when_theirs_does(prompt):
    schedule, found = parse_schedule(prompt), []
    for step in range(1, 11):
        text = schedule.at(step, 10)
        found = [*found[:-1], (step, text)] if found and found[-1][1] == text else [*found, (step, text)]
    assert found == SCHEDULES[prompt]
    assert schedule.changes == (prompt != found[-1][1])


def test_a_bar_outside_of_brackets_is_text():
    """AUTOMATIC1111 reads nothing of such a prompt; here the rest of it counts."""
    assert parse_schedule("a | b [c:d:0.5]").at(1, 2) == "a | b c"


@given(st.text(alphabet="ab ()[]|:.15-\\", max_size=30))
def test_every_text_reads_as_something(text):
    schedule = parse_schedule(text)
    assert all(isinstance(schedule.at(step, 7), str) for step in (1, 4, 7))
    if not schedule.changes:
        assert schedule.at(1, 7) == text


@given(st.text(max_size=40))
def test_an_escaped_text_never_changes(text):
    escaped = "".join("\\" + c if c in "()[]:|\\" else c for c in text).replace("<", "< ")
    assert not parse_schedule(escaped).changes


def test_shares_have_a_point():
    assert [last_step(when, 20) for when in ("0.5", ".25", "1.0", "1", "0.04", "7", "1e400")] == [10, 5, 20, 1, 0, 7, 20]
    assert not parse_schedule("[a:[b:c:0.5]:0.2]").counts_steps
    assert parse_schedule("[a:[b:c:5]:0.2]").counts_steps and parse_schedule("[a|b]").counts_steps


def test_and_joins_prompts_with_weights():
    assert split_conjunction("a cat") == [("a cat", 1.0)]
    assert split_conjunction("salt and pepper SAND (x:1.2)") == [("salt and pepper SAND (x:1.2)", 1.0)]
    assert split_conjunction("a cat AND a dog:0.5 AND bird : -1.5") == [("a cat", 1.0), ("a dog", 0.5), ("bird", -1.5)]
    assert split_conjunction("a:2 AND") == [("a", 2.0), ("", 1.0)]
    assert split_conjunction("(a:1.2) AND b") == [("(a:1.2)", 1.0), ("b", 1.0)]


def test_loras_are_taken_out():
    assert take_loras("a <lora:x:0.8> cat <LyCO:y>") == ("a  cat ", {"x": 0.8, "y": 1.0})
    assert take_loras("<lora:x:0.5><lora:x:0.25>") == ("", {"x": 0.75})
    assert take_loras("a new <cat> and <hypernet:x:1>") == ("a new <cat> and <hypernet:x:1>", {})
    for wrong in ("<lora:x:much>", "<lora:x:1:0.5>", "<lora: :1>", "<lora:x:1e9>", "<lora:x:nan>"):
        with pytest.raises(ValueError, match="write a LoRA as <lora:NAME:WEIGHT>"):
            take_loras(wrong)
    assert parse_schedule("[<lora:x:1>a::0.5]b").at(1, 2) == "<lora:x:1>ab"


def test_escapes_of_brackets_are_left_to_the_weights():
    assert unescaped(r"a\:b \| \(c\) \\: \d") == r"a:b | \(c\) \\: \d"


def test_breaks_are_words_of_capitals():
    assert without_breaks("a cat BREAK a dog") == "a cat a dog" and without_breaks("unBREAKable") == "unBREAKable"


@pytest.mark.parametrize("piece", ["[", "[a", "[a:", "[a|", "<lora:", " AND", "[:1", "[a: ", "([", "[a:b:3]", "])", "(]"])
def test_prompts_of_any_length_are_read_in_no_time(piece):
    """Each would take minutes, or more depth than Python has, under a reading that tries every end of every beginning."""
    text = piece * 3_000
    assert isinstance(parse_schedule(text).at(2, 10), str) and split_conjunction(text) and take_loras(text)


@pytest.mark.parametrize("text", ["[" * 99 + "(a)" * 500 + "]" * 99, "[" * 99 + ")" * 500, "(" * 99 + ":a" * 500 + ")" * 99])
def test_texts_in_deep_brackets_are_moved_as_one(text, monkeypatch):
    """The nodes that are put together come to a few for each character, and not to as many again for every bracket."""
    passed = []

    def counted(nodes):
        nodes = list(nodes)
        passed.append(len(nodes))
        return merged(nodes)

    merged = prompt_syntax._merged
    monkeypatch.setattr(prompt_syntax, "_merged", counted)
    assert parse_schedule(text).fixed == text
    assert sum(passed) < 6 * len(text)


def test_deep_brackets_are_text():
    text = "[a:" * 3_000 + ":3]" * 3_000
    assert parse_schedule(text).at(1, 10).startswith("[a:[a:")


def test_a_call_warns_once_for_what_nothing_reads(tiny):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        prompts = ["a cat <hypernet:x:0.8>", "a cat", "a dog <hypernet:x:0.8>"]
        tiny(prompts, seed=1, output_type="latent", progress=False)
    [text] = [str(one.message) for one in said if "read as plain words" in str(one.message)]
    assert "hypernetworks do not open" in text


def test_words_that_the_encoder_does_not_know_are_named(tiny):
    with pytest.warns(UserWarning, match="does not know '日', '本'"):
        tiny.text_encoder.encode(["a red 日本"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.text_encoder.encode(["a red heart"])
