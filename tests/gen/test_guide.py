"""Guides and restorations through `Generator` and the command line: against the samplers' own, and what replays refuse."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from gen.cli.app import ENERGIES, main
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe
from gen.tasks.energies import ENERGIES as OURS
from gen.tasks.energies import EnergyInfo, energy_info, get_energy
from gen.tasks.energies.simple import Brightness, Colour, CompositionEnergy
from gen.tasks.restore.task import make_restoration
from samplers.denoiser import Condition, Context
from samplers.guidance import TFG, ClassifierFree, Posterior, Recurrent
from samplers.guidance.operators import Composed, downsample
from samplers.noise import normal, seeded_noise
from samplers.path import RectifiedFlow
from samplers.registry import get_grid, get_solver
from samplers.sample import sample

CALL = {"seed": 7, "num_inference_steps": 4, "progress": False}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def tensor(image):
    return torch.from_numpy(np.array(image)).float().permute(2, 0, 1)[None] / 255


def dark(images, condition):
    """A user's own: no brightness."""
    assert images.shape[1] == 3
    return -20 * images.mean((1, 2, 3)) ** 2


def latents(tiny, make, times=1, scale=3.0):
    """A run by hand with the parts below the Generator; make(field, levels, noise) goes around guidance."""
    levels, eps = get_grid("uniform", RectifiedFlow(), 4), normal([7], (4, 8, 8), "latents")
    tokens, mask = tiny.text_encoder.encode(["a cat"])
    with torch.no_grad():
        field = make(ClassifierFree(tiny.denoiser, scale), levels, seeded_noise([7], eps))
        solver, condition = Recurrent(get_solver("dpmpp_2m"), times), Condition(tokens=tokens, mask=mask)
        return sample(field, solver, eps, levels, condition, noise=seeded_noise([7], eps), context=Context())


def test_a_guide_is_the_samplers_own_through_the_decoder(tiny):
    def energy(z, condition):
        return dark(tiny.autoencoder.decode(z / tiny.config.latent_scale) / 2 + 0.5, condition)

    def make(field, levels, noise):
        return TFG(field, energy, levels, rho=0.3, mu=0.2, gamma=0.1, samples=2, noise=noise)

    options = {"mu": 0.2, "gamma": 0.1, "samples": 2, "recurrence": 2}
    made = tiny("a cat", guide=dark, guide_strength=0.3, guide_options=options, output_type="latent", **CALL)
    torch.testing.assert_close(made.images, latents(tiny, make, times=2), rtol=0, atol=3e-5)
    assert made.nfe == 16  # 4 steps, two branches, twice
    plain = tiny("a cat", output_type="latent", **CALL).images
    assert (made.images - plain).abs().max() > 1e-3
    assert torch.equal(tiny("a cat", guide=dark, guide_strength=0.0, output_type="latent", **CALL).images, plain)


def test_an_energy_of_latents_sees_them(tiny):
    seen = []

    def energy(z, condition):
        seen.append((tuple(z.shape), condition.tokens is not None))
        return -z.square().sum((1, 2, 3))

    energy.space = "latents"
    tiny("a cat", guide=energy, guide_method="mpgd", **CALL)
    assert set(seen) == {((1, 4, 8, 8), True)}


def test_a_guided_picture_does_not_depend_on_its_batch(tiny):
    options = {"target": 0.9, "gamma": 0.2, "samples": 2}
    call = {"guide": "brightness", "guide_strength": 0.05, "guide_options": options, "output_type": "pt", "progress": False}
    both = tiny(["a cat", "a red heart"], seeds=[3, 9], num_inference_steps=3, **call).images
    one = tiny("a red heart", seed=9, num_inference_steps=3, **call).images
    torch.testing.assert_close(both[1:], one, rtol=0, atol=2e-5)


def test_recipes_keep_registered_energies_and_never_code(tiny):
    named = tiny("a cat", guide="colour", guide_options={"colour": "teal", "mu": 0.0}, guide_strength=0.02, **CALL)
    record = named.recipes[0].guide
    assert (record.energy, record.method, record.options) == ("colour", "tfg", {"colour": "teal", "mu": 0.0})
    recipe = Recipe.from_json(named.recipes[0].to_json())
    assert tiny.replay(recipe, progress=False).images[0].tobytes() == named.images[0].tobytes()
    with pytest.raises(ValueError, match="leave guide out"):
        tiny.replay(recipe, guide=dark)

    own = tiny("a cat", guide=dark, guide_options={"iterations": 2}, **CALL)
    text = own.recipes[0].to_json()
    assert "dark" not in text and json.loads(text)["guide"]["energy"] == "" and "energy of the guide" in text
    with pytest.raises(ValueError, match=r"give it again as guide \(--guide FILE.py:FUNCTION\)"):
        tiny.replay(own.recipes[0])
    assert tiny.replay(own.recipes[0], guide=dark, progress=False).images[0].tobytes() == own.images[0].tobytes()
    plain = tiny("a cat", **CALL).recipes[0]
    with pytest.raises(ValueError, match="without a guide"):
        tiny.replay(plain, guide=dark)


@pytest.mark.parametrize("name", ["os.system", "energy.py:dark", "clip"])
def test_a_recipe_from_outside_names_nothing_but_the_table(tiny, name):
    """Neither code nor a model to fetch, whatever it says."""
    recipe = tiny("a cat", guide="brightness", **CALL).recipes[0]
    forged = recipe.guide.model_copy(update={"energy": name, "options": {"model": "someone/clip"}})
    forged = recipe.model_copy(update={"guide": forged})
    with pytest.raises(ValueError, match=r"Unknown energy|which no recipe may name"):
        tiny.replay(forged)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"guide": "colur"}, "did you mean 'colour'"),
        ({"guide": "colour"}, "needs colour"),
        ({"guide": "colour", "guide_options": {"colour": "reddish"}}, "Unknown colour 'reddish'"),
        ({"guide": "brightness", "guide_options": {"targt": 1}}, "no 'targt': tfg takes .*; brightness takes target"),
        ({"guide": "brightness", "guide_method": "gdp"}, "Unknown guide method 'gdp'"),
        ({"guide": "brightness", "guide_strength": -1}, "guide_strength is -1"),
        ({"guide": "brightness", "guide_options": {"target": 2.0}}, "target is 2.0"),
        ({"guide": 3}, "an energy's name, or a function"),
        ({"guide_strength": 1.0}, "without a guide"),
        ({"guide": lambda images, c: images.mean()}, "one log-density per image"),
    ],
)
def test_what_a_guide_cannot_be(tiny, call, says):
    with pytest.raises(ValueError, match=says):
        tiny("a cat", **call, **CALL)


def test_simple_energies_are_highest_where_they_should_be():
    flat = torch.full((1, 3, 24, 24), 0.7)
    none = Condition()
    assert Brightness(0.7)(flat, none).abs() < 1e-8
    assert Brightness(0.5, 0.1)(flat, none).item() == pytest.approx(-2, abs=1e-4)  # two deviations
    teal = torch.tensor([0, 128, 128]).reshape(1, 3, 1, 1) / 255 * torch.ones(1, 3, 24, 24)
    assert Colour("teal", match="rgb")(teal, none).abs() < 1e-8 and Colour("#008080").target() == Colour("teal").target()
    assert Colour("red", 0.1, match="rgb")(teal, none).item() == pytest.approx(-50 * (1 + 2 * (128 / 255) ** 2), rel=1e-5)
    spot = torch.ones(1, 3, 24, 24)
    spot[..., 4:8, 16:20] = 0.0  # centre at x = 18 / 24, y = 6 / 24
    assert CompositionEnergy(0.75, 0.25)(spot, none).item() > -0.02
    assert CompositionEnergy(0.25, 0.25)(spot, none).item() == pytest.approx(-0.5 * (0.5 / 0.03) ** 2, rel=0.05)
    blank = torch.ones(1, 3, 24, 24, requires_grad=True)
    assert torch.autograd.grad(CompositionEnergy()(blank, none).sum(), blank)[0].isfinite().all()


def test_the_table_is_closed():
    assert set(OURS) == {"brightness", "colour", "composition", "clip", "aesthetic"} and OURS["clip"].external
    with pytest.raises(ValueError, match="no option 'bright'"):
        get_energy(energy_info("brightness"), bright=1)


def test_a_default_strength_is_the_methods_times_the_energys_gain():
    from gen.tasks.energy_guidance.task import STRENGTHS, make_guide

    label = EnergyInfo("label", *ENERGIES["label"])
    for method in STRENGTHS:
        assert make_guide("label", None, method, None, {"label": label}).guide.strength == 8 * STRENGTHS[method]
        assert make_guide(dark, None, method, None).guide.strength == STRENGTHS[method]
    assert make_guide("label", 0.25, "dps", None, {"label": label}).guide.strength == 0.25


def test_the_evaluation_network_is_an_energy_of_its_labels():
    from distill.networks.evaluator.energy import LabelEnergy

    class Network:
        labels = ("cat", "red heart")
        log_scale = torch.tensor(2.0)

        def to(self, device):
            return self

        def classify(self, images):
            assert images.min() >= -1 and images.max() > 0.9
            return torch.stack([images.mean((1, 2, 3)), -images.mean((1, 2, 3))], 1)

    images = torch.rand(2, 3, 8, 8) * 0.01 + 0.99
    logits = Network().classify(images * 2 - 1) * torch.tensor(2.0).exp()
    energy = LabelEnergy(network=Network()).for_prompts(["a cat", "A red heart"])
    expected = logits.softmax(1).log()[range(2), [0, 1]]
    torch.testing.assert_close(energy(images, Condition()), expected)
    fixed = LabelEnergy("cat", 3.0, Network()).for_prompts(["x", "y"])
    torch.testing.assert_close(fixed(images, Condition()), 3 * logits.softmax(1).log()[:, 0])
    with pytest.raises(ValueError, match="knows no 'a dog'"):
        LabelEnergy(network=Network()).for_prompts(["a dog"])(images[:1], Condition())
    assert isinstance(get_energy(EnergyInfo("label", *ENERGIES["label"]), label="cat"), LabelEnergy)


def test_a_restoration_is_the_samplers_own_through_the_decoder(tiny, picture):
    small = picture.resize((8, 8))
    operator = Composed(downsample(4), lambda z: tiny.autoencoder.decode(z / tiny.config.latent_scale))

    def make(field, levels, noise):
        return Posterior(field, operator, tensor(small) * 2 - 1, noise_std=0.1, kind="projection", iterations=3)

    made = tiny.restore(small, "superres", "a cat", factor=4, noise=0.05, iterations=3, output_type="latent", **CALL)
    torch.testing.assert_close(made.images, latents(tiny, make, scale=2.0), rtol=0, atol=2e-4)  # not the model's own 3
    assert (made.images - latents(tiny, make)).abs().max() > 1e-3 and made.recipes[0].guidance_scale == 2.0
    assert tiny.restore(small, "superres", "a cat", guidance_scale=3.0, **CALL).recipes[0].guidance_scale == 3.0


def test_pictures_explain_what_was_measured(pixel_model, picture):
    """A model of pixels, all tasks: the operator of the result is the measurement, within its noise."""
    from gen.generator import Generator

    generator = Generator.from_pretrained(pixel_model, device="cpu", dtype="float32")
    small, eight = picture.resize((4, 4)), picture.resize((8, 8))
    mask = Image.fromarray(np.pad(np.full((4, 8), 255, np.uint8), ((0, 4), (0, 0))))
    for task, image, options in (
        ("superres", small, {"factor": 2}),
        ("colorize", eight, {}),
        ("deblur", eight, {"radius": 0.7, "simulate": True}),
        ("inpaint", eight, {"mask": mask}),
    ):
        made = generator.restore(
            image, task, kind="projection", noise=0.0, output_type="latent", iterations=80, **options, **CALL
        )
        plain = {name: value for name, value in options.items() if name != "mask"}
        whole = make_restoration(task, image, options.get("mask"), plain, 8, 8)
        assert (whole.operator(made.images) - whole.measurement).abs().max() < 0.02, task
        recipe = Recipe.from_json(made.recipes[0].to_json())
        given = {"image": image, **({"mask": mask} if task == "inpaint" else {})}
        assert torch.equal(generator.replay(recipe, "latent", False, **given).images, made.images)
        with pytest.raises(ValueError, match="not the one"):
            generator.replay(recipe, "latent", False, **{**given, "image": eight.rotate(90)})
        with pytest.raises(ValueError, match="give it as image"):
            generator.replay(recipe)
    kept = generator.restore(eight, "inpaint", mask=mask, output_type="pt", **CALL).images
    assert torch.equal(kept[..., 4:, :], tensor(eight)[..., 4:, :])
    assert (kept[..., :4, :] - tensor(eight)[..., :4, :]).abs().max() > 0.05


@pytest.mark.parametrize(
    ("task", "options", "says"),
    [
        ("upscale", {}, "Unknown task 'upscale'"),
        ("inpaint", {}, "needs a mask"),
        ("deblur", {"factor": 2}, "no option 'factor'"),
        ("superres", {"factor": 1}, "factor is 1"),
        ("superres", {"factor": 5, "height": 32, "width": 32}, "not divisible by the factor 5"),
        ("deblur", {"radius": -1.0}, "radius is -1.0"),
        ("colorize", {"kind": "magic"}, "exact, pigdm or projection"),
        ("colorize", {"strength": 0.5}, "takes no strength"),
    ],
)
def test_what_a_restoration_cannot_be(tiny, picture, task, options, says):
    with pytest.raises(ValueError, match=says):
        tiny.restore(picture, task, "a cat", **options, **CALL)
    if task == "colorize" and "kind" in options:
        with pytest.raises(ValueError, match="takes no mask"):
            tiny.restore(picture, task, mask=picture.convert("L"), **CALL)


ENERGY = "def dark(images, condition):\n    return -20 * images.mean((1, 2, 3)) ** 2\n"


def test_the_command_line_guides_restores_and_replays(tiny_model, picture, tmp_path, capsys):
    energy = tmp_path / "energy.py"
    energy.write_text(ENERGY)
    model = ["--model", str(tiny_model), "--device", "cpu", "--dtype", "float32", "-q"]
    guided = tmp_path / "guided.png"
    own = ["--guide", f"{energy}:dark", "--guide-strength", "0.1", "--guide-option", "mu=0"]
    assert main(["image", "a cat", "--seed", "7", "--steps", "3", *own, "-o", str(guided), *model]) == 0
    recipe = read_recipe(guided)
    assert recipe.guide.options == {"mu": 0} and "energy.py" not in recipe.to_json()
    replay = ["replay", str(guided), "--model", str(tiny_model), "-q"]
    assert main(replay) == 2
    assert "--guide FILE.py:FUNCTION" in capsys.readouterr().err
    assert main([*replay, "--guide", f"{energy}:dark"]) == 0

    photo, sheet, out = tmp_path / "photo.png", tmp_path / "sheet.png", tmp_path / "restored.png"
    picture.save(photo)
    asked = ["restore", str(photo), "a cat", "--task", "deblur", "--option", "iterations=2", "--simulate", "--seed", "1"]
    assert main([*asked, "--steps", "2", "--grid", str(sheet), "-o", str(out), *model]) == 0
    assert Image.open(out).size == (32, 32) and Image.open(sheet).width > 64
    assert read_recipe(out).restore.options == {"iterations": 2, "simulate": True}
    assert main(["replay", str(out), "--model", str(tiny_model), "--image", str(photo), "-q"]) == 0


@pytest.mark.parametrize(
    ("guide", "says"),
    [
        ("{}:light", "no function 'light'; it has dark"),
        ("{}.missing:dark", "is not a file"),
        ("{broken}:dark", "failed: NameError"),
        ("labels", "did you mean 'label'"),
    ],
)
def test_a_guide_typed_wrong_is_one_sentence(tiny_model, tmp_path, capsys, guide, says):
    (tmp_path / "energy.py").write_text(ENERGY)
    (tmp_path / "broken.py").write_text("x = y\n")
    typed = guide.format(tmp_path / "energy.py", broken=tmp_path / "broken.py")
    assert main(["image", "a cat", "--guide", typed, "--model", str(tiny_model), "-o", str(tmp_path), "-q"]) == 2
    assert says in (said := capsys.readouterr().err) and len(said.strip().splitlines()) == 1


def test_a_hue_is_matched_by_its_share_and_leaves_brightness_alone():
    """A window of which 60 % is teal and the rest black, white or grey is what is asked for, in any brightness."""
    none, teal = Condition(), torch.tensor([0, 128, 128]).reshape(1, 3, 1, 1) / 255
    for rest in (0.0, 0.5, 1.0):
        mixed = (0.6 * teal + 0.4 * rest).expand(1, 3, 24, 24)
        assert Colour("teal")(mixed, none).abs() < 1e-8
    assert Colour("teal", share=1)(teal.expand(1, 3, 24, 24), none).abs() < 1e-8
    # the other way round: chroma (BT.601) of red, away from none at all, in deviations
    grey, red = torch.full((1, 3, 24, 24), 0.3), ((0 - 0.299) / 1.772, (1 - 0.299) / 1.402)
    expected = -0.5 * sum((0.6 * value / 0.1) ** 2 for value in red)
    assert Colour("red", 0.1)(grey, none).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("colour", "brightness"), [("black", 0.32), ("white", 0.92), ("#808080", 0.6 * 128 / 255 + 0.32)])
def test_what_has_no_hue_is_matched_by_brightness(colour, brightness):
    assert Colour(colour)(torch.full((1, 3, 24, 24), brightness), Condition()).abs() < 1e-6
    assert Colour(colour, 0.1)(torch.full((1, 3, 24, 24), brightness - 0.2), Condition()).item() == pytest.approx(-2, abs=1e-3)


def test_a_colour_is_matched_in_known_ways():
    with pytest.raises(ValueError, match="choose hue or rgb"):
        Colour("red", match="hsv")
    with pytest.raises(ValueError, match="share"):
        Colour("red", share=1.5)
