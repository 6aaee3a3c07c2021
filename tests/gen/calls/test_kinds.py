"""Every keyword has a kind; a value of another is refused in JSON's words."""

from __future__ import annotations

import pytest

from gen.calls.keywords import OWN, keywords_of
from gen.calls.kinds import KINDS, check_kinds, shown

ALL = sorted({name for method in OWN for name in keywords_of(method)})


def test_every_keyword_has_a_kind_and_no_more():
    assert set(ALL) == set(KINDS)


@pytest.mark.parametrize("name", ALL)
def test_what_a_keyword_takes(name):
    """Each takes one of these and not all of them, and says so of the others."""
    values = [True, 3, 0.5, "a", ["a"], [1], [1, 2], {"a": 1}, [{}], [[1, 2], [3, 4]], 10**400, float("nan")]
    refused = []
    for value in values:
        try:
            check_kinds({name: value})
        except ValueError as error:
            refused.append(value)
            assert str(error).startswith(name) and "; give " in str(error) and str(error).endswith(".")
    assert 1 <= len(values) - len(refused) <= 6
    assert [{}] in refused
    check_kinds({name: None})


@pytest.mark.parametrize(("arguments", "says"), [
    ({"seed": True}, "seed is true; give a whole number."),
    ({"guidance_scale": "high"}, 'guidance_scale is "high"; give a number.'),
    ({"guidance_scale": float("inf")}, "guidance_scale is Infinity; give a number."),
    ({"steps": 3, "schedule": {}}, "schedule is {}; give a text."),
    ({"sampler_options": {"eta": None}}, 'sampler_options["eta"] is null; give a number, a text, true, false or a list of '
                                         "numbers."),
    ({"window": [1, 2, 3]}, "window is [1, 2, 3]; give a whole number, or a list of two, height first."),
    ({"seed": 1 << 64}, "seed is a number of many digits; give a whole number."),
])  # fmt: skip
def test_what_is_said(arguments, says):
    with pytest.raises(ValueError) as refused:
        check_kinds(arguments)
    assert str(refused.value) == says


def test_long_values_are_cut():
    assert shown("a" * 10_000) == '"' + "a" * 56 + "..."
    assert shown("\ud800") == '"?"' and shown(10**5000) == "a number of many digits"
    assert shown({"é": None}) == '{"é": null}'
