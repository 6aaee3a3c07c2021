"""Concept data: captions, class pictures, masks, latents, and folders that cannot be learned from."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from customization.base.objective import literal
from customization.data import make_data
from distill.data.errors import DataError
from distill.types import Batch, Draws
from gen.generator import Generator
from gen.pipeline.png import read_recipe, save_image
from tests.customization.kit import objective, pictures


@pytest.fixture(scope="module")
def generator(tiny_model):
    return Generator.from_pretrained(tiny_model, "cpu", "float32")


def data(generator, images, batch_size=2, output=None, **settings):
    return make_data({"type": "concept", "images": str(images), **settings}, 3, batch_size, generator, output)


def test_captions_prompts_and_templates(generator, tmp_path):
    images = pictures(tmp_path / "images", captions=True)
    own = {f"a red cat {i}" for i in range(3)}
    assert set(data(generator, images).batch(range(3)).captions) == own
    assert set(data(generator, images, prompt="a <new> dog").batch(range(3)).captions) == {"a <new> dog"}
    assert set(data(generator, images, prompt="{}, <x> style").batch(range(3)).captions) == {f"{c}, <x> style" for c in own}
    dropped = data(generator, images, prompt="x", drop_caption=0.5).batch(range(200)).captions
    assert 60 < dropped.count("") < 140
    rows = [{"file_name": f"{i}.png", "text": f"row {i}"} for i in range(3)]
    (images / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert set(data(generator, images).batch(range(3)).captions) == {"row 0", "row 1", "row 2"}


def test_samples_depend_on_their_numbers_alone_and_latents_are_the_autoencoders(generator, tmp_path):
    images = pictures(tmp_path / "images")
    settings = {"prompt": "x", "flip": 0.5, "variants": 3}
    one, two = data(generator, images, **settings), data(generator, images, latents=str(tmp_path / "kept"), **settings)
    whole = one.batch(range(6)).latents
    assert torch.equal(whole[4:], two.batch([4, 5]).latents)
    again = data(generator, images, latents=str(tmp_path / "kept"), **settings)
    again.latents._autoencoder = None  # everything is in the folder
    assert torch.equal(again.batch([4, 5]).latents, whole[4:])
    plain = data(generator, images, prompt="x")
    index = plain.taught.choose([0])[0][0]
    wanted = generator.autoencoder.encode(plain.taught.variant(index, 0)[1][None])
    assert_close(plain.batch([0]).latents, wanted, rtol=1e-2, atol=1e-2)  # kept as bfloat16


def test_class_pictures_of_another_prompt_or_model_are_not_taken(generator, tmp_path):
    """A folder's name says nothing of what is in it; pictures without a recipe are the user's own."""
    images, folder = pictures(tmp_path / "images"), tmp_path / "class"
    prior = {"prompt": "a cat", "folder": str(folder), "count": 2, "num_inference_steps": 1}
    data(generator, images, prompt="a <new> cat", prior=prior)
    with pytest.raises(ValueError, match="was made of 'a cat', and the prompt of the class is 'a dog'; delete the folder"):
        data(generator, images, prompt="a <new> dog", prior={**prior, "prompt": "a dog"})
    known = dict(generator.weights)
    generator.weights = {"denoiser": "ab" * 32}
    recipe = read_recipe(folder / "00000.png")
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": {"denoiser": "cd" * 32}})})
    save_image(Image.new("RGB", (8, 8)), folder / "00001.png", recipe, overwrite=True)
    with pytest.raises(ValueError, match="was made by another model"):
        data(generator, images, prompt="a <new> cat", prior=prior)
    generator.weights = known
    own = pictures(tmp_path / "own", count=2)
    data(generator, images, prompt="a <new> cat", prior={**prior, "folder": str(own)})


def equal(one: Image.Image, two: Image.Image) -> bool:
    """To the bit: on a CPU a picture does not depend on its batch."""
    return np.array_equal(np.asarray(one), np.asarray(two))


def test_class_pictures_are_made_once_and_take_every_other_place(generator, tmp_path):
    images, output = pictures(tmp_path / "images", 2), tmp_path / "run"
    prior = {"prompt": "a cat", "count": 3, "num_inference_steps": 2}
    made = data(generator, images, prompt="a <new> cat", prior=prior, output=output)
    files = sorted(path.name for path in (output / "class").iterdir())
    assert files == ["00000.png", "00001.png", "00002.png"]
    wanted = generator("a cat", seed=1, num_inference_steps=2, progress=False).images[0]
    assert equal(Image.open(output / "class" / "00001.png"), wanted)
    batch = made.batch(range(6))
    assert batch.extra["prior"].tolist() == [False, True] * 3
    assert batch.captions == ["a <new> cat", "a cat"] * 3
    (output / "class" / "00001.png").unlink()
    before = (output / "class" / "00000.png").stat().st_mtime_ns
    data(generator, images, prompt="x", prior=prior, output=output)
    assert (output / "class" / "00001.png").exists() and (output / "class" / "00000.png").stat().st_mtime_ns == before


def test_pictures_of_other_things_are_kept_each_by_its_own_prompt(generator, tmp_path):
    images, output = pictures(tmp_path / "images", 1), tmp_path / "run"
    prior = {"prompt": ["a cat", "a red moon"], "count": 3, "num_inference_steps": 1}
    made = data(generator, images, prompt="a <new> cat", prior=prior, output=output)
    assert [(output / "class" / f"0000{i}.txt").read_text() for i in range(3)] == ["a cat", "a red moon", "a cat"]
    wanted = generator("a red moon", seed=1, num_inference_steps=1, progress=False).images[0]
    assert equal(Image.open(output / "class" / "00001.png"), wanted)
    batch = made.batch(range(60))
    assert batch.captions[::2] == ["a <new> cat"] * 30 and set(batch.captions[1::2]) == {"a cat", "a red moon"}
    moon = made._seen(made.prior, made.prior_latents, 1, 0)
    assert all(torch.equal(x, moon) for x, c in zip(batch.latents, batch.captions, strict=True) if c == "a red moon")
    (output / "class" / "00002.txt").unlink()
    with pytest.raises(DataError, match=r"00002.png has no caption; write NAME.txt beside it"):
        data(generator, images, prompt="x", prior=prior, output=output)


def losses(made, batch):
    with torch.no_grad():
        return made.loss(None, {"adapter": made.roles["adapter"].network}, batch, Draws(0, batch.index), 0)


def test_the_loss_is_that_of_both_kinds_and_inside_masks_alone(tiny_model):
    """By hand, from the model's own predictions, in the mean of the two kinds and under a mask."""
    made = objective(tiny_model, prior_weight=0.5, loss="flow")
    random = torch.Generator().manual_seed(0)
    latents, mask = torch.randn(4, 4, 8, 8, generator=random), torch.zeros(4, 1, 8, 8)
    mask[:, :, :3] = 1
    prior = torch.tensor([False, True, False, True])
    batch = Batch(index=torch.arange(4), latents=latents, captions=["a cat"] * 4, extra={"mask": mask, "prior": prior})
    draws = Draws(0, batch.index)
    level = made.levels(draws, torch.device("cpu"), 0)
    eps = draws.normal("eps", (4, 8, 8))
    with torch.no_grad():
        prediction = made.predict(level.mix(latents, eps), level, made.condition(batch, latents))
    # v = eps - x0, so an error of x0 is one of v times 1 / sigma
    error = (prediction.x0 - latents) / level.sigma.clamp(min=0.05).reshape(-1, 1, 1, 1)
    wrong = error.square()[:, :, :3].flatten(1).mean(1)
    loss, logged = losses(made, batch)
    assert_close(loss, (wrong * torch.tensor([1, 0.5, 1, 0.5])).mean(), rtol=1e-4, atol=1e-5)
    assert_close(logged["loss_instance"], wrong[[0, 2]].mean(), rtol=1e-4, atol=1e-5)
    outside = latents.clone()
    outside[:, :, 5:] += 1
    prediction_sees = losses(made, Batch(**{**vars(batch), "latents": outside}))[0]
    assert (prediction_sees - loss).abs() > 0  # the input is the whole picture, the error is not


def test_masks_are_cut_as_their_pictures_are(generator, tmp_path):
    images = pictures(tmp_path / "images", 2, alpha=True)
    made = data(generator, images, prompt="x", masks="alpha", flip=1.0, variants=2)
    assert_close(made.mask(0, 0)[0, :, :14], torch.ones(32, 14)) and made.mask(0, 0)[0, :, 18:].max() < 1e-3
    assert_close(made.mask(0, 1), made.mask(0, 0).flip(2))
    assert_close(made.taught.variant(0, 1)[1], made.taught.variant(0, 0)[1].flip(2))
    extra = made.batch(range(4)).extra["mask"]
    assert extra.shape == (4, 1, 8, 8) and set(extra.mean((1, 2, 3)).tolist()) == {0.5}
    (tmp_path / "masks").mkdir()
    for i in range(2):
        Image.fromarray(np.pad(np.full((32, 8), 255, np.uint8), ((0, 0), (0, 24)))).save(tmp_path / "masks" / f"{i}.png")
    quarter = data(generator, images, prompt="x", masks=str(tmp_path / "masks")).batch([0]).extra["mask"]
    assert_close(quarter[0, 0, 0], torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]), rtol=0, atol=0.05)


def test_one_picture_is_enough(generator, tmp_path):
    batch = data(generator, pictures(tmp_path / "images", 1), prompt="x", batch_size=4).batch(range(4))
    assert batch.latents.shape == (4, 4, 8, 8) and torch.equal(batch.latents[0], batch.latents[3])


def spoil(kind, tmp_path):
    """(settings, the reason) of a folder that cannot be learned from."""
    images = pictures(tmp_path / "images", 0 if kind == "empty" else 2, captions=kind == "caption")
    settings = {} if kind in ("captions", "caption") else {"prompt": "x"}
    if kind == "caption":
        (images / "1.txt").unlink()
    if kind == "damaged":
        (images / "1.png").write_bytes(b"\x89PNG nothing")
    if kind == "twice":
        settings = {}
        (images / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}\n' * 2)
    if kind in ("mask missing", "mask shape", "mask black"):
        masks = tmp_path / "masks"
        masks.mkdir()
        settings["masks"] = str(masks)
        for i in range(1 if kind == "mask missing" else 2):
            value = 0 if kind == "mask black" else 255
            Image.new("L", (64, 32) if kind == "mask shape" else (32, 32), value).save(masks / f"{i}.png")
    if kind == "mask inside":
        settings["masks"] = str(images)
    if kind == "no alpha":
        settings["masks"] = "alpha"
    return images, settings


REASONS = {
    "empty": "gives no samples",
    "captions": r"2 of 2 pictures have no caption \(0.png, 1.png\)",
    "caption": r"1 of 2 pictures have no caption \(1.png\)",
    "damaged": "1.png: is not a picture",
    "twice": "an earlier line names",
    "mask missing": r"1.png is missing.*every picture needs one",
    "mask shape": "64x32 and its picture 32x32",
    "mask black": "black everywhere",
    "mask inside": "move it out",
    "no alpha": "has no alpha channel",
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_cannot_be_learned_from_is_said_in_a_sentence(kind, generator, tmp_path):
    images, settings = spoil(kind, tmp_path)
    with pytest.raises(ValueError, match=REASONS[kind]) as error:
        data(generator, images, **settings)
    assert "\n" not in str(error.value)


def test_captions_with_brackets_are_text_and_no_weights(tiny_model):
    made = objective(tiny_model)
    [read] = made.read(["a (red) cat"])
    tokens, mask = made.generator.text_encoder.encode(["a (red) cat"])
    assert torch.equal(read.tokens, tokens) and torch.equal(read.mask, mask)
    assert literal("a\\(b") == "a\\\\\\(b"
