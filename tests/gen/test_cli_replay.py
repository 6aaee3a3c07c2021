"""`fewstep replay` and `fewstep info`: what a picture's recipe says, and whether it makes the picture again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from gen.pipeline.png import read_recipe, save_image


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replay_gives_the_same_bytes(fewstep, tiny_model, dtype):
    fewstep(
        "image", "a cat", "", "a dog", "-n", 2, "--seed", 1, "--sampler", "euler_a", "--dtype", dtype, "--model", tiny_model
    )
    code, out, err = fewstep("replay", "a-dog-6.png", "--model", tiny_model)
    assert code == 0 and out == "a-dog-6-replay.png\n" and "Identical to the last byte." in err
    assert Path("a-dog-6-replay.png").read_bytes() == Path("a-dog-6.png").read_bytes()
    code, out, _ = fewstep("replay", "image-4.png", "--model", tiny_model, "-o", "image-4.png", "-q")
    assert code == 0 and out == "image-4-1.png\n"
    Path("there").mkdir()
    for folder in ("there", "new/"):
        code, out, _ = fewstep("replay", "image-4.png", "--model", tiny_model, "-o", folder, "-q")
        assert code == 0 and out == f"{Path(folder) / 'image-4-replay.png'}\n"
    code, _, err = fewstep("replay", "image-4.png", "--model", tiny_model, "-o", "image-4.gif")
    assert code == 2 and "saved as PNG" in err


def test_a_damaged_picture_is_not_replayed(fewstep, image, tiny_model, monkeypatch):
    """Said before the model is opened, with the file's name."""
    image("a cat", "--seed", 1)
    whole = Path("a-cat-1.png").read_bytes()
    start = whole.index(b"IDAT") + 20
    Path("cut.png").write_bytes(whole[: start + 40])
    Path("changed.png").write_bytes(whole[:start] + bytes(200) + whole[start + 200 :])
    monkeypatch.setattr("gen.generator.Generator.from_pretrained", None)
    for name in ("cut.png", "changed.png"):
        code, out, err = fewstep("replay", name, "--model", tiny_model)
        assert code == 2 and not out and f"{name} is damaged" in err
        assert fewstep("info", name)[0] == 0


def test_replay_says_what_differs(fewstep, image, tiny_model):
    image("a cat", "--seed", 1)
    code, _, err = fewstep("replay", "a-cat-1.png", "--model", tiny_model, "--dtype", "bfloat16")
    assert code == 1 and "Different:" in err and "dtype float32 (now bfloat16)" in err
    with Image.open("a-cat-1.png") as picture:
        picture.save("again.png", pnginfo=_info(picture), compress_level=1)
        changed = picture.point(lambda v: min(v + 3, 255))
        changed.save("changed.png", pnginfo=_info(picture))
        picture.resize((16, 16)).save("small.png", pnginfo=_info(picture))
    code, _, err = fewstep("replay", "again.png", "--model", tiny_model)
    assert code == 0 and "The same in every pixel" in err
    code, _, err = fewstep("replay", "changed.png", "--model", tiny_model)
    assert code == 1 and "by at most 3 of 255" in err
    code, _, err = fewstep("replay", "small.png", "--model", tiny_model)
    assert code == 1 and "16 x 16" in err


def _info(picture):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in picture.info.items():
        info.add_text(name, value)
    return info


def test_replay_opens_no_model_that_a_file_names(fewstep, image, monkeypatch):
    image("a cat", "--seed", 1)
    recipe = read_recipe("a-cat-1.png")
    for name in ("someone/model", "../../models/x", "tiny"):
        hostile = recipe.model_copy(update={"model": recipe.model.model_copy(update={"name": name})})
        save_image(Image.open("a-cat-1.png"), "hostile.png", hostile, overwrite=True)
        monkeypatch.setattr("gen.models.pretrained.download", lambda *_: pytest.fail("downloaded"))
        code, _, err = fewstep("replay", "hostile.png")
        assert code == 2 and f"{name!r}; say where it is with --model" in err


def test_info_shows_recipes_of_both_kinds(fewstep, image):
    image("a cat \x1b[31m", "--seed", 1, "-o", "x.png")
    code, out, _ = fewstep("info", "x.png")
    assert code == 0 and r"a cat \x1b[31m" in out and "\x1b" not in out and "dpmpp_2m" in out
    assert json.loads(fewstep("info", "x.png", "--json")[1]) == json.loads(read_recipe("x.png").to_json())
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", "a dog\nSteps: 20, Sampler: Euler a, Seed: 7, Size: 8x8")
    Image.new("RGB", (8, 8)).save("other.png", pnginfo=info)
    assert "Euler a" in fewstep("info", "other.png")[1]
    Image.new("RGB", (8, 8)).save("bare.png")
    assert fewstep("info", "bare.png") == (2, "", "fewstep: bare.png holds no recipe.\n")
