"""References of whole models: what they go with, recipes, the word <ref>, folders from outside, the default model's own."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models.components import save_component
from gen.models.folder import write_model
from gen.nn.reference import WeakerReferences, WithReferences
from gen.nn.registry import build
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Task
from gen.tasks.references.options import ReferencesKeywords
from gen.tasks.references.task import ReferencesTask
from samplers.guidance.cfg import ClassifierFree
from samplers.guidance.embedded import EmbeddedGuidance
from samplers.solvers.ddim import euler
from tests.gen.conftest import CONFIG, randomise, tiny_autoencoder, tiny_text_encoder
from tests.gen.test_reference_encoder import NETWORKS, encoder_for

PICTURE = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(1))
OTHER = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(2))
LEFT = torch.zeros(1, 32, 32).index_fill(2, torch.arange(16), 1.0)
CALL = {"seed": 1, "num_inference_steps": 2, "progress": False, "output_type": "latent"}
HELD = ("references_scale", "references_fusion", "references_fusion_options")  # by the recipe
SUBJECTS = {
    "plain": {},
    "fused": {"subject": "fused", "text_dim": 16},
    "word": {"subject": "word", "text_dim": 16, "layers": 0},
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """(a generator on a tiny DiT, folders of encoders by what they do with the word)."""
    root = tmp_path_factory.mktemp("references")
    base = randomise(build(NETWORKS["dit"]), 1).eval()
    write_model(root / "model", CONFIG, base, tiny_autoencoder(), tiny_text_encoder())
    for name, sizes in SUBJECTS.items():
        save_component(encoder_for(base, **sizes), root / name)
    folders = {name: root / name for name in SUBJECTS}
    return Generator.from_pretrained(root / "model", device="cpu", dtype="float32"), folders


def drawn(opened, kind: str = "plain", prompt: str = "a cat", **call) -> torch.Tensor:
    generator, folders = opened
    return generator(prompt, references_encoder=folders[kind], **{**CALL, **call}).images[0]


@pytest.mark.parametrize(
    "call",
    [
        {"prompt": "a [red:blue:0.5] cat AND a dog:0.5"},
        *({"guidance": name} for name in ("nag", "pag", "apg", "cfg++")),
        *({"cache": name} for name in ("easy", "first_block")),
        {"image": torch.full((3, 32, 32), 0.5), "strength": 0.9},
        {"sampler": "euler_a", "references_mask": [LEFT, 1 - LEFT], "references": [PICTURE, OTHER]},
        {"references_fusion": 2, "references_fusion_options": {"eta": 0.7}},
        {"height": 48, "width": 64, "references_scale": [0.5, 1.5], "references": [PICTURE, OTHER]},
    ],
)
def test_they_go_with_the_rest(opened, call):
    """A picture is another with references, none but for those beside it, and a recipe makes it again."""
    generator, folders = opened
    given = {"references": PICTURE, "references_encoder": folders["plain"]}
    given |= {name: call[name] for name in call if name.startswith("references")}
    asked = {"prompt": "a cat", "negative_prompt": "blurry", **CALL, "num_inference_steps": 3}
    asked |= {name: value for name, value in call.items() if not name.startswith("references")}
    made = generator(**asked, **given, num_images_per_prompt=2)
    plain = generator(**asked)
    assert bool(made.images[0].isfinite().all()) and not torch.equal(made.images[0], plain.images[0])
    alone = generator(**{**asked, "seed": 2}, **given)
    assert torch.equal(alone.images[0], made.images[1])
    recipe = Recipe.from_json(made.recipes[1].to_json())
    again = {name: value for name, value in given.items() if name not in HELD}
    again |= {"image": call["image"]} if "image" in call else {}
    assert torch.equal(generator.replay(recipe, "latent", progress=False, **again).images[0], made.images[1])


@pytest.mark.parametrize("kind", ["cfg", "embedded"])
def test_moves_of_fusion_heed_other_tasks_and_how_the_model_is_guided(opened, kind):
    """Inside of the guidance that the model knows is what the other tasks put around the network."""
    generator, folders = opened
    given = ReferencesKeywords(PICTURE, references_encoder=folders["plain"], references_fusion=1)
    task, _ = ReferencesTask.from_call(generator, given, None)

    class Other(Task):
        def wrap_network(self, denoiser, batch):
            return WithReferences(denoiser, {"other": None})

    model = SimpleNamespace(denoiser=generator.denoiser, config=SimpleNamespace(defaults=SimpleNamespace(guidance=kind)))
    batch = SimpleNamespace(model=model, negative=None, settings=SimpleNamespace(tasks={"other": Other(), "references": task}))
    denoiser, solver = task.wrap_guided(generator.denoiser, euler(), batch)
    plain = solver.refiner.denoiser
    assert denoiser is generator.denoiser
    assert type(solver.refiner) is {"cfg": ClassifierFree, "embedded": EmbeddedGuidance}[kind] and solver.refiner.scale == 3.0
    assert isinstance(plain, WeakerReferences) and list(plain.denoiser.encoders) == ["references"]
    assert list(plain.denoiser.denoiser.encoders) == ["other"] and plain.denoiser.denoiser.denoiser is generator.denoiser


def test_moves_of_fusion_go_with_no_canvas(opened):
    generator, folders = opened
    given = {"references": PICTURE, "references_encoder": folders["plain"], "references_fusion": 1}
    with pytest.raises(ValueError, match="a canvas is seen in windows; leave one"):
        generator.panorama("a cat", width=64, height=32, window=32, num_inference_steps=2, progress=False, **given)


def test_where_and_how_strongly(opened):
    generator, _ = opened
    plain = generator("a cat", **CALL).images[0]
    assert torch.equal(drawn(opened, references=PICTURE, references_scale=0.0), plain)
    assert torch.equal(drawn(opened, references=PICTURE, references_range=(900, 1000)), plain)
    both = drawn(opened, references=[PICTURE, OTHER])
    torch.testing.assert_close(both, drawn(opened, references=[OTHER, PICTURE]), rtol=1e-4, atol=1e-5)
    # each by itself is another thing than both as one set
    apart = drawn(opened, references=[PICTURE, OTHER], references_mask=[torch.ones(1, 32, 32)] * 2)
    assert (both - apart).abs().max() > 1e-4
    # a strength for each is one group for each, equal strengths too
    torch.testing.assert_close(
        drawn(opened, references=[PICTURE, OTHER], references_scale=[1.0, 1.0]), apart, rtol=1e-4, atol=1e-5
    )
    still = {"references_fusion": 2, "references_fusion_options": {"eta": 0.0}}
    assert torch.equal(drawn(opened, references=PICTURE, **still), drawn(opened, references=PICTURE))
    one = drawn(opened, references=PICTURE, references_mask=torch.ones(1, 32, 32))
    torch.testing.assert_close(one, drawn(opened, references=PICTURE), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["fused", "word"])
def test_the_word_stands_for_the_pictures(opened, kind):
    """Another picture makes another of the same prompt, though what prompts give is kept; elsewhere the prompt is as ever."""
    said = {"prompt": "a <ref>", "references_scale": 0.0, "kind": kind}
    first, second = (drawn(opened, references=one, **said) for one in (PICTURE, OTHER))
    assert (first - second).abs().max() > 1e-4 and torch.equal(first, drawn(opened, references=PICTURE, **said))
    generator, _ = opened
    assert torch.equal(drawn(opened, references=PICTURE, **{**said, "prompt": "a cat"}), generator("a cat", **CALL).images[0])
    kept = set(generator._encoded._kept)
    rows = generator(["a <ref>", "a cat"], references=OTHER, references_scale=0.0, references_encoder=opened[1][kind], **CALL)
    assert torch.equal(rows.images[0], second)
    assert generator.text_encoder.learned is None and kept and kept <= set(generator._encoded._kept)


def test_many_words_cost_no_warning(opened, recwarn):
    drawn(opened, "fused", "a (<ref>:1.2)", references=PICTURE)
    assert not [one for one in recwarn if "taught" in str(one.message)]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"references_scale": 0.5}, "references_scale was given without references"),
        ({"references": [PICTURE] * 17}, "has 17 pictures; give 16 at most"),
        ({"references": [PICTURE] * 2, "references_mask": LEFT}, "1 masks where references has 2 pictures"),
        ({"references": [PICTURE] * 3, "references_scale": [1, 2]}, "2 numbers where references has 3 pictures"),
        ({"references": PICTURE, "references_scale": [1, 2]}, "2 numbers where references has 1 picture; give 1[.]"),
        ({"references": PICTURE, "references_encoder": "nowhere"}, "'nowhere', which is no folder here"),
        ({"references": PICTURE, "references_encoder": None}, "it is for another model|lacks the default model"),
        ({"references": PICTURE, "references_vision": "clip"}, "reads the model's own latents"),
        ({"references": PICTURE, "prompt": "a <ref>"}, "knows no word <ref>"),
        ({"references": PICTURE, "references_fusion": 1, "references_fusion_options": {"etta": 1}}, "Did you mean 'eta'"),
    ],
)
def test_wrong_requests_are_one_sentence(opened, asked, said):
    generator, folders = opened
    with pytest.raises(ValueError, match=said):
        generator(**{"prompt": "a cat", "references_encoder": folders["plain"], **CALL, **asked})


def test_a_replay_wants_the_same(opened):
    generator, folders = opened
    given = {"references": PICTURE, "references_encoder": folders["plain"]}
    recipe = generator("a cat", **given, **CALL).recipes[0]
    for changed, said in (
        ({"references": None}, "resembles a reference, which its recipe does not hold"),
        ({"references": OTHER}, "This references is not what the picture was made with"),
        ({"references_encoder": folders["word"]}, "This references_encoder is not what"),
        ({"references_scale": 0.5}, "says how its references act already; leave references_scale out"),
    ):
        with pytest.raises(ValueError, match=said):
            generator.replay(recipe, "latent", progress=False, **{**given, **changed})


def test_folders_from_outside_are_checked(opened, tmp_path):
    generator, folders = opened

    def changed(name: str, **values) -> dict:
        copy = tmp_path / name
        shutil.copytree(folders["plain"], copy)
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, **values}))
        return {"references": PICTURE, "references_encoder": copy}

    for name, values, said in (
        ("kind", {"type": "dit"}, "is a 'dit', and a reference_encoder is needed"),
        ("key", {"auto_map": "x.Y"}, "auto_map"),
        ("deep", {"depth": 60, "dim": 4096}, "not of one model"),
        ("wide", {"dim": 32}, "does not fit|not of one model"),
        ("features", {"features": "os.system"}, "features"),
    ):
        with pytest.raises(CheckpointError, match=said):
            generator("a cat", **changed(name, **values), **CALL)
