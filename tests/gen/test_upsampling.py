"""`Generator.upscale` by a network that was trained to enlarge: what it reads, sizes, passes, replays, refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from gen import Generator
from gen.calls.call import Call
from gen.calls.command import as_arguments
from gen.cli.app import main
from gen.nn.backbones.upsampler import LEVEL
from gen.nn.registry import build
from gen.pipeline.png import read_recipe
from samplers.noise import normal
from tests.gen.conftest import randomise

NETWORK = {
    "type": "upsampler",
    "size": 16,
    "factor": 4,
    "fold": 2,
    "noise": [0.0, 1.0],
    "residual": True,
    "backbone": {"type": "adm", "dim": 8, "multipliers": [1, 2], "blocks": 1, "groups": 4, "middle_attention": False},
}
MODEL = {
    "path": {"type": "rectified_flow"},
    "prediction": "x0",
    "clock": "1000t",
    "sample_size": 16,
    "defaults": {"num_inference_steps": 2, "sampler": "dpmpp_2m"},
}
CALL = {"output_type": "pt", "progress": False}


def model(**changes) -> Generator:
    return Generator(MODEL, randomise(build({**NETWORK, **changes}), 1), device="cpu", dtype="float32", name="tiny")


def picture(height=7, width=9, seed=0):
    return torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed)) / 255


def test_the_network_reads_the_noised_and_enlarged_picture(monkeypatch):
    generator, small, seen = model(), picture(8, 12), []
    forward = generator.network.forward

    def noted(x, time, condition, context=None):
        seen.append((x, condition))
        return forward(x, time, condition, context)

    monkeypatch.setattr(generator.network, "forward", noted)
    for s in (0.0, 0.3):
        seen.clear()
        generator.upscale(small, seeds=[5, 8], num_images_per_prompt=2, noise_level=s, **CALL)
        eps = normal([5, 8], (3, 8, 12), "enlarged")
        expected = F.interpolate((1 - s) * (2 * small - 1) + s * eps, (32, 48), mode="bicubic")
        for _, condition in seen:
            assert (condition.image - expected).abs().max() < 1e-5
            assert torch.equal(condition.extra[LEVEL], torch.full((2,), s))
        assert torch.equal(seen[0][0], normal([5, 8], (3, 32, 48), "latents"))  # and begins with noise


def test_under_noise_alone_the_picture_is_ignored():
    generator = model()
    one, other, clear = (
        generator.upscale(picture(seed=seed), seed=3, noise_level=s, **CALL).images
        for seed, s in ((0, 1.0), (1, 1.0), (1, 0.0))
    )
    assert torch.equal(one, other) and not torch.equal(other, clear)


@pytest.mark.parametrize(("scale", "passes"), [(None, 1), (2.5, 1), (6, 2)])
def test_any_scale_and_its_replay(scale, passes):
    """Beyond the network's factor in several passes; below it, the picture is reduced. Every picture replays to the bit."""
    generator, small = model(), picture()
    made = generator.upscale(small, scale=scale, seed=4, num_images_per_prompt=2, noise_level=0.2, **CALL)
    times = scale or 4
    assert made.images.shape == (2, 3, round(7 * times), round(9 * times))
    record = made.recipes[1].enlargement
    assert (record.passes, record.scale, record.noise) == (passes, times, 0.2)
    again = generator.replay(made.recipes[1], image=small, **CALL)
    assert torch.equal(again.images[0], made.images[1])
    alone = generator.upscale(small, scale=scale, seeds=[4], num_images_per_prompt=1, noise_level=0.2, **CALL)
    assert torch.equal(alone.images[0], made.images[0])  # as a server asks for one
    if passes == 2:  # the second pass enlarges what the first one made
        first = generator.upscale(small, seed=4, noise_level=0.2, **CALL).images
        last = generator.upscale(first[0], scale=4, seed=5, noise_level=0.2, **CALL).images
        reduced = F.interpolate(last, (42, 54), mode="bicubic", antialias=True).clamp(0, 1)
        assert (reduced[0] - made.images[1]).abs().max() < 1e-5


def test_pictures_of_any_size_are_made_whole_and_large_ones_in_windows():
    generator = model()
    whole = generator.upscale(picture(30, 8), seed=0, **CALL)
    assert whole.recipes[0].canvas.window == (120, 32)
    attending = model(backbone={**NETWORK["backbone"], "middle_attention": True})
    assert attending.upscale(picture(30, 8), seed=0, **CALL).recipes[0].canvas.window == (16, 16)
    cut = generator.upscale(picture(30, 8), seed=0, window=(64, 32), stride=(40, 32), **CALL)
    assert cut.images.shape == whole.images.shape and cut.recipes[0].canvas.window == (64, 32)
    assert cut.nfe == 3 * whole.nfe  # three windows


def test_what_cannot_be_enlarged_is_said():
    generator, small = model(noise=[0.1, 0.5]), picture()
    for asked, message in (
        ({"strength": 0.3}, "leave strength out, and see noise_level"),
        ({"noise_level": 0.7}, "from 0.1 to 0.5"),
        ({"scale": 17}, "from 1 to 16"),
        ({"height": 64}, "given by the picture itself"),
        ({"seeds": [1, 2], "num_images_per_prompt": 2, "scale": 8}, "give seed in the place of seeds"),
        ({"class_labels": [1, 2], "scale": 8}, "class_labels has 2; give one of them"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.upscale(small, **asked)
    with pytest.raises(ValueError, match="enlarges a picture, which it reads beside the noise"):
        generator(seed=0, **CALL)
    recipe = generator.upscale(small, seed=0, **CALL).recipes[0]
    assert recipe.enlargement.noise == 0.1  # the least that it knows
    with pytest.raises(ValueError, match="not in its recipe; give it as image"):
        generator.replay(recipe)
    with pytest.raises(ValueError, match="its sha256 differs"):
        generator.replay(recipe, image=picture(seed=1))
    plain = Generator(MODEL, build({"type": "uvit", "size": 16, "patch": 4, "channels": 3, "dim": 16, "depth": 2, "heads": 2}))
    with pytest.raises(ValueError, match="was not trained to enlarge"):
        plain.upscale(small, noise_level=0.2)


def test_a_call_as_plain_data_and_as_a_command():
    call = Call({"image": "a.png", "noise_level": 0.2, "scale": 4}, "upscale", model="upscale")
    assert as_arguments(call) == [
        *("upscale", "a.png", "--noise-level=0.2", "--scale=4", "--model=upscale", "--output=picture.png")
    ]


def test_a_cascade_of_two_models(tmp_path, capsys):
    """What one draws the other enlarges, in Python and by `--low`, where the small picture is kept with its own recipe."""
    upsampler = model()
    drawing = {**MODEL, "classes": ["cat", "dog"], "sample_size": 8}
    network = {"type": "uvit", "size": 8, "patch": 4, "channels": 3, "dim": 16, "depth": 2, "heads": 2, "num_classes": 2}
    low = Generator(drawing, randomise(build(network), 2), device="cpu", dtype="float32")
    small = low(class_labels="dog", seed=5, progress=False).images[0]
    expected = upsampler.upscale(small, seed=5, **CALL).images
    assert torch.equal(upsampler.upscale("dog", low=low, seed=5, **CALL).images, expected)

    for name, generator in (("low", low), ("up", upsampler)):
        generator.save_pretrained(tmp_path / name)
    files = [tmp_path / name for name in ("dog.png", "dog.low.png")]
    asked = [
        "upscale",
        "dog",
        "--low",
        tmp_path / "low",
        "--model",
        tmp_path / "up",
        "--seed",
        5,
        "--output",
        files[0],
        "--quiet",
    ]
    assert main([str(word) for word in (*asked, "--device", "cpu", "--dtype", "float32")]) == 0
    made = [Image.open(file) for file in files]
    assert list(made[1].getdata()) == list(small.getdata())
    pixels = (expected[0] * 255).round().to(torch.uint8).permute(1, 2, 0)
    assert torch.equal(torch.from_numpy(np.array(made[0])), pixels)
    assert read_recipe(files[1]).class_label == 1 and read_recipe(files[0]).enlargement.scale == 4

    capsys.readouterr()
    assert main(["upscale", str(files[1]), "--low", "fast", "--model", "upscale"]) == 2
    assert "is a file; leave --low out to enlarge that" in capsys.readouterr().err
