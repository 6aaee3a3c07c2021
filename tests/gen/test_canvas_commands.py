"""panorama, outpaint and upscale on the command line: what lands on disk, how it replays, and wrong requests."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from gen.cli import app as cli
from gen.cli.values import sides
from gen.pipeline.png import read_recipe
from gen.tasks.canvas.cli import options_of
from tests.distill.processes import on_processes


@pytest.fixture
def fewstep(tmp_path, monkeypatch, capsys, tiny_model):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, here: bool = True) -> tuple[int, str, str]:
        where = ["--model", tiny_model, "--dtype", "float32", "--device", "cpu"] if here else ["--model", tiny_model]
        code = cli.main([str(argument) for argument in (*arguments, *where)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out.strip(), said.err

    return run


def test_panorama(fewstep):
    code, out, err = fewstep(
        "panorama", "a cat", "the moon", "--size", "64x32", "--circular", "horizontal", "--stride", "16x8",
        "--weights", "linear", "--shift-from", -1, "--sync", 0.02, "--seed", 3, "--steps", 2,
        "--sampler", "euler_a", "--sampler-option", "eta=0.5", "--option", "sampler:s_noise=1.0",
        "--window-batch", 3, "--negative", "blurry", "--guidance-scale", 2,
    )  # fmt: skip
    assert (code, out) == (0, "a-cat-the-moon-3.png"), err
    assert "panorama, 64 x 32, seed 3, 2 steps" in err and Image.open(out).size == (64, 32)
    recipe = read_recipe(out)
    assert recipe.canvas.model_dump(exclude={"batch"}) == {
        "kind": "panorama", "window": (32, 32), "stride": (8, 16), "weights": "linear", "circular": (False, True),
        "prompts": ("a cat", "the moon"), "sync": 0.02, "sync_distance": "latent", "recurrence": 1,
        "extend": None, "shift_from": -1.0,
    }  # fmt: skip
    assert (recipe.sampler, recipe.sampler_options) == ("euler_a", {"eta": 0.5, "s_noise": 1.0})
    assert recipe.negative_prompt == "blurry"
    code, _, err = fewstep("replay", out, here=False)
    assert code == 0 and "Identical to the last byte" in err


def _rank(model):
    arguments = ["panorama", "a cat", "--size", "64x32", "--steps", 2, "--device", "cpu", "--model", model]
    assert cli.main([str(one) for one in arguments]) == 0


def test_processes_of_one_launch_share_the_windows_and_write_one_file(tmp_path, monkeypatch, tiny_model):
    """As under torchrun; the seed is drawn once."""
    monkeypatch.chdir(tmp_path)
    on_processes(2, _rank, tiny_model)
    (made,) = tmp_path.glob("*.png")
    assert Image.open(made).size == (64, 32) and str(read_recipe(made).seed) in made.name


def test_outpaint_and_upscale(fewstep):
    array = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(array).save("photo.png")
    code, out, err = fewstep("outpaint", "photo.png", "a cat", "--left", 15, "--right", 5, "--seed", 1, "--steps", 2)
    assert (code, out) == (0, "photo-outpainted-1.png"), err
    assert (np.asarray(Image.open(out))[:, 15:35] == array).all()
    code, large, err = fewstep("upscale", out, "-o", "large.png", "--scale", 1.5, "--seed", 1, "--steps", 4, "-q")
    assert (code, large, err) == (0, "large.png", "") and Image.open(large).size == (60, 45)
    code, _, err = fewstep("replay", out, "--image", "photo.png", here=False)
    assert code == 0 and "Identical to the last byte" in err
    code, _, err = fewstep("replay", large, "--image", out, here=False)
    assert code == 0 and "Identical to the last byte" in err
    assert "'kind': 'upscale'" in _info(large)


def _info(path):
    from gen.cli.show import info

    return info(path, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["panorama", "a cat", "--size", "big"], "--size is 'big'; write pixels as WIDTHxHEIGHT"),
        (["panorama", "a cat", "--window", "1x2x3"], "--window is '1x2x3'"),
        (["panorama", "a cat", "--option", "eta=0.5"], "write OF:NAME=VALUE"),
        (["panorama", "a cat", "--circular", "round"], "choose one of none, horizontal, vertical, both"),
        (["outpaint", "missing.png", "--left", "8"], "missing.png"),
        (["outpaint", "missing.png", "-o", "x.gif"], "saved as PNG"),
    ],
)
def test_wrong_requests_are_one_sentence(fewstep, arguments, message):
    code, out, err = fewstep(*arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_sides_and_options():
    assert sides("--size", "512x128") == (512, 128) and sides("--size", "64") == (64, 64) and sides("--size", None) is None
    found = options_of(["sampler:eta=0.5", "cache:stride=3", "sampler:order=2"])
    assert found == {"sampler_options": {"eta": 0.5, "order": 2}, "cache_options": {"stride": 3}}
