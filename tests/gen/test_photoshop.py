"""PSD documents against Pillow's reader, which has its own idea of the format."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gen.io.images import flat
from gen.io.openraster import LayerImage, LayersError, LayerStack
from gen.io.photoshop import write_psd


def picture(seed: int, size: tuple[int, int] = (10, 8)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8))


def test_pillow_reads_the_layers(tmp_path):
    given = (
        LayerImage("ground", picture(0)),
        LayerImage("größer 猫", picture(1), opacity=0.5),
        LayerImage("small", picture(2, (4, 3)), x=2, y=-1, visible=False),
    )
    stack = LayerStack(10, 8, given)
    with Image.open(write_psd(tmp_path / "a.psd", stack)) as whole:
        assert whole.format == "PSD" and whole.size == (10, 8)
        assert np.array_equal(np.asarray(whole.convert("RGB")), np.asarray(flat(stack.flatten())))
    with Image.open(tmp_path / "a.psd") as document:
        assert [layer[0] for layer in document.layers][::2] == ["ground", "small"]
        assert [layer[2] for layer in document.layers] == [(0, 0, 10, 8), (0, 0, 10, 8), (2, -1, 6, 2)]
        for number in (2, 1):  # it begins as if it were at the first
            document.seek(number)
            assert np.array_equal(np.asarray(document), np.asarray(given[number - 1].picture))


def test_opacity_and_visibility_are_in_the_records(tmp_path):
    stack = LayerStack(10, 8, (LayerImage("a", picture(0), opacity=0.5, visible=False),))
    data = write_psd(tmp_path / "a.psd", stack).read_bytes()
    at = data.index(b"8BIMnorm") + 8
    assert list(data[at : at + 4]) == [128, 0, 2, 0]
    assert data[data.index(b"8BIMluni") + 8 :][:10] == b"\0\0\0\x08\0\0\0\x01\0a"


def test_no_layers_and_too_large_ones(tmp_path):
    with Image.open(write_psd(tmp_path / "a.psd", LayerStack(3, 2))) as document:
        assert np.asarray(document.convert("RGB")).min() == 255
    with pytest.raises(LayersError, match="30,000"):
        write_psd(tmp_path / "b.psd", LayerStack(40_000, 1))
