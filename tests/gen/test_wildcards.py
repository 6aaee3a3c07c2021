"""Wildcards and variants: by hand, by enumeration with itertools, and by frequencies."""

from __future__ import annotations

import os
from collections import Counter
from itertools import permutations, product

import pytest

from gen.calls.wildcards import Combinations, WildcardFiles, expand, is_template

COLOURS, ANIMALS = ["red", "green", "blue"], ["cat", "dog"]


@pytest.fixture
def files(tmp_path) -> WildcardFiles:
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "owl.txt").write_text("barn owl\nsnowy owl\n")
    (tmp_path / "birds" / "gull.txt").write_text("herring gull\n")
    (tmp_path / "animal.txt").write_text("# animals\n\n3::cat\ndog\n__birds/owl__\n")
    (tmp_path / "colour.txt").write_text("\n".join(COLOURS), encoding="utf-8-sig")
    return WildcardFiles(tmp_path)


@pytest.mark.parametrize(
    ("template", "all_prompts"),
    [
        ("a cat", {"a cat"}),
        ("a {red|green|blue} {cat|dog}", {f"a {c} {a}" for c, a in product(COLOURS, ANIMALS)}),
        ("{big |}cat", {"big cat", "cat"}),
        ("{{a|b} c|d}", {"a c", "b c", "d"}),
        ("{2$$red|green|blue}", {", ".join(pair) for pair in permutations(COLOURS, 2)}),
        ("{2$$ and $$red | green | blue}", {" and ".join(pair) for pair in permutations(COLOURS, 2)}),
        ("{1-2$$a|b}", {"a", "b", "a, b", "b, a"}),
        ("{-1$$a|b}", {"a", "b"}),
        ("{2-$$a|b}", {"a, b", "b, a"}),
        ("{0-1$$a|b}x", {"x", "ax", "bx"}),
        ("{9$$a|b}", {"a, b", "b, a"}),  # no more than there are
        ("{0::a|b}", {"b"}),
        ("{.5::a|2.::b}", {"a", "b"}),
        ("a [red:blue:0.5] [cat|dog] (x:1.2) {u|v}", {f"a [red:blue:0.5] [cat|dog] (x:1.2) {c}" for c in "uv"}),
        ("{[a|b]|c}", {"[a|b]", "c"}),  # a bar inside of square brackets is theirs
        ("{[a|{b|c}]|d}", {"[a|b]", "[a|c]", "d"}),
        ("{a [|b}", {"a [", "b"}),  # of a bracket that is open it is not
        ("{[a::0.5]|[b:2]}", {"[a::0.5]", "[b:2]"}),  # and its colons are no weights
        ("<lora:{a|b}:0.8>", {"<lora:a:0.8>", "<lora:b:0.8>"}),
        (r"\{a|b\} \__c\__ \${d\}", {"{a|b} __c__ ${d}"}),
        (r"{a\|b|c} \(d\) \[e\]", {r"a\|b \(d\) \[e\]", r"c \(d\) \[e\]"}),  # escapes of prompts stay
        *((text, {text}) for text in ("a__b 5__6 __init c", "fill _____ in", "__/etc/passwd__", "__../secret__", "__a b__")),
        ("__colour__", set(COLOURS)),
        ("__birds/*__", {"barn owl", "snowy owl", "herring gull"}),
        ("__**l__", {"barn owl", "snowy owl", "herring gull", "cat", "dog"}),
        ("__animal__", {"cat", "dog", "barn owl", "snowy owl"}),
        ("{2$$__colour__}", {", ".join(pair) for pair in permutations(COLOURS, 2)}),
        ("{2$$__colour__|x}", {f"{c}, x" for c in COLOURS} | {f"x, {c}" for c in COLOURS}),
    ],
)
def test_every_prompt_of_a_template_and_no_other(template, all_prompts, files):
    listed = list(Combinations(template, files))
    assert set(listed) == all_prompts
    assert len(listed) == len(Combinations(template, files))
    assert {expand(template, 3, row, files) for row in range(400)} == all_prompts
    assert is_template(template) == (len(all_prompts) > 1 or template.startswith("{"))


def selections(options: list[list[str]], number: int) -> list[list[str]]:
    """Ordered choices of so many options with their texts, by plain recursion."""
    if not number:
        return [[]]
    return [
        [text, *rest]
        for i, texts in enumerate(options)
        for text in texts
        for rest in selections(options[:i] + options[i + 1 :], number - 1)
    ]


def test_numbers_of_prompts_agree_with_plain_enumeration():
    """Several of options that have several texts each, by number."""
    options = [["a", "b"], ["c"], ["d", "e", "f"], ["g"]]
    written = "|".join("{" + "|".join(texts) + "}" for texts in options)
    for low, high in [(0, 0), (1, 1), (2, 2), (1, 3), (4, 4)]:
        expected = [", ".join(texts) for number in range(low, high + 1) for texts in selections(options, number)]
        assert list(Combinations(f"{{{low}-{high}$${written}}}")) == expected
    assert Combinations("{a|b}{c|d}")[-1] == "bd" and Combinations("{a|b}{c|d}")[1:3] == ["ad", "bc"]
    with pytest.raises(IndexError, match="4 prompts"):
        Combinations("{a|b}{c|d}")[4]


def test_weights_are_frequencies(files):
    """4000 draws: a share of p is off by less than 4 sqrt(p (1 - p) / 4000) < 0.032."""
    counts = Counter(expand("{2::a|b|0.5::c}", 0, row) for row in range(4000))
    assert {k: counts[k] / 4000 for k in "abc"} == pytest.approx({"a": 2 / 3.5, "b": 1 / 3.5, "c": 0.5 / 3.5}, abs=0.032)
    counts = Counter(expand("__animal__", 0, row, files) for row in range(4000))
    assert counts["cat"] / 4000 == pytest.approx(0.6, abs=0.032) and counts["barn owl"] / 4000 == pytest.approx(0.1, abs=0.02)
    counts = Counter(expand("{1-2$$a|b|c}", 0, row).count(",") for row in range(4000))
    assert counts[1] / 4000 == pytest.approx(0.5, abs=0.032)
    second = Counter(expand("{2$$8::a|b|b}", 0, row).split(", ")[0] for row in range(4000))
    assert second["a"] / 4000 == pytest.approx(0.8, abs=0.032)


def test_a_prompt_is_a_function_of_seed_and_row(files):
    template = "{a|b|c|d} __animal__ {2$$__colour__}"
    once = [expand(template, 5, row, files) for row in range(50)]
    assert once == [expand(template, 5, row, files) for row in reversed(range(50))][::-1]
    assert once != [expand(template, 6, row, files) for row in range(50)]
    # what this version draws is what the next one must: ledgers and recipes of batches go on with it
    assert [expand("{a|b|c|d}", 1, row) for row in range(12)] == list("cdacaccacaad")


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("a {b", "character 3 .*never closed"),
        ("a } b", "character 3 .*closes none"),
        ("{3-1$$a|b}", "from 3 to 1"),
        ("{0::a|0::b}", "weight 0"),
        ("${x=5}", "variables"),
        ("{" * 60, "nests more than 50"),
        ("__anmal__", r"no wildcard __anmal__ .*Did you mean __animal__\?"),
        ("__birds/../../secret__", "no wildcard"),
        ("__empty__", "no values"),
        ("__broken__", "broken.txt, line 2: .*never closed"),
        ("__circle__", "circle"),
        ("__wide_a__", "more than"),
        ("x" * 10_001, "at most 10000"),
        (5, "give a string"),
    ],
)
def test_what_cannot_be_drawn_is_said(template, said, files):
    (files.folder / "empty.txt").write_text("# nothing\n")
    (files.folder / "broken.txt").write_text("good\na {b\n")
    (files.folder / "circle.txt").write_text("a __circle__")
    for letter, following in zip("abcdef", "bcdefg", strict=True):  # ten of the next in each: a million
        (files.folder / f"wide_{letter}.txt").write_text(f"__wide_{following}__" * 10)
    (files.folder / "wide_g.txt").write_text("{|}")
    (files.folder.parent / "secret.txt").write_text("secret")
    with pytest.raises(ValueError, match=said):
        expand(template, 0, 0, files)
    with pytest.raises(ValueError, match=said):
        list(Combinations(template, files)[:2])


def test_names_never_leave_the_folder(files, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.txt"
    outside.write_text("secret\n")
    os.symlink(outside, files.folder / "link.txt")
    os.symlink(outside.parent, files.folder / "linked")
    assert not {"link", "linked/secret"} & set(WildcardFiles(files.folder).names)
    with pytest.raises(ValueError, match="no folder of wildcards is given"):
        expand("__animal__", 0)
    with pytest.raises(ValueError, match="not a folder"):
        WildcardFiles(outside)


def test_the_digest_follows_names_and_contents(files):
    first = files.digest()
    assert WildcardFiles(files.folder).digest() == first
    (files.folder / "colour.txt").write_text("red\ngreen\n")
    second = WildcardFiles(files.folder).digest()
    (files.folder / "colour.txt").rename(files.folder / "color.txt")
    assert len({first, second, WildcardFiles(files.folder).digest()}) == 3


def test_long_and_hostile_templates_end_soon():
    """Time in proportion to the length: none of these takes a second."""
    for text in ("_" * 9000, "__-" * 3000, "{|" * 20 + "}" * 20, "[" * 9000, "{a" + "|b" * 4000 + "}", "\\" * 9000):
        try:
            expand(text, 0)
        except ValueError as error:
            assert str(error)
    many = "{" + "|".join(str(i) for i in range(2000)) + "}"
    assert Combinations(many)[1234] == "1234" and len(Combinations(many.replace("{", "{3$$"))) == 2000 * 1999 * 1998
    with pytest.raises(ValueError, match="more than 1e"):
        Combinations(many.replace("{", "{5$$"))
