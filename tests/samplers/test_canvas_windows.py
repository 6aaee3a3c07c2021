"""Windows: they cover every canvas, pieces that wrap come back where they were, and what cannot be covered is said."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samplers.canvas.windows import PROFILES, Windows, starts
from tests.samplers.canvases import draw


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_starts_cover_any_length(length, window, stride, wrap):
    window = min(window, length)
    stride = min(stride, window)
    begins = starts(length, window, stride, wrap)
    covered = {(begin + i) % length for begin in begins for i in range(window)}
    assert covered == set(range(length)) and len(set(begins)) == len(begins)
    gaps = [b - a for a, b in pairwise(begins)]
    assert all(0 < gap <= stride for gap in gaps)
    if wrap:
        assert begins[0] + length - begins[-1] <= stride
    else:
        assert begins[0] == 0 and begins[-1] == length - window
        assert len(begins) == 1 + -(-(length - window) // stride)  # no more than needed


def test_a_width_that_strides_do_not_divide_is_covered_to_the_edge():
    """diffusers leaves the last 4 of these columns out."""
    assert starts(300, 64, 8)[-1] == 236 and starts(16, 16, 4) == (0,)
    assert starts(16, 16, 4, wrap=True) == (0, 4, 8, 12)


@pytest.mark.parametrize("profile", PROFILES)
def test_weights_are_symmetric_positive_and_fall_to_the_edge(profile):
    weights = Windows.regular((9, 20), (9, 6), (9, 3), profile).weights
    assert weights.shape == (9, 6) and (weights > 0).all()
    torch.testing.assert_close(weights, weights.flip(0, 1))
    middle, edge = weights[4, 2], weights[0, 0]
    assert middle == edge == 1 if profile == "flat" else middle > 4 * edge


def test_crop_and_add_go_across_both_ends():
    x = draw(2, 3, 7, 10)
    corners = ((5, 8), (0, 0), (2, 3), (5, 1), (1, 8), (4, 5), (0, 5), (3, 0), (3, 5))
    windows = Windows((7, 10), (4, 5), corners, "flat", (True, True))
    rows = windows.crop(x, (0, 2))
    assert torch.equal(rows[:2], x.roll((-5, -8), (2, 3))[..., :4, :5]) and torch.equal(rows[2:], x[..., 2:6, 3:8])
    back = torch.zeros_like(x)
    windows.add(back, rows[:2], 0)
    assert torch.equal(back.roll((-5, -8), (2, 3))[..., :4, :5], rows[:2]) and back.count_nonzero() == rows[:2].numel()
    assert torch.equal(windows.total, sum(_ones(windows, i) for i in range(9)))


def _ones(windows, index):
    one = torch.zeros(windows.canvas, dtype=torch.float64)
    windows.add(one, torch.ones(windows.size, dtype=torch.float64), index)
    return one


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (4, 12)}, "A window of 12 does not fit a canvas of 10"),
        ({"corners": ((0, 0), (0, 6))}, "8 of the canvas' 40 pixels lie in no window"),
        ({"corners": ((0, 0), (0, 7))}, r"at \(0, 7\) leaves the canvas"),
        ({"profile": "hann"}, "choose one of flat, linear, cosine, gaussian"),
        ({"profile": torch.ones(4, 3)}, r"Window weights of shape \(4, 3\)"),
        ({"profile": -torch.ones(4, 4)}, "finite ones from 0 up"),
        ({"profile": torch.eye(4)}, "lie in no window, or have no weight"),
    ],
)
def test_what_cannot_be_covered_is_said(change, message):
    given = {"canvas": (4, 10), "size": (4, 4), "corners": ((0, 0), (0, 3), (0, 6)), **change}
    with pytest.raises(ValueError, match=message):
        Windows(**given)


def test_gaps_and_foreign_canvases_are_refused():
    with pytest.raises(ValueError, match="A stride of 5 is not possible with windows of 4"):
        Windows.regular((4, 10), (4, 4), (4, 5))
    with pytest.raises(ValueError, match="make them for its size"):
        Windows.regular((4, 10), (4, 4), (4, 2)).crop(draw(1, 1, 4, 9), (0,))
