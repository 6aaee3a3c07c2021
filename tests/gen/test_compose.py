"""Compositions and regions of a `Generator` and on the command line: what they compute, recipes, replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gen.tasks.lora_composition.task
from gen.adapters import Adapter, write_adapter
from gen.generator import Generator
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe
from tests.gen.test_adapters_generator import DENOISER, lora

WEIGHTS = {"one": 0.8, "two": -0.5, "three": 1.0}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    layers = {"one": lora(0, *DENOISER), "two": lora(1, *DENOISER), "three": lora(2, *DENOISER[:1])}
    return {n: write_adapter(Adapter(n, made), folder / f"{n}.safetensors", "kohya") for n, made in layers.items()}


@pytest.fixture(scope="module")
def generator(tiny_model, files) -> Generator:
    made = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    for name, weight in WEIGHTS.items():
        made.load_adapter(files[name], weight=weight)
    return made


def make(generator: Generator, weights=None, **call):
    generator.set_adapters(WEIGHTS if weights is None else weights)
    call = {"seed": 1, "num_inference_steps": 1, "output_type": "latent", "progress": False, "sampler": "euler"} | call
    return generator("a red heart", **call)


def only(generator: Generator, name: str, **call) -> torch.Tensor:
    return make(generator, {name: WEIGHTS[name]}, **call).images


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_one_euler_step_of_a_composite_is_the_mean_of_the_steps(generator):
    """A step of Euler's is linear in the prediction, and so is guidance."""
    made = make(generator, composition="composite")
    close(made.images, torch.stack([only(generator, name) for name in WEIGHTS]).mean(0))
    assert made.recipes[0].composition == "composite" and made.nfe == 3 * make(generator).nfe
    plain = make(generator)
    assert torch.equal(make(generator, composition="merge").images, plain.images) and plain.recipes[0].composition == ""
    assert (made.images - plain.images).abs().max() > 0.01
    assert torch.equal(make(generator, {"one": 0.8}, composition="composite").images, only(generator, "one"))


def test_a_switch_takes_turns(generator):
    two = {"num_inference_steps": 2}
    made = make(generator, composition="switch", composition_options={"every": 2}, **two)
    assert torch.equal(made.images, only(generator, "one", **two)) and made.recipes[0].composition_options == {"every": 2}
    seen = {}
    for every, weights in ((1, WEIGHTS), (9, {"one": 0.8})):
        steps = seen[every] = []
        make(generator, weights, composition="switch", composition_options={"every": every}, num_inference_steps=3,
             callback_on_step_end=lambda g, i, t, given, steps=steps: steps.append(given["latents"]))  # fmt: skip
    assert torch.equal(seen[1][0], seen[9][0]) and not torch.allclose(seen[1][1], seen[9][1], atol=1e-3)


def test_recipes_of_compositions_replay(generator, monkeypatch):
    """What was measured for a picture, the order of its adapters, is in its recipe and not measured again."""
    made = make(generator, composition="cached", num_inference_steps=6, output_type="pil", cache="reuse")
    [recipe] = made.recipes
    assert sorted(recipe.composition_options["order"]) == [0, 1, 2] and Recipe.from_json(recipe.to_json()) == recipe
    monkeypatch.setattr(gen.tasks.lora_composition.task, "measured_order", lambda *_: pytest.fail("measured again"))
    generator.set_adapters({"two": 1.0})
    again = generator.replay(recipe, progress=False)
    assert again.images[0].tobytes() == made.images[0].tobytes() and again.recipes == [recipe]
    other = tuple(recipe.composition_options["order"][::-1])
    changed = make(generator, composition="cached", composition_options={"order": other}, num_inference_steps=6)
    assert changed.recipes[0].composition_options["order"] == other


def test_the_order_is_the_same_for_every_prompt_and_follows_frequency(generator):
    levels = tuple(generator.denoiser.path(t) for t in (0.9, 0.5, 0.1))
    order = gen.tasks.lora_composition.task.measured_order(generator, WEIGHTS, levels, 32, 32)
    twisted = {"three": 1.0, "two": -0.5, "one": 0.8}
    names, back = list(WEIGHTS), list(twisted)
    assert [names[i] for i in order] == [
        back[i] for i in gen.tasks.lora_composition.task.measured_order(generator, twisted, levels, 32, 32)
    ]


def test_regions(generator, tmp_path):
    white, left = np.full((32, 32), 255, np.uint8), np.zeros((32, 32), np.uint8)
    left[:, :16] = 255
    masked = make(generator, {"one": 0.8, "two": -0.5}, regions={"one": white})
    assert torch.equal(masked.images, make(generator, {"one": 0.8, "two": -0.5}).images)
    made = make(generator, {"one": 0.8}, regions={"one": left})
    half = made.images.shape[-1] // 2
    close(made.images[..., :half], only(generator, "one")[..., :half])
    close(made.images[..., half:], make(generator, {}).images[..., half:])
    Image.fromarray(left).save(tmp_path / "left.png")
    late = {"composition_options": {"start": 2.0}, "num_inference_steps": 4, "output_type": "pil"}
    made = make(generator, regions={"one": tmp_path / "left.png", "two": 255 - left}, **late)
    [recipe] = made.recipes
    assert recipe.composition == "regional" and recipe.composition_options == {"start": 2.0} and len(recipe.regions) == 2
    again = generator.replay(recipe, progress=False, regions={"one": left, "two": 255 - left})
    assert again.images[0].tobytes() == made.images[0].tobytes() and again.recipes == [recipe]
    for given, why in (
        (None, "regions for 'one', 'two'; give their masks again"),
        ({"one": left, "two": left}, "The mask of 'two' is not the one"),
    ):
        with pytest.raises(ValueError, match=why):
            generator.replay(recipe, progress=False, regions=given)


def test_windows_of_a_canvas_are_composed_each(generator):
    """One step of Euler's on overlapping windows is linear too. A mask of regions is for one picture."""

    def panorama(weights, **call):
        generator.set_adapters(weights)
        call |= {"seed": 1, "num_inference_steps": 1, "output_type": "latent", "progress": False, "sampler": "euler"}
        return generator.panorama("a red heart", width=48, **call).images

    two = {name: WEIGHTS[name] for name in ("one", "two")}
    mean = (panorama({"one": 0.8}) + panorama({"two": -0.5})) / 2
    close(panorama(two, composition="composite"), mean)
    assert panorama(two, composition="cached").isfinite().all()
    with pytest.raises(ValueError, match="for one picture, not for windows"):
        panorama(two, regions={"one": np.zeros((32, 48), np.uint8)})


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"composition": "swich"}, "did you mean 'switch'"),
        ({"composition": "switch", "composition_options": {"all": 2}}, "has no option 'all': it takes every"),
        ({"composition": "cached", "composition_options": {"order": (0, 0, 1)}}, "positions 0 to 2"),
        ({"composition": "cached", "composition_options": {"shallow": 2}}, "this network has 3; give a smaller shallow"),
        ({"composition_options": {"every": 2}}, "'merge' has no option 'every': it takes none"),
        ({"regions": {"four": np.zeros((4, 4), np.uint8)}}, "names the adapter 'four', which is not in force"),
        ({"regions": {"one": np.zeros((4, 4), np.uint8)}, "composition": "switch"}, "leave one of them out"),
        ({"composition": "regional"}, "a dict of adapter names and masks"),
        ({"regions": {"one": "nothing.png"}}, "the mask of 'one': nothing.png cannot be opened"),
        ({"regions": {"one": np.zeros((4, 4), np.uint8)}, "composition_options": {"stat": 1.0}}, "regional takes start"),
    ],
)
def test_wrong_requests(generator, call, why):
    with pytest.raises(ValueError, match=why):
        make(generator, **call)


def test_the_command_line(fewstep, image, files, tiny_model):
    loras = [part for name in ("one", "two") for part in ("--lora", files[name])]
    code, out, err = image("a cat", "--seed", 1, *loras, "--compose", "switch", "--compose-option", "every=1", "--steps", 2)
    recipe = read_recipe(out.strip())
    assert code == 0 and (recipe.composition, recipe.composition_options) == ("switch", {"every": 1})
    assert "switch" in fewstep("info", "a-cat-1.png")[1]
    replay = ["replay", "a-cat-1.png", "--model", tiny_model, *loras]
    assert fewstep(*replay)[2].endswith("Identical to the last byte.\n")
    Image.new("L", (32, 32), 255).save("all.png")
    code, out, _ = image("a dog", "--seed", 1, "--steps", 1, *loras, "--region", "one=all.png")
    assert code == 0 and list(read_recipe(out.strip()).regions) == ["one"]
    assert fewstep("replay", out.strip(), "--model", tiny_model, *loras, "--region", "one=all.png")[0] == 0
    code, _, err = fewstep("replay", out.strip(), "--model", tiny_model, *loras)
    assert code == 2 and "again as --region." in err
    for wrong in ("one", "=all.png", "one="):
        code, _, err = image("a dog", *loras, "--region", wrong)
        assert code == 2 and "write each LoRA's name once" in err
