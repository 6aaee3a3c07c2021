"""Files of layers: what is written is read, looks as it should, and hostile files are refused in a sentence."""

from __future__ import annotations

import io
import zipfile
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from gen.io import openraster
from gen.io.alpha import flattened, straighten
from gen.io.openraster import MIMETYPE, LayerImage, LayersError, LayerStack, read_openraster, write_openraster


def picture(seed: int, size: tuple[int, int] = (9, 7)) -> Image.Image:
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    array[:2, :3, 3], array[2:4, :3, 3] = 0, 255
    return Image.fromarray(array)


def stack() -> LayerStack:
    layers = (
        LayerImage("ground", picture(0).convert("RGB").convert("RGBA")),
        LayerImage('a "cat" & <dog>', picture(1, (5, 6)), x=3, y=-2, opacity=0.5),
        LayerImage("hidden", picture(2), visible=False),
        LayerImage("beyond", picture(3, (4, 4)), x=7, y=5),
    )
    return LayerStack(9, 7, layers)


def by_hand(stack: LayerStack) -> np.ndarray:
    """Pixel by pixel, in straight colours."""
    seen = np.zeros((stack.height, stack.width, 4))
    for layer in stack.layers:
        array = np.asarray(layer.picture) / 255
        for y in range(stack.height):
            for x in range(stack.width):
                row, column = y - layer.y, x - layer.x
                if layer.visible and 0 <= row < array.shape[0] and 0 <= column < array.shape[1]:
                    a, below = array[row, column, 3] * layer.opacity, seen[y, x]
                    alpha = a + (1 - a) * below[3]
                    colour = a * array[row, column, :3] + (1 - a) * below[3] * below[:3]
                    seen[y, x] = [*(colour / alpha if alpha else colour), alpha]
    return seen


def test_layers_together_are_porter_and_duffs():
    found = np.asarray(stack().flatten()) / 255
    assert np.abs(found - by_hand(stack())).max() < 0.51 / 255


@pytest.mark.parametrize("size", [(9, 7), (1, 5), (6, 1), (1, 1)])
def test_bands_make_what_the_whole_makes(size, monkeypatch):
    """Where nothing is seen too, whose colours come from as far away as the picture is wide."""
    width, height = size
    seen = np.asarray(picture(1, (max(width, 3), max(height, 4))))[:height, :width].copy()
    seen[:, : (width + 1) // 2, 3] = 0
    layers = (LayerImage("a", Image.fromarray(seen)), LayerImage("b", picture(2, (5, 4)), x=2, y=3, opacity=0.5))
    layered = LayerStack(width, height, layers)
    whole = straighten(flattened([layered.placed(one) for one in layers]))[0].permute(1, 2, 0)
    expected = (whole * 255).round().to(torch.uint8).numpy()
    for band in (1, 1 << 18):
        monkeypatch.setattr(openraster, "BAND", band)
        assert np.array_equal(np.asarray(layered.flatten()), expected), band


def test_what_is_written_is_read_to_the_bit(tmp_path):
    path = write_openraster(tmp_path / "a.ora", stack())
    back = read_openraster(path)
    assert (back.width, back.height, len(back.layers)) == (9, 7, 4)
    for one, other in zip(stack().layers, back.layers, strict=True):
        assert (one.name, one.x, one.y, one.opacity, one.visible) == (
            other.name,
            other.x,
            other.y,
            other.opacity,
            other.visible,
        )
        assert np.array_equal(np.asarray(one.picture), np.asarray(other.picture))
    assert write_openraster(tmp_path / "b.ora", back).read_bytes() == path.read_bytes()


def test_the_file_is_as_the_specification_says(tmp_path):
    with zipfile.ZipFile(write_openraster(tmp_path / "a.ora", stack())) as file:
        first = file.infolist()[0]
        assert (first.filename, first.compress_type, file.read(first)) == ("mimetype", zipfile.ZIP_STORED, b"image/openraster")
        root = ElementTree.fromstring(file.read("stack.xml"))
        assert (root.tag, root.get("w"), root.get("h")) == ("image", "9", "7")
        assert [layer.get("name") for layer in root[0]] == ["beyond", "hidden", 'a "cat" & <dog>', "ground"]  # topmost first
        merged = Image.open(io.BytesIO(file.read("mergedimage.png")))
        assert np.array_equal(np.asarray(merged), np.asarray(stack().flatten()))
        assert max(Image.open(io.BytesIO(file.read("Thumbnails/thumbnail.png"))).size) <= 256


def archive(path, xml: str | bytes, mimetype: bytes = MIMETYPE, **more: bytes):
    file = io.BytesIO()
    picture(1).save(file, "PNG")
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("mimetype", mimetype)
        out.writestr("stack.xml", xml)
        out.writestr("data/a.png", file.getvalue())
        for name, data in more.items():
            out.writestr(name, data)
    return path


def listed(inside: str, size: str = 'w="9" h="7"') -> str:
    return f"<image {size}><stack>{inside}</stack></image>"


A = '<layer src="data/a.png"/>'


def test_groups_are_their_layers_or_one_layer(tmp_path):
    """A group with an opacity is isolated: its layers together, and then that opacity."""
    path = archive(tmp_path / "a.ora", listed(f'<stack>{A}{A}</stack><stack name="g" opacity="0.5">{A}{A}</stack>'))
    found = read_openraster(path)
    assert [layer.name for layer in found.layers] == ["g", "", ""] and found.layers[0].opacity == 0.5
    two = LayerStack(9, 7, (LayerImage("", picture(1)),) * 2)
    assert np.array_equal(np.asarray(found.layers[0].picture), np.asarray(two.flatten()))


BOMB = "<!DOCTYPE a [<!ENTITY x 'xxxxxxxxxx'>]>"


@pytest.mark.parametrize(
    ("xml", "says"),
    [
        (BOMB + listed("&x;"), "DOCTYPE"),
        ((BOMB + listed("&x;")).encode("utf-16"), "not UTF-8"),
        ("<image", "not XML"),
        (listed(A, 'w="99999" h="99999"'), "canvas of 99999 x 99999"),
        (listed(A, 'w="0" h="7"'), "canvas of 0 x 7"),
        (listed(A, 'w="nine" h="7"'), "w is 'nine'"),
        ("<image w='1' h='1'/>", "no stack"),
        (listed('<layer src="../../etc/passwd"/>'), "has no '../../etc/passwd'"),
        (listed('<layer src="stack.xml"/>'), "not a usable PNG"),
        (listed('<layer src="data/a.png" opacity="2"/>'), "opacity is '2'"),
        (listed('<layer src="data/a.png" opacity="nan"/>'), "opacity is 'nan'"),
        (listed('<layer src="data/a.png" x="1e9"/>'), "x is '1e9'"),
        (listed('<layer src="data/a.png" x="999999999999"/>'), "x is '999999999999'"),
        (listed('<layer src="data/a.png" composite-op="svg:multiply"/>'), "mixes a layer by 'svg:multiply'"),
        (listed(A * 300), "more than 256 layers"),
        (listed('<stack opacity="0.5"/>' * 300), "more than 256 layers"),
        (listed("<stack>" * 20 + A + "</stack>" * 20), "groups within groups"),
    ],
)
def test_hostile_stacks_are_refused(tmp_path, xml, says):
    with pytest.raises(LayersError) as refused:
        read_openraster(archive(tmp_path / "a.ora", xml))
    assert says in str(refused.value) and str(tmp_path) in str(refused.value) and str(refused.value).endswith(".")


def test_hostile_files_are_refused(tmp_path):
    with pytest.raises(LayersError, match="mimetype says something else"):
        read_openraster(archive(tmp_path / "a.ora", listed(A), b"application/zip"))
    with pytest.raises(LayersError, match="cannot be read as OpenRaster"):
        (tmp_path / "b.ora").write_bytes(b"no zip")
        read_openraster(tmp_path / "b.ora")
    with pytest.raises(LayersError, match="larger than 1,048,576 bytes"):
        read_openraster(archive(tmp_path / "c.ora", listed(A) + " " * (1 << 20)))
    with pytest.raises(LayersError, match="more than 2000 members"):
        read_openraster(archive(tmp_path / "d.ora", listed(A), **{f"m{i}": b"" for i in range(2000)}))
    with pytest.raises(ValueError, match="does not exist"):
        read_openraster(tmp_path / "none.ora")
    large = io.BytesIO()
    Image.new("1", (9000, 9000)).save(large, "PNG")
    with pytest.raises(LayersError, match=r"not a usable PNG.*million pixels"):
        read_openraster(archive(tmp_path / "e.ora", listed('<layer src="big.png"/>'), **{"big.png": large.getvalue()}))


def test_damaged_files_are_refused(tmp_path):
    """What zipfile says of damage is no ValueError, and not always a BadZipFile."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(zipfile.ZipInfo("mimetype"), MIMETYPE)
        out.writestr("stack.xml", listed(A))
    whole = bytearray(file.getvalue())
    start = whole.index(b"stack.xml") + len("stack.xml")
    whole[start : start + 4] = b"\xff" * 4
    (tmp_path / "a.ora").write_bytes(whole)
    with pytest.raises(LayersError, match="cannot be read as OpenRaster"):
        read_openraster(tmp_path / "a.ora")
