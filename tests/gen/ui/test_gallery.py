"""The gallery: what is in its folder, what goes in and out, and that no name leads out of it."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
from PIL import Image

from gen.pipeline.exif import FORMATS
from gen.ui.gallery import MOST_GIVEN, FileKind, Gallery, media_type


@pytest.fixture(scope="module")
def made(tiny):
    return tiny("a red heart", num_inference_steps=1, seed=5, num_images_per_prompt=2, progress=False)


@pytest.fixture
def gallery(tmp_path):
    return Gallery(tmp_path / "out")


def fill(gallery, made) -> list[str]:
    names = [gallery.save(image, recipe) for image, recipe in zip(made.images, made.recipes, strict=True)]
    for age, name in enumerate(reversed(names)):
        os.utime(gallery.folder / name, ns=(10**18 - age * 10**9,) * 2)
    return names


def test_pictures_are_saved_beside_one_another_and_listed_newest_first(gallery, made):
    assert gallery.entries() == []
    assert fill(gallery, made) == ["a-red-heart-5.png", "a-red-heart-6.png"]
    assert gallery.save(made.images[0], made.recipes[0]) == "a-red-heart-5-1.png"
    os.utime(gallery.folder / "a-red-heart-5-1.png", ns=(2 * 10**18,) * 2)
    (gallery.folder / "notes.txt").write_text("not a picture")
    (gallery.folder / ".hidden.png").write_text("")
    (gallery.folder / "folder.png").mkdir()
    assert [entry.name for entry in gallery.entries()] == ["a-red-heart-5-1.png", "a-red-heart-6.png", "a-red-heart-5.png"]
    assert gallery.recipe("a-red-heart-6.png") == made.recipes[1]
    again = Gallery(gallery.folder)  # another process
    assert again.entries() == gallery.entries()


def test_pictures_of_every_format_that_holds_recipes_are_kept_and_shown(gallery, made):
    for suffix, kind in FORMATS.items():
        name = gallery.save(made.images[0], made.recipes[0], FileKind(suffix, None if suffix == ".png" else 80))
        path = gallery.path(name)
        assert name == f"a-red-heart-5{suffix}" and name in [entry.name for entry in gallery.entries()]
        assert Image.open(path).format == kind and gallery.recipe(name) == made.recipes[0]
        assert media_type(name) == f"image/{kind.lower()}"
        assert Image.open(gallery.thumbnail(name)).size == Image.open(path).size
        given = gallery.keep_given(path.read_bytes())
        assert (np.asarray(Image.open(given)) == np.asarray(Image.open(path).convert("RGB"))).all()
        assert gallery.restore(gallery.delete(name)) == name
    sizes = {
        quality: len(gallery.path(gallery.save(made.images[0], None, FileKind(".jpg", quality))).read_bytes())
        for quality in (5, 95)
    }
    assert sizes[5] < sizes[95]
    (gallery.folder / "film.mp4").write_text("")
    assert len(gallery.entries()) == len(FORMATS) + 2


def test_what_is_deleted_comes_back(gallery, made):
    name = fill(gallery, made)[0]
    before = gallery.path(name).read_bytes()
    trashed = gallery.delete(name)
    assert [entry.name for entry in gallery.entries()] == ["a-red-heart-6.png"]
    assert (gallery.folder / "trash" / trashed).read_bytes() == before
    with pytest.raises(ValueError, match="no picture"):
        gallery.path(name)
    assert gallery.restore(trashed) == name and gallery.path(name).read_bytes() == before
    with pytest.raises(ValueError, match="not in the trash"):
        gallery.restore(trashed)
    first = gallery.delete(name)
    assert gallery.save(made.images[0], made.recipes[0]) == name  # the name is free now, and taken when it comes back
    assert gallery.restore(first) == "a-red-heart-5-1.png"
    assert gallery.delete(name) == name and gallery.delete("a-red-heart-5-1.png") == "a-red-heart-5-1.png"


def test_another_file_of_a_name_has_another_address(gallery, made):
    name = fill(gallery, made)[0]
    first = gallery.address(name)
    assert first == gallery.address(name) and first.startswith("/pictures/a-red-heart-5.png?")
    gallery.delete(name)
    assert gallery.save(made.images[1], made.recipes[0]) == name and gallery.address(name) != first
    assert gallery.address("a b?#.png", "thumbnails") == "/thumbnails/a%20b%3F%23.png?0"


def test_no_name_leads_out_of_the_folder(gallery, made, tmp_path):
    fill(gallery, made)
    made.images[0].save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", gallery.folder / "link.png")
    (gallery.folder / "sub").mkdir()
    made.images[0].save(gallery.folder / "sub" / "inner.png")
    outside = (
        *("../secret.png", "..\\secret.png", str(tmp_path / "secret.png"), "sub/inner.png", "link.png", ".png", ""),
        *("..", "a-red-heart-5.png/..", "a-red-heart-5.png\0", "C:a.png", "x" * 300 + ".png", "trash", "~/a.png"),
    )
    for name in outside:
        for do in (gallery.path, gallery.delete, gallery.thumbnail, gallery.restore, gallery.recipe):
            with pytest.raises(ValueError):
                do(name)
    assert (tmp_path / "secret.png").exists() and (gallery.folder / "link.png").is_symlink()


def test_thumbnails_are_small_and_follow_the_file(gallery, made):
    name = fill(gallery, made)[0]
    Image.new("RGB", (600, 300), "red").save(gallery.folder / name)
    small = gallery.thumbnail(name)
    assert small.parent.name == ".thumbnails" and Image.open(small).size == (256, 128)
    assert gallery.thumbnail(name) == small
    Image.new("RGB", (300, 300), "blue").save(gallery.folder / name)
    other = gallery.thumbnail(name)
    assert other != small and Image.open(other).getpixel((0, 0))[2] > 200
    (gallery.folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(ValueError, match="no picture"):
        gallery.thumbnail("broken.png")


def test_given_pictures_are_kept_without_what_they_carry(gallery):
    data = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(data, "JPEG", comment=b"where I live")
    path = gallery.keep_given(data.getvalue())
    assert path.parent == gallery.folder / ".given" and Image.open(path).format == "PNG"
    assert b"where I live" not in path.read_bytes() and gallery.keep_given(data.getvalue()) == path
    for damaged in (b"", b"GIF89a", b"<svg/>", data.getvalue()[:100]):
        with pytest.raises(ValueError, match="picture"):
            gallery.keep_given(damaged)
    with pytest.raises(ValueError, match="smaller"):
        gallery.keep_given(bytes(MOST_GIVEN + 1))
    assert len(list(path.parent.iterdir())) == 1
