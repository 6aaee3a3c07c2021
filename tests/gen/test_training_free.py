"""Training-free changes by `Generator` and the command line: against the samplers', recipes that replay, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from gen.cli.app import main
from gen.io.images import read_picture
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe
from gen.tasks.training_free.aesthetic import Aesthetic, climb, towers, weights_kept
from gen.tasks.training_free.concepts import _positions
from samplers.denoiser import Condition, Context
from samplers.guidance import ClassifierFree
from samplers.guidance.greedy import Greedy, guidance_scales
from samplers.guidance.multi_reference import MultiReference
from samplers.guidance.negtome import NegativeMerging
from samplers.guidance.reference_batch import References
from samplers.guidance.t2i_zero import ConceptSuppression, correct_by_similarities
from samplers.noise import normal, seeded_noise
from samplers.path import RectifiedFlow
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.gen.conftest import CONFIG, UVIT, randomise, tiny_autoencoder, tiny_text_encoder

EVERYWHERE = (-100.0, 100.0)
CALL = {"seed": 7, "num_inference_steps": 3, "progress": False}
LATENT = {**CALL, "output_type": "latent"}
NEGTOME = {"scale": 0.5, "threshold": 0.3, "interval": EVERYWHERE}


def picture(seed) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


MASK = Image.fromarray(np.pad(np.full((16, 32), 255, np.uint8), ((0, 16), (0, 0))))


@pytest.fixture(scope="module")
def dit():
    """A DiT that reads text: it has every hook."""
    from gen.generator import Generator
    from gen.nn.registry import build

    sizes = {**UVIT, "type": "dit", "text_tokens": 8, "text_dim": 16}
    parts = [part.requires_grad_(False) for part in (randomise(build(sizes), 1), tiny_autoencoder(), tiny_text_encoder())]
    return Generator(CONFIG, *parts, device="cpu", dtype="float32")


@torch.no_grad()
def by_hand(generator, prompt, inside=lambda d, c: d, outside=lambda d: d, read=lambda c: c):
    levels, eps = get_grid("uniform", RectifiedFlow(), 3), normal([7], (4, 8, 8), "latents")
    tokens, mask = generator.text_encoder.encode([prompt])
    condition = read(Condition(tokens=tokens, mask=mask))
    field = outside(ClassifierFree(inside(generator.denoiser, condition), 3.0))
    return sample(field, get_solver("dpmpp_2m"), eps, levels, condition, noise=seeded_noise([7], eps), context=Context())


def references(generator, *images, masks=None, conditions=()):
    pictures = torch.cat([read_picture("x", one, "RGB") for one in images]) * 2 - 1
    with torch.no_grad():
        latents = generator.autoencoder.encode(pictures).float() * generator.config.latent_scale
    noise = [normal([7], latents.shape[1:], f"reference {r}") for r in range(len(latents))]
    return References(latents, torch.stack(noise, 1), masks, conditions)


def same(a, b, tolerance=2e-5):
    assert (a - b).abs().max() < tolerance


def test_pictures_to_stay_away_from_and_to_resemble_are_the_samplers_own(dit):
    one, two = picture(0), picture(1)
    plain = dit("a cat", **LATENT).images
    made = dit("a cat", negtome=[one, two], negtome_options=NEGTOME, **LATENT)
    rule = NegativeMerging(dit.denoiser, references(dit, one, two), 0.5, 0.3, interval=EVERYWHERE)
    same(made.images, by_hand(dit, "a cat", lambda d, c: rule))
    assert (made.images - plain).abs().max() > 1e-3 and made.nfe == 2 + 2 * 2 * 3  # pure noise is in no interval

    mask = read_picture("mask", MASK, "L")
    own = replace(Condition(), **dict(zip(("tokens", "mask"), dit.text_encoder.encode(["a dog"]), strict=True)))
    options = {"weight": 2.0, "layers": 1}
    made = dit("a cat", reference=one, reference_mask=MASK, reference_prompt="a dog", reference_options=options, **LATENT)

    def shared(denoiser, condition):
        return MultiReference(denoiser, references(dit, one, masks=mask, conditions=(own,)), 2.0, (1,))

    same(made.images, by_hand(dit, "a cat", shared))
    assert (made.images - plain).abs().max() > 1e-3


def test_concepts_are_the_samplers_own(dit):
    prompt = "a red cat on the moon"
    assert _positions(dit, prompt, ["cat", "red", "moon"]) == [[3], [2], [6]]  # after [CLS]
    assert _positions(dit, "the (cats:0.5) on", ["cats"]) == [[2, 3]]  # two word pieces
    owners = torch.full((1, 8), -1)
    owners[0, [3, 6]] = torch.tensor([0, 1])

    def read(condition):
        return replace(condition, tokens=correct_by_similarities(condition.tokens[0], [3, 6], 0.4, 2, 0.5)[None])

    def inside(denoiser, condition):
        return ConceptSuppression(denoiser, owners, 0.8, EVERYWHERE)

    options = {"strength": 0.4, "window": 2, "quantile": 0.5, "suppression": 0.8, "interval": EVERYWHERE}
    made = dit(prompt, concepts=["cat", "moon"], concepts_options=options, **LATENT)
    same(made.images, by_hand(dit, prompt, inside, read=read))
    off = dit(prompt, concepts=["cat", "moon"], concepts_options={"strength": 0.0, "suppression": 0.0}, **LATENT)
    same(off.images, dit(prompt, **LATENT).images, 1e-6)
    assert (made.images - off.images).abs().max() > 1e-3 and made.nfe == 6


def dark(images, condition):
    return -20 * images.mean((1, 2, 3)) ** 2


def test_greedy_is_the_samplers_own(dit):
    def energy(z, condition):
        return dark(dit.autoencoder.decode(z / dit.config.latent_scale) / 2 + 0.5, condition)

    options = {"scales": (0.0, 6.0), "iterations": 2, "rate": 0.05}
    made = dit("a cat", greedy=dark, greedy_options=options, **LATENT)
    rule = {"candidates": guidance_scales((0.0, 6.0)), "iterations": 2, "rate": 0.05}
    same(made.images, by_hand(dit, "a cat", outside=lambda d: Greedy(d, energy, **rule)))
    assert (made.images - dit("a cat", **LATENT).images).abs().max() > 1e-3
    assert made.recipes[0].unrecorded == ("heuristic of greedy",) and "dark" not in made.recipes[0].to_json()


def test_an_aesthetic_moves_the_reading_and_puts_every_weight_back(dit):
    before = {name: value.clone() for name, value in dit.text_encoder.state_dict().items()}
    plain = dit("a cat", **LATENT).images
    options = {"steps": 4, "rate": 0.01}
    both = dit(["a cat", "a red heart"], seeds=[7, 7], aesthetic="the moon", aesthetic_options=options,
               num_inference_steps=3, progress=False, output_type="latent").images  # fmt: skip
    assert (both[:1] - plain).abs().max() > 1e-3
    for name, value in dit.text_encoder.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(p.requires_grad for p in dit.text_encoder.parameters())
    same(dit("a red heart", aesthetic="the moon", aesthetic_options=options, **LATENT).images, both[1:])  # as if alone
    assert torch.equal(dit("a cat", **LATENT).images, plain)
    nothing = dit("a cat", aesthetic="the moon", aesthetic_options={"steps": 0}, **LATENT).images
    assert torch.equal(nothing, plain)

    [tower] = towers(dit)
    goal = Aesthetic.make(dit, {"": "the moon"}, 32, 32).goal(tower, 1)
    with weights_kept([tower.network]):
        cosines = climb(tower, "a cat", goal, 6, 1e-3)
    assert cosines == sorted(set(cosines)) and cosines[-1] < 1


def test_an_aesthetic_may_be_a_file(dit, tmp_path):
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0))
    save_file({"embedding": vector}, tmp_path / "style.safetensors")
    options = {"steps": 2, "rate": 0.01}
    made = dit("a cat", aesthetic=tmp_path / "style.safetensors", aesthetic_options=options, **LATENT)
    assert torch.equal(made.images, dit("a cat", aesthetic=vector, aesthetic_options=options, **LATENT).images)
    with pytest.raises(ValueError, match=r"does not hold; give it again \(aesthetic"):
        dit.replay(made.recipes[0])
    with pytest.raises(ValueError, match="its sha256 differs"):
        dit.replay(made.recipes[0], aesthetic=vector + 1)
    again = dit.replay(made.recipes[0], "latent", False, aesthetic=vector)
    assert torch.equal(again.images, made.images)


def test_pipelines_of_others_have_them_too(bridged):
    """Both CLIPs of SDXL through the bridge: towers moved and restored, references and concepts in a U-Net."""
    _, generator = bridged("sdxl")
    call = {**CALL, "num_inference_steps": 2, "output_type": "latent", "height": 32, "width": 32}
    plain, before = generator("a cat", **call).images, {n: v.clone() for n, v in generator.text_encoder.state_dict().items()}
    changes = {
        "aesthetic": {"aesthetic": "the moon", "aesthetic_options": {"steps": 2, "rate": 0.01}},
        "negtome": {"negtome": picture(0), "negtome_options": NEGTOME},
        "reference": {"reference": picture(0), "reference_options": {"layers": (0, 1)}},
        "concepts": {"concepts": ["a", "cat"], "concepts_options": {"interval": EVERYWHERE}},
    }
    for what, options in changes.items():
        changed = generator("a cat", **options, **call).images
        assert torch.isfinite(changed).all() and (changed - plain).abs().max() > 1e-4, what
    assert all(torch.equal(v, before[n]) for n, v in generator.text_encoder.state_dict().items())
    assert torch.equal(generator("a cat", **call).images, plain)


def test_recipes_replay(dit):
    one = picture(0)
    given = {"negtome": one, "negtome_mask": MASK}
    fixed = {"concepts": ["cat"], "greedy": "colour", "greedy_options": {"colour": "teal", "iterations": 1}, "aesthetic": "red"}
    made = dit(["a cat", "a blue cat"], seeds=[7, 8], num_inference_steps=3, progress=False, **given, **fixed)
    recipe = Recipe.from_json(made.recipes[1].to_json())
    assert dit.replay(recipe, progress=False, **given).images[0].tobytes() == made.images[1].tobytes()
    for keywords, says in (
        ({}, "which its recipe does not hold; give it again .negtome, --negtome FILE"),
        ({**given, "negtome": picture(3)}, "its sha256 differs"),
        ({"negtome": one}, "its sha256 differs"),
        ({**given, "greedy": dark}, "names; leave greedy out"),
        ({**given, "concepts": "cat"}, "names its concepts"),
        ({**given, "reference": one}, "made without reference"),
    ):
        with pytest.raises(ValueError, match=says):
            dit.replay(recipe, **keywords)

    prompts = ["a cat", "a dog", "a red heart"]
    batch = dit(prompts, seed=3, negtome="batch", negtome_options=NEGTOME, num_inference_steps=3, progress=False)
    alone = dit(prompts, seed=3, num_inference_steps=3, progress=False)
    assert [a.tobytes() == b.tobytes() for a, b in zip(batch.images, alone.images, strict=True)][1:] == [False, False]
    for image, recipe in zip(batch.images, batch.recipes, strict=True):
        assert not recipe.unrecorded and recipe.tweaks["negtome"].first.seed == 3
        assert dit.replay(Recipe.from_json(recipe.to_json()), progress=False).images[0].tobytes() == image.tobytes()

    forged = recipe.model_copy(update={"tweaks": {"os.system": recipe.tweaks["negtome"]}})
    with pytest.raises(ValueError, match="does not know"):
        dit.replay(forged)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ({"negtome_options": {"scale": 1.0}}, "negtome_options was given without negtome"),
        ({"negtome": "nowhere.png"}, "negtome: nowhere.png"),
        ({"negtome": picture(0), "negtome_options": {"sclae": 1}}, "'negtome' has no option 'sclae': it takes scale"),
        ({"negtome": picture(0), "negtome_options": {"scale": "much"}}, "scale must be a finite number"),
        ({"negtome": "batch", "negtome_mask": MASK}, "takes no mask"),
        ({"negtome": "batch", "reference": picture(0)}, "give one of them"),
        ({"reference": [picture(0)] * 17}, "from 1 to 16"),
        ({"reference": [picture(0)] * 2, "reference_mask": MASK}, "2 pictures and 1 masks"),
        ({"reference": picture(0), "reference_prompt": ["a", "b"]}, "1 pictures, 2 prompts"),
        ({"concepts": ["cat", "tiger"]}, "does not have the concept 'tiger'"),
        ({"concepts": ["cat", "Cat"]}, "different words"),
        ({"concepts": "cat", "concepts_options": {"strength": 2.0}}, "strength=2.0"),
        ({"aesthetic": "moon", "aesthetic_options": {"steps": -1}}, "aesthetic steps is -1"),
        ({"aesthetic": torch.zeros(16)}, "nothing but zeros"),
        ({"aesthetic": torch.ones(5)}, "5 numbers, and the text encoder makes 16"),
        ({"greedy": "colur"}, "did you mean 'colour'"),
        ({"greedy": 3}, "an energy's name, or a function"),
        ({"negtome": "batch", "negtome_options": {"rate": 3}}, "The training-free change 'negtome' has no option 'rate'"),
        ({"greedy": dark, "greedy_options": {"steps": 3}}, "no 'steps': it takes iterations"),
        ({"greedy": lambda images, c: images.mean()}, "one number per image"),
    ],
)
def test_what_a_training_free_change_cannot_be(dit, call, says):
    with pytest.raises(ValueError, match=says):
        dit("a cat", **call, **CALL)


def test_a_network_without_the_place_and_a_wrong_keyword_are_sentences(tiny, pixel_model):
    with pytest.raises(ValueError, match="'cross' hook"):
        tiny("a cat", concepts=["a", "cat"], **CALL)
    with pytest.raises(TypeError, match="takes no 'num_steps'"):
        tiny("a cat", num_steps=3)
    with pytest.raises(TypeError, match="no 'negtom'; did you mean 'negtome'"):
        tiny("a cat", negtom="x.png")


def test_the_command_line_takes_them_and_replays(tiny_model, tmp_path, capsys):
    photo, out, heuristic = tmp_path / "photo.png", tmp_path / "out.png", tmp_path / "h.py"
    picture(0).save(photo)
    heuristic.write_text("def dark(images, condition):\n    return -images.mean((1, 2, 3))\n")
    model = ["--model", str(tiny_model), "-q"]
    own = ["--greedy", f"{heuristic}:dark", "--tweak-option", "greedy.iterations=1", "--aesthetic", "red"]
    away = ["--negtome", str(photo), "--training-free-option", "negtome.scale=0.5"]
    made = ["image", "a cat", "--seed", "7", "--steps", "2", *own, *away, "-o", str(out), "--device", "cpu", *model]
    assert main([*made, "--dtype", "float32"]) == 0
    records = read_recipe(out).tweaks
    assert records["negtome"].options == {"scale": 0.5} and records["aesthetic"].texts == ("red",)
    replay = ["replay", str(out), *model]
    assert main(replay) == 2 and "--negtome FILE" in capsys.readouterr().err
    assert main([*replay, "--negtome", str(photo), "--greedy", f"{heuristic}:dark"]) == 0
    assert main([*made, "--training-free-option", "greedy=3"]) == 2 and "write OF.NAME=VALUE" in capsys.readouterr().err
