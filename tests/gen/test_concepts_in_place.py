"""OMG's two stages: what they are in the limits of their masks and their start, and what the command makes of files."""

import numpy as np
import pytest
import torch
from PIL import Image

from gen.adapters import Adapter, Delta, write_adapter
from gen.generator import Generator
from gen.pipeline.png import read_recipe
from gen.tasks.layout.two_stages import PlacedConcept, concepts_in_place
from samplers.multi_model.late import Late
from samplers.path import NoiseLevel

CALL = {"seed": 7, "num_inference_steps": 3, "progress": False}
SCENE, FULL = "a blue dog", torch.ones(1, 1, 32, 32)
HALF = FULL.clone()
HALF[..., 16:] = 0
LATE = 20.0  # a log-SNR beyond all levels of a run


@pytest.fixture
def taught(tiny_model):
    """The tiny model with an adapter that changes much, loaded and not in force."""
    model = Generator.from_pretrained(tiny_model, "cpu", "float32")
    random = torch.Generator().manual_seed(2)
    factors = {"down": torch.randn(2, 16, generator=random), "up": torch.randn(32, 2, generator=random)}
    model.load_adapter(Adapter("tom", {"denoiser.text_embed": Delta(factors)}), name="tom")
    model.set_adapters({})
    return model


def concept(**changes) -> PlacedConcept:
    return PlacedConcept(**{"thing": "dog", "prompt": "a red cat", "adapters": {"tom": 0.8}, "mask": FULL, **changes})


def test_a_concept_that_is_everywhere_from_the_first_level_is_its_own_picture(taught):
    made = concepts_in_place(taught, SCENE, [concept()], start=None, **CALL)
    taught.set_adapters({"tom": 0.8})
    own = taught("a red cat", output_type="pt", **CALL).images
    taught.set_adapters({})
    torch.testing.assert_close(made.picture.images, own, rtol=0, atol=2e-5)
    assert not torch.allclose(own, made.layout.images, atol=0.02)


def test_before_the_start_and_outside_of_masks_it_is_the_first_stage(taught):
    late = concepts_in_place(taught, SCENE, [concept()], start=LATE, **CALL)
    assert torch.equal(late.picture.images, late.layout.images)
    assert torch.equal(late.layout.images, taught(SCENE, output_type="pt", **CALL).images) and taught.adapters == {}
    kept = concepts_in_place(taught, SCENE, [concept(mask=HALF)], start=None, keep_outside=True, **CALL)
    assert torch.equal(kept.picture.images[..., 16:], kept.layout.images[..., 16:])
    assert not torch.allclose(kept.picture.images[..., :16], kept.layout.images[..., :16], atol=0.02)


def test_masks_that_overlap_are_averaged(taught):
    one = concepts_in_place(taught, SCENE, [concept(mask=HALF)], start=None, **CALL)
    two = concepts_in_place(taught, SCENE, [concept(mask=HALF), concept(thing="other", mask=HALF)], start=None, **CALL)
    torch.testing.assert_close(two.picture.images, one.picture.images, rtol=0, atol=2e-5)


def test_things_are_found_by_a_function(taught):
    seen = []

    def segment(picture, thing):
        seen.append((picture.size, thing))
        mask = np.zeros((32, 32), np.float32)
        mask[8:16, 8:16] = 1
        return mask

    made = concepts_in_place(taught, SCENE, [concept(mask=None)], segment=segment, grow=2, **CALL)
    assert seen == [((32, 32), "dog")] and int(made.masks["dog"].sum()) == 12 * 12


def test_what_is_refused(taught):
    for wrong, error in {
        "is no concept": [],
        "'dog' is given twice": [concept(), concept()],
        "is empty": [concept(mask=FULL * 0)],
        "is 16 x 16 pixels, and the picture 32 x 32": [concept(mask=torch.ones(1, 1, 16, 16))],
        "No adapter named 'rex' is loaded": [concept(adapters={"rex": 1.0})],
    }.items():
        with pytest.raises(ValueError, match=wrong):
            concepts_in_place(taught, SCENE, error, **CALL)
    for changes, error in (
        ({"grow": -1}, "grow is -1"),
        ({"layout": {}}, "layout is not for two stages"),
        ({"num_images_per_prompt": 2}, "num_images_per_prompt is not for two stages"),
    ):
        with pytest.raises(ValueError, match=error):
            concepts_in_place(taught, SCENE, [concept()], **changes, **CALL)
    with pytest.raises(ValueError, match="one level for all"):
        levels = NoiseLevel(torch.ones(2), torch.ones(2) / 2, torch.ones(2) / 2)
        Late(taught.denoiser, taught.denoiser, 0.0)(torch.zeros(2, 4, 8, 8), levels, None, None)


def test_the_command(fewstep, tiny_model, tmp_path):
    adapter = Adapter("tom", {"denoiser.text_embed": Delta({"down": torch.ones(1, 16), "up": torch.ones(32, 1)})})
    write_adapter(adapter, tmp_path / "tom.safetensors", "diffusers")
    Image.fromarray((HALF[0, 0].numpy() * 255).astype("uint8")).save(tmp_path / "left.png")
    place = ("--model", tiny_model, "--device", "cpu", "--dtype", "float32")
    common = ("--seed", 7, "--steps", 3, "--lora", "tom.safetensors:0.8", *place)
    scene = (SCENE, "--concept", "dog=a red cat", "--mask", "dog=left.png")
    code, out, _ = fewstep("concepts", *scene, *common, "--save-layout", "layout.png", "-o", "made.png")
    assert code == 0 and out.split() == ["layout.png", "made.png"]
    recipe = read_recipe("made.png")
    assert recipe.layout.start == -1.13 and recipe.layout.regions[0].adapters == {"tom": 0.8}
    assert fewstep("replay", "made.png", *place, "--lora", "tom.safetensors", "-o", "again.png")[0] == 0
    assert fewstep("concepts", *scene, *common, "--keep-outside", "-o", "kept.png")[0] == 0
    kept, layout = (np.asarray(Image.open(name).convert("RGB")) for name in ("kept.png", "layout.png"))
    assert (kept[:, 16:] == layout[:, 16:]).all() and (kept[:, :16] != layout[:, :16]).any()
    write_adapter(adapter, tmp_path / "style.safetensors", "diffusers")  # which no concept is given acts everywhere
    assert fewstep("concepts", *scene, *common, "--lora", "style.safetensors:0.5", "--use", "dog=tom", "-o", "two.png")[0] == 0
    styled = read_recipe("two.png")
    assert styled.adapters == {"tom": 0.0, "style": 0.5} and styled.layout.regions[0].adapters == {"tom": 0.8}
    for wrong, error in {
        ("--use", "cat=tom"): "'cat' is no thing of --concept",
        ("--use", "dog=rex"): "--use names the LoRA 'rex'",
        ("--concept", "b=c"): "1 LoRAs and 2 concepts are given",
        ("--concept", "dog=c"): "write each thing once",
        ("-n", 2): "one picture at a time",
        ("--grow", -7): "--grow is -7",
        ("--start", "nan"): "--start is nan",
    }.items():
        code, _, said = fewstep("concepts", *scene, *common, *wrong)
        assert code == 2 and error in said
