"""The programs in docs/examples, on a tiny model."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.filterwarnings("ignore:A prompt is longer")
def test_a_cube_is_painted_and_shown_from_its_corner(tiny):
    cube = runpy.run_path(str(EXAMPLES / "cube.py"))
    strip = cube["paint"](tiny, 0, steps=1)
    assert strip.shape == (1, 3, 32, 6 * 32) and len(torch.stack(strip.chunk(6, dim=3)).flatten(1).unique(dim=0)) == 6
    colours = torch.arange(1.0, 7).repeat_interleave(8).reshape(1, 1, 1, 48).expand(1, 3, 8, 48) / 10
    seen = cube["corner"](colours, 120)[0, 0]
    front, right, top = 0.92 * 0.1, 0.82 * 0.2, 1.0 * 0.5
    for row, column, value in ((75, 50, front), (75, 70, right), (45, 60, top), (2, 2, 1.0)):
        assert abs(seen[row, column].item() - value) < 1e-6
    assert len(seen.unique()) == 4  # three faces and the ground behind them
    # a mark at the front's upper right, the right's upper left and the top's lower right is the corner in the middle
    marks = torch.zeros(1, 3, 8, 48)
    marks[..., 0, 7] = marks[..., 0, 8] = marks[..., 7, 4 * 8 + 7] = 1
    middle = cube["corner"](marks, 120)[0, 0]
    assert (middle[58:62, 58:62] > 0.8).all()
