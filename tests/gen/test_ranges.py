"""Several values in one text."""

from __future__ import annotations

import pytest

from gen.calls.ranges import numbers, split_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4,8,20", [4, 8, 20]),
        ("1-5", [1, 2, 3, 4, 5]),
        ("1-8:3", [1, 4, 7]),
        ("-2-1", [-2, -1, 0, 1]),
        ("-4--2", [-4, -3, -2]),
        (" 3 , 7 - 9 ", [3, 7, 8, 9]),
        ("5-5", [5]),
    ],
)
def test_whole_numbers(text, values):
    assert numbers("--seed", text) == values


def test_decimals_reach_the_end_of_their_range():
    assert numbers("x", "0-1:0.1", float) == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert numbers("x", "0,.5,1e-3,-1.5", float) == [0, 0.5, 1e-3, -1.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("1,,2", "empty"),
        ("four", "whole numbers with commas between"),
        ("1.5", "whole numbers"),
        ("1-2:0.5", "whole numbers"),
        ("7-1", "upwards"),
        ("1-7:0", "upwards"),
        ("1-7:-1", "upwards"),
        ("1-10000000000000000000", "more than 10000 values"),
        ("1-9000,1-9000", "more than 10000 values"),
        ('"1', "double quote"),
    ],
)
def test_what_is_no_range_is_said_by_name(text, message):
    with pytest.raises(ValueError, match=rf"^--seed .*{message}"):
        numbers("--seed", text)


def test_a_value_with_a_comma_stands_in_quotes():
    assert split_values("x", 'a, "b, c",d') == ["a", "b, c", "d"]
