"""Recipes in JPEG, WebP and AVIF: what is written comes back, other programs read it, and files are whole or not there."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from gen.cli.output import WRITTEN
from gen.cli.replay import keeps_pixels
from gen.io.errors import RecipeError
from gen.pipeline.exif import FORMATS, NOTE
from gen.pipeline.infotext import to_infotext
from gen.pipeline.png import read_chunks, read_recipe, save_image
from tests.gen.test_recipe import PICTURE, make

LOSSY = (".jpg", ".jpeg", ".webp", ".avif")
PROMPT = 'a <red> & "blue" heart, 猫 \U0001f431\nwith lines\ud83d'.encode("utf-16", "ignore").decode("utf-16")


def test_the_command_line_knows_the_formats():
    assert set(WRITTEN) == set(FORMATS)


@pytest.mark.parametrize("suffix", [*LOSSY, ".PNG", ".WebP"])
def test_any_recipe_comes_back(tmp_path, suffix):
    recipe = make(prompt=PROMPT, negative_prompt="blurry")
    path = save_image(PICTURE, tmp_path / f"a{suffix}", recipe)
    assert read_recipe(path) == recipe
    assert read_chunks(path)["parameters"] == to_infotext(recipe)
    with Image.open(path) as image:
        assert image.size == PICTURE.size and image.format == FORMATS[suffix.lower()]
    with pytest.raises(RecipeError, match="exists already"):
        save_image(PICTURE, path, recipe)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", LOSSY)
def test_other_programs_read_it(tmp_path, suffix):
    """The user comment as piexif writes it, and sd-parsers' reading where it knows the format."""
    recipe = make(prompt=PROMPT)
    path = save_image(PICTURE, tmp_path / f"a{suffix}", recipe)
    with Image.open(path) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + to_infotext(recipe).encode("utf-16-be")
        assert "a &lt;red&gt; &amp;" in image.info["xmp"].decode() and "猫 \U0001f431" in image.info["xmp"].decode()
    sd_parsers = pytest.importorskip("sd_parsers")
    if suffix == ".avif":
        return
    found = sd_parsers.ParserManager().parse(path)
    assert found is not None and found.prompts[0].value.startswith("a <red>") and found.metadata


def test_xmp_is_well_formed_whatever_the_prompt_is(tmp_path):
    from xml.etree import ElementTree

    from gen.pipeline.exif import xmp_of

    for prompt in (PROMPT, "\0\x01\x1b[31m", "]]><!ENTITY x 'y'>&x;{prompt}", "\ufffe\uffff", "{0}{version}"):
        tree = ElementTree.fromstring(xmp_of(make(prompt=prompt)).decode().split("?>", 1)[1].rsplit("<?", 1)[0])
        assert len(list(tree.iter())) == 6


def test_quality_is_kept_to(tmp_path):
    picture = Image.effect_noise((64, 64), 80).convert("RGB")
    for suffix in (".jpg", ".webp", ".avif"):
        sizes = [save_image(picture, tmp_path / f"{q}{suffix}", quality=q).stat().st_size for q in (10, 50, 90)]
        assert sizes == sorted(sizes) and sizes[0] < sizes[2]
    whole = save_image(picture, tmp_path / "100.webp", make(), quality=100)
    assert np.array_equal(np.asarray(Image.open(whole)), np.asarray(picture))
    kept = {".png": True, ".jpg": False, ".avif": False}
    assert {s: keeps_pixels(save_image(picture, tmp_path / f"x{s}", make())) for s in kept} == kept
    assert keeps_pixels(whole) and not keeps_pixels(tmp_path / "90.webp")


def test_what_a_jpeg_cannot_hold_is_said(tmp_path):
    recipe = make(prompt="猫" * 10_000, negative_prompt="猫" * 10_000)
    with pytest.raises(RecipeError, match="longer than a JPEG can hold"):
        save_image(PICTURE, tmp_path / "a.jpg", recipe)
    assert not list(tmp_path.iterdir())
    for suffix in (".png", ".webp", ".avif"):
        assert read_recipe(save_image(PICTURE, tmp_path / f"a{suffix}", recipe)) == recipe


@pytest.mark.parametrize(
    "note", [b"", b"fewstep", NOTE, NOTE + b"{", NOTE + b"\xff\xfe", b"Nikon\0\x02", NOTE + b"[" * 100_000]
)
def test_hostile_notes_are_no_recipe(tmp_path, note):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x927C] = note
    file = io.BytesIO()
    PICTURE.save(file, "WEBP", exif=exif.tobytes())
    (tmp_path / "a.webp").write_bytes(file.getvalue())
    with pytest.raises(RecipeError):
        read_recipe(tmp_path / "a.webp")


def test_a_colour_profile_beside_it_is_left_alone(tmp_path):
    """A WebP whose first part is a profile: lossless or not is told all the same."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for lossless in (True, False):
        path = tmp_path / f"{lossless}.webp"
        PICTURE.save(path, lossless=lossless, icc_profile=profile)
        assert keeps_pixels(path) is lossless


@pytest.mark.parametrize("kind", ["jpg", "webp", "avif"])
def test_the_commands_write_show_and_replay_them(fewstep, tiny_model, kind):
    model = ["--model", tiny_model, "--device", "cpu"]
    code, out, err = fewstep("image", "a cat", "-n", 2, "--seed", 1, "--steps", 2, "--format", kind, "--quality", 80, *model)
    assert code == 0, err
    assert out.split() == [f"a-cat-1.{kind}", f"a-cat-2.{kind}"]
    assert fewstep("image", "a cat", "--seed", 1, "-o", f"x.{kind}", "--steps", 2, *model)[1] == f"x.{kind}\n"
    shown = fewstep("info", f"x.{kind}")[1]
    assert "a cat" in shown and "num inference steps" in shown
    code, out, err = fewstep("replay", f"a-cat-1.{kind}", *model)
    assert code == 0 and out == "a-cat-1-replay.png\n" and "keeps pixels only nearly" in err
    again = fewstep("image", "a cat", "--seed", 1, "--steps", 2, "-o", "p.png", *model)[0]
    assert again == 0
    with Image.open("p.png") as one, Image.open("a-cat-1-replay.png") as other:
        assert one.tobytes() == other.tobytes()
    assert fewstep("image", "a cat", "-o", f"y.{kind}", "--no-metadata", "--steps", 1, *model)[0] == 0
    assert "holds no recipe" in fewstep("info", f"y.{kind}")[2]


def test_a_webp_without_loss_is_compared(fewstep, tiny_model):
    model = ["--model", tiny_model, "--device", "cpu"]
    fewstep("image", "a cat", "--seed", 1, "--steps", 2, "-o", "x.webp", "--quality", 100, *model)
    code, _, err = fewstep("replay", "x.webp", *model)
    assert code == 0 and "The same in every pixel" in err
    assert Path("x.webp").exists()
