"""Pictures that are read in several ways: against the mean of turned pictures, written out; recipes, refusals, the command."""

import re
from itertools import pairwise

import pytest
import torch
from PIL import Image

from gen.cli.app import main
from gen.generator import Generator
from gen.nn.conditions import join
from gen.pipeline.png import read_recipe
from gen.tasks.views.task import VIEWS
from samplers.denoiser import Condition, Context
from samplers.guidance import ClassifierFree
from samplers.noise import normal
from samplers.registry import get_grid

CALL = {"seed": 7, "num_inference_steps": 3, "progress": False}


def euler(denoise, x, levels):
    """DDIM steps of what `denoise` says of x0, written out."""
    for s, t in pairwise(levels):
        x0 = denoise(x, s)
        x = t.alpha * x0 + t.sigma / s.sigma * (x - s.alpha * x0)
    return x


@pytest.fixture(scope="module")
def classes(class_model) -> Generator:
    return Generator.from_pretrained(class_model, device="cpu", dtype="float32")


@torch.no_grad()
@pytest.mark.parametrize("name", VIEWS)
def test_views_of_pixels_are_averaged_at_every_step(classes, name):
    """Each view keeps its own x; one that moves pixels could as well share it."""
    turn = VIEWS[name]
    guided, labels = ClassifierFree(classes.denoiser, 3.0), (Condition(label=torch.tensor([i])) for i in range(2))
    cat, dog = labels
    levels, z = get_grid("trailing", classes.denoiser.path, 3), normal([7], (3, 8, 8), "latents")

    def denoise(x, level):
        upright = guided(x[:1], level, cat, Context()).x0
        other = turn.back(guided(x[1:], level, dog, Context()).x0)
        return torch.cat([(upright + other) / 2, turn.there((upright + other) / 2)])

    expected = euler(denoise, torch.cat([z, turn.there(z) if turn.latent else z]) * levels[0].sigma, levels)
    made = classes.ambiguous("cat", "dog", name, output_type="latent", **CALL)
    assert torch.allclose(made.images, expected[:1], atol=2e-4)
    assert made.nfe == 3 * 2 * 2
    assert torch.allclose(turn.back(turn.there(z)), z) and not torch.allclose(turn.there(z), z)


@torch.no_grad()
@pytest.mark.parametrize("pixels_from", [20.0, -20.0, 0.0])
def test_latents_early_and_pictures_late(tiny, pixels_from):
    text = join([tiny.encode_prompt([p]) for p in ("a red heart", "a cat")])
    guided, scale = ClassifierFree(tiny.denoiser, 3.0), tiny.config.latent_scale
    levels, z = get_grid("uniform", tiny.denoiser.path, 3), normal([7], (4, 8, 8), "latents")

    def turn(v):
        return v.flip(2, 3)

    def denoise(x, level):
        a, b = guided(x, level, text, Context()).x0[:, None]
        if level.logsnr < pixels_from:
            mean = (a + turn(b)) / 2
            return torch.cat([mean, turn(mean)])
        mean = (tiny.autoencoder.decode(a / scale) + turn(tiny.autoencoder.decode(b / scale))) / 2
        return torch.cat([tiny.autoencoder.encode(mean), tiny.autoencoder.encode(turn(mean))]) * scale

    x = euler(denoise, torch.cat([z, turn(z)]) * levels[0].sigma, levels)
    call = {**CALL, "sampler": "ddim", "pixels_from": pixels_from}
    made = tiny.ambiguous("a red heart", "a cat", output_type="latent", **call).images
    assert torch.allclose(made, x[:1], atol=2e-4)
    shown = tiny.ambiguous("a red heart", "a cat", output_type="pt", **call).images
    decoded = tiny.decode(x)
    assert torch.allclose(shown, (decoded[:1] + turn(decoded[1:])) / 2, atol=2e-4)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_ancestral"])
def test_recipes_replay_bit_for_bit(tiny, sampler):
    made = tiny.ambiguous(
        "a red heart", ["a cat", "a dog"], ["rotate90", "flip_vertical"], negative_prompt="blurry", sampler=sampler,
        num_images_per_prompt=2, output_type="pt", **CALL,
    )  # fmt: skip
    assert made.nfe == 3 * 3 * 2
    for image, recipe in zip(made.images, made.recipes, strict=True):
        read = type(recipe).from_json(recipe.to_json())
        assert torch.equal(tiny.replay(read, "pt", progress=False).images[0], image)
    alone = tiny.ambiguous(
        "a red heart", ["a cat", "a dog"], ["rotate90", "flip_vertical"], negative_prompt="blurry", sampler=sampler,
        output_type="pt", **{**CALL, "seed": 8},
    )  # fmt: skip
    assert torch.allclose(alone.images[0], made.images[1], atol=2e-4)


@pytest.mark.parametrize(
    ("views", "call", "message"),
    [
        ("rotate18", {}, "There is no view 'rotate18'; choose one of rotate180, "),
        (["rotate90"], {"height": 64}, "The view 'rotate90' is for square pictures, and this one is 32 x 64"),
        (["rotate180", "negative"], {}, "Views have 2 names and 1 prompts; give one prompt for each view"),
        ("rotate180", {"guidance": "cfg++"}, "cfg++ needs the two branches"),
        ("rotate180", {"image": Image.new("RGB", (32, 32))}, "A picture with several views takes no image"),
        ("rotate180", {"layout": {"regions": [{"prompt": "a", "box": [0, 0, 1, 1]}]}}, "takes no layout"),
        ("rotate180", {"pixels_from": float("nan")}, "pixels_from is nan"),
    ],
)
def test_refusals(tiny, views, call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tiny.ambiguous("a cat", "a dog", views, **CALL, **call)


def test_the_command(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = ["--model", str(tiny_model), "-q"]
    arguments = ["ambiguous", "a cat", "a dog", "a heart", "--view", "rotate180", "--view", "negative", "--seed", "3"]
    assert main([*arguments, "--steps", "2", "--grid", "all.png", "-o", "a.png", *common]) == 0
    assert capsys.readouterr().out.split() == ["a.png", "all.png"]
    assert read_recipe("a.png").views.prompts == ("a dog", "a heart")
    with Image.open("all.png") as sheet:
        assert sheet.width * sheet.height > 3 * 32 * 32
    assert main(["replay", "a.png", *common]) == 0
    assert main(["ambiguous", "a cat", "a dog", "--view", "rotate18", *common]) == 2
    assert "Did you mean 'rotate180'" in capsys.readouterr().err
