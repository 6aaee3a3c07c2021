"""`Generator`: what a picture depends on, what a call refuses, and that a saved model is the same model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models.folder import model_config, read_model_config, write_model
from gen.models.pretrained import find_model, resolve_device, resolve_dtype
from gen.nn.registry import build
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe
from samplers.denoiser import Condition, Context
from samplers.guidance.cfg import ClassifierFree
from samplers.noise import normal
from samplers.path import RectifiedFlow, VarianceExploding, VariancePreserving
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.gen.conftest import CONFIG, UVIT, randomise, tiny_autoencoder, tiny_text_encoder

PROMPTS = ["a red heart", "a cat", "", "the moon on a dog"]
SEEDS = [3, 1 << 62, 0, 99]


def pixels(generator, *args, **kwargs) -> torch.Tensor:
    return generator(*args, output_type="pt", progress=False, **kwargs).images


def test_a_call_is_the_sampler_run_by_hand(tiny):
    """Prompt to picture, written out with the parts below the Generator."""
    path, network = RectifiedFlow(), tiny.denoiser
    tokens, mask = tiny.text_encoder.encode(["a red heart"])
    levels = get_grid("karras", path, 5)
    with torch.no_grad():
        latents = sample(
            ClassifierFree(network, 2.5),
            get_solver("euler"),
            normal([7], (4, 8, 8), "latents") * levels[0].sigma,
            levels,
            Condition(tokens=tokens, mask=mask),
            context=Context(),
        )
        expected = (tiny.autoencoder.decode(latents) * 0.5 + 0.5).clamp(0, 1)
    settings = {"seed": 7, "num_inference_steps": 5, "guidance_scale": 2.5, "sampler": "euler", "schedule": "karras"}
    made = pixels(tiny, "a red heart", batch_invariant=False, **settings)  # by the kernels that the sampler gets by itself
    torch.testing.assert_close(made, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler_a"])
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_picture_does_not_depend_on_its_batch(tiny, sampler, batch):
    together = pixels(tiny, PROMPTS, seeds=SEEDS, sampler=sampler, batch_size=4)
    assert torch.pdist(together.flatten(1)).min() > 0.1  # four different pictures, or this would show nothing
    split = pixels(tiny, PROMPTS, seeds=SEEDS, sampler=sampler, batch_size=batch)
    torch.testing.assert_close(split, together, atol=1e-4, rtol=0)


def test_a_picture_does_not_depend_on_its_place(tiny):
    order = [2, 0, 3, 1]
    together = pixels(tiny, PROMPTS, seeds=SEEDS)
    shuffled = pixels(tiny, [PROMPTS[i] for i in order], seeds=[SEEDS[i] for i in order])
    torch.testing.assert_close(shuffled, together[order], atol=1e-4, rtol=0)


def test_the_same_call_gives_the_same_bits(tiny):
    first, second = (pixels(tiny, "a cat", seed=5, sampler="euler_a", num_images_per_prompt=3) for _ in range(2))
    assert torch.equal(first, second)


def test_every_argument_changes_the_picture(tiny):
    base = {"seed": 5, "num_inference_steps": 4, "guidance_scale": 3.0, "sampler": "dpmpp_2m", "schedule": "uniform"}
    changes = (
        {"seed": 6},
        {"num_inference_steps": 5},
        {"guidance_scale": 2.0},
        {"guidance_interval": (-1.0, 1.0)},
        {"sampler": "euler"},
        {"schedule": "karras"},
        {"schedule_options": {"shift": 2.0}},
        {"negative_prompt": "blurry"},
    )
    reference = pixels(tiny, "a red heart", **base)
    for change in changes:
        assert (pixels(tiny, "a red heart", **{**base, **change}) - reference).abs().max() > 1e-3, change
    assert (pixels(tiny, "a blue heart", **base) - reference).abs().max() > 1e-3


def test_sampler_labels_name_sampler_and_schedule(tiny):
    recipe = tiny("a cat", seed=1, sampler="DPM++ 2M Karras", progress=False).recipes[0]
    assert (recipe.sampler, recipe.schedule) == ("dpmpp_2m", "karras")


def test_an_empty_prompt_is_unconditional_and_skips_guidance(tiny):
    result = tiny(["", "a cat"], seed=4, num_inference_steps=3, output_type="pt", progress=False)
    assert [recipe.nfe for recipe in result.recipes] == [3, 6] and result.nfe == 4.5
    plain = pixels(tiny, "", seed=4, num_inference_steps=3, guidance_scale=1.0)
    torch.testing.assert_close(result.images[:1], plain, atol=1e-5, rtol=0)
    cond = tiny.encode_prompt(["", "a cat"])
    assert not cond.mask[0].any() and not cond.tokens[0].any() and cond.mask[1].any()


def test_a_distinct_prompt_is_encoded_once(tiny_model):
    generator, calls = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32"), []
    encode = generator.text_encoder.encode
    generator.text_encoder.encode = lambda texts: calls.append(texts) or encode(texts)
    generator(["a cat", "a dog", "a cat"], num_images_per_prompt=3, num_inference_steps=1, progress=False)
    assert calls == [["a cat"], ["a dog"]]


def test_output_types_agree(tiny):
    def call(kind):
        return tiny("a cat", seed=2, output_type=kind, progress=False).images

    tensor, array, [picture] = call("pt"), call("np"), call("pil")
    assert tensor.shape == (1, 3, 32, 32) and tensor.dtype == torch.float32 and 0 <= tensor.min() <= tensor.max() <= 1
    assert np.array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert np.array_equal(np.asarray(picture), (array[0] * 255).round().astype("uint8"))
    assert torch.equal(tiny.decode(call("latent")), tensor)


def test_seeds_of_a_call(tiny):
    assert tiny("a cat", seed=8, num_images_per_prompt=2, num_inference_steps=1, progress=False).seeds == [8, 9]
    drawn = [tiny(["a cat", "a dog"], generator=torch.Generator().manual_seed(1), progress=False).seeds for _ in range(2)]
    assert drawn[0] == drawn[1] and drawn[0][0] != drawn[0][1]
    several = [torch.Generator().manual_seed(n) for n in (1, 2)]
    assert tiny(["a cat", "a dog"], generator=several, progress=False).seeds[0] == drawn[0][0]
    a, b = (tiny("a cat", num_inference_steps=1, progress=False).seeds for _ in range(2))
    assert a != b


def test_latents_replace_the_seeds_noise(tiny):
    noise = normal([5], (4, 8, 8), "latents")
    assert torch.equal(pixels(tiny, "a cat", latents=noise, seed=1), pixels(tiny, "a cat", seed=5))
    wide = tiny("a cat", latents=torch.randn(1, 4, 8, 12), progress=False)
    assert wide.images[0].size == (48, 32) and wide.recipes[0].unrecorded == ("latents",)


def test_stochastic_samplers_draw_from_the_seeds(tiny):
    noise = normal([5], (4, 8, 8), "latents").repeat(2, 1, 1, 1)
    for sampler, alike in (("euler", True), ("euler_a", False)):
        first, second = pixels(tiny, ["a cat"] * 2, latents=noise, seeds=[1, 2], sampler=sampler)
        assert torch.allclose(first, second, atol=1e-4) == alike


def test_class_labels_by_number_and_name(class_model):
    generator = Generator.from_pretrained(class_model, device="cpu", dtype="float32")
    assert generator.factor == 1 and generator.autoencoder is None
    by_number = generator(class_labels=[2, 0], seed=1, output_type="pt", progress=False)
    by_name = generator(class_labels=["Goldfish", "cat"], seed=1, output_type="pt", progress=False)
    assert torch.equal(by_number.images, by_name.images) and by_number.recipes == by_name.recipes
    assert by_number.recipes[0].class_label == 2 and by_number.nfe == 8
    unconditional = generator(class_labels=-1, seed=1, output_type="pt", progress=False)
    assert unconditional.nfe == 4 and (unconditional.images[0] - by_number.images[0]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="Did you mean 'goldfish'"):
        generator(class_labels="goldfsh")
    with pytest.raises(ValueError, match="from -1 to 2"):
        generator(class_labels=3)
    with pytest.raises(ValueError, match="give class_labels instead"):
        generator("a cat")


def test_an_unconditional_model_of_pixels(pixel_model):
    generator = Generator.from_pretrained(pixel_model, device="cpu", dtype="float32")
    result = generator(seed=1, num_images_per_prompt=2, output_type="pt", progress=False)
    assert result.images.shape == (2, 3, 8, 8) and result.nfe == 3 and result.recipes[0].class_label is None
    assert generator(seed=1, height=16, width=4, progress=False).images[0].size == (4, 16)
    for wrong in ({"prompt": "a cat"}, {"class_labels": 1}, {"guidance_scale": 2.0}, {"negative_prompt": "x"}):
        with pytest.raises(ValueError, match=r"unconditional|takes no class_labels|reads no text"):
            generator(**wrong)


def replayed(generator, result) -> list[bool]:
    again = [generator.replay(recipe, progress=False) for recipe in result.recipes]
    assert [one.recipes[0] for one in again] == result.recipes
    return [one.images[0].tobytes() == image.tobytes() for one, image in zip(again, result.images, strict=True)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replay_is_identical_whatever_the_batch_was(tiny_model, dtype):
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype=dtype)
    result = generator(PROMPTS, negative_prompt="blurry", seed=11, num_images_per_prompt=2, sampler="euler_a", progress=False)
    assert {recipe.batch.size for recipe in result.recipes} == {8}
    assert all(replayed(generator, result))


@pytest.mark.parametrize("how", [{"sampler": "dpm_adaptive"}, {"cache": "easy", "num_inference_steps": 12}], ids=str)
def test_what_decides_for_itself_is_replayed_too(tiny_model, how):
    """Steps of an adaptive solver and evaluations that a cache spares are a picture's own, and its batch is no part of it."""
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="bfloat16")
    result = generator(PROMPTS, seed=11, progress=False, **how)
    assert all(replayed(generator, result)) and not any(recipe.unrecorded for recipe in result.recipes)
    assert (max(recipe.batch.size for recipe in result.recipes) == 1) == ("sampler" in how)
    shared = generator(PROMPTS[:2], seed=11, sampler="dpm_adaptive", sampler_options={"together": True}, progress=False)
    assert all("pictures beside it" in recipe.unrecorded for recipe in shared.recipes)


def test_replay_of_class_and_interrupted_pictures(class_model, tiny):
    generator = Generator.from_pretrained(class_model, device="cpu", dtype="float32")
    assert all(replayed(generator, generator(class_labels=[1, -1], seed=3, progress=False)))

    def stop(pipe, step, t, tensors):
        pipe.interrupt = step == 1

    result = tiny("a cat", seed=3, callback_on_step_end=stop, progress=False)
    assert result.interrupted and result.recipes[0].stopped_at == 2 and all(replayed(tiny, result))


def test_callbacks_see_every_step_and_leave_the_picture_alone(tiny):
    seen = []

    def watch(pipe, step, t, tensors):
        assert pipe is tiny and tensors["latents"].shape == tensors["denoised"].shape == (1, 4, 8, 8)
        seen.append((step, t))

    names = ("latents", "denoised")
    result = tiny("a cat", seed=3, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names, progress=False)
    assert seen == [(0, 0.75), (1, 0.5), (2, 0.25), (3, 0.0)] and result.recipes[0].unrecorded == ()
    assert result.images[0].tobytes() == tiny("a cat", seed=3, progress=False).images[0].tobytes()


@pytest.mark.parametrize("in_place", [False, True])
def test_callbacks_may_edit_latents(tiny, in_place):
    def clear(pipe, step, t, tensors):
        if step == 3 and in_place:
            tensors["latents"].zero_()
        elif step == 3:
            return {"latents": torch.zeros_like(tensors["latents"])}

    result = tiny("a cat", seed=3, callback_on_step_end=clear, output_type="latent", progress=False)
    assert not result.images.any() and result.recipes[0].unrecorded == ("callback edits",)


def test_interrupt_returns_the_clean_estimate(tiny):
    estimates = []

    def stop(pipe, step, t, tensors):
        estimates.append(tensors["denoised"])
        pipe.interrupt = step == 1

    result = tiny(
        ["a cat"] * 3,
        batch_size=2,
        seed=3,
        callback_on_step_end=stop,
        callback_on_step_end_tensor_inputs=["denoised"],
        output_type="latent",
        progress=False,
    )
    assert result.interrupted and result.seeds == [3, 4] and torch.equal(result.images, estimates[1]) and len(estimates) == 2
    assert not tiny("a cat", num_inference_steps=1, progress=False).interrupted


@pytest.mark.parametrize(
    ("returned", "message"),
    [({"prompt": 1}, "returned \\['prompt'\\]"), (3, "returned int"), ({"latents": torch.zeros(2)}, "must stay")],
)
def test_callbacks_that_return_something_else(tiny, returned, message):
    with pytest.raises(ValueError, match=message):
        tiny("a cat", callback_on_step_end=lambda *_: returned, progress=False)


def test_an_error_in_a_callback_is_the_callers_own(tiny):
    def fail(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tiny("a cat", callback_on_step_end=fail, progress=False)
    tiny("a cat", num_inference_steps=1, progress=False)


def test_batches_that_do_not_fit_are_halved(tiny_model, monkeypatch):
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    expected, forward, sizes = pixels(generator, PROMPTS, seeds=SEEDS), generator.network.forward, []

    def small(x, *rest):
        sizes.append(len(x))
        if len(x) > limit:
            raise torch.OutOfMemoryError("no memory")
        return forward(x, *rest)

    monkeypatch.setattr(generator.network, "forward", small)
    limit = 2
    torch.testing.assert_close(pixels(generator, PROMPTS, seeds=SEEDS), expected, atol=1e-4, rtol=0)
    assert max(sizes) == 6  # three guided pictures at first
    batches = []
    generator(["a cat"] * 3, seed=1, num_inference_steps=1, on_images=batches.append, progress=False)
    assert [batch.seeds for batch in batches] == [[1], [2], [3]]
    limit = 0
    with pytest.raises(ValueError, match="does not fit in the memory of cpu"):
        generator("a cat", progress=False)


def test_finished_batches_are_handed_over_one_by_one(tiny):
    batches = []
    result = tiny(["a cat"] * 3, seed=1, batch_size=2, num_inference_steps=1, on_images=batches.append, progress=False)
    assert [batch.seeds for batch in batches] == [[1, 2], [3]]
    whole = tiny(["a cat"] * 3, seed=1, batch_size=2, num_inference_steps=1, progress=False)
    assert [image.tobytes() for batch in batches for image in batch.images] == [image.tobytes() for image in whole.images]
    assert result.images is None and result.seeds == [1, 2, 3] and len(result.recipes) == 3
    with pytest.raises(ValueError, match="went to on_images"):
        result.save("x.png")


NAN, GENERATOR = float("nan"), torch.Generator()
BAD = [
    ({"prompt": 3}, "prompt is int"),
    ({"prompt": []}, "empty list"),
    ({"prompt": ["a", None]}, r"prompt\[1\] is NoneType"),
    ({"prompt": "x" * 10_001}, "10001 characters"),
    ({"prompt": "a \ud800"}, "half a surrogate pair at position 2"),
    ({"prompt": ["a", "b"], "negative_prompt": ["x", "y", "z"]}, "3 entries where 2"),
    ({"negative_prompt": 1}, "negative_prompt is int"),
    ({"num_inference_steps": 0}, "from 1 to 1000"),
    ({"num_inference_steps": -1}, "from 1 to 1000"),
    ({"num_inference_steps": 10**6}, "from 1 to 1000"),
    ({"num_inference_steps": True}, "not a whole number"),
    ({"num_inference_steps": 10.5}, "not a whole number"),
    ({"num_inference_steps": "10"}, "not a whole number"),
    ({"guidance_scale": NAN}, "guidance_scale is nan"),
    ({"guidance_scale": math.inf}, "guidance_scale is inf"),
    ({"guidance_scale": -1}, "from 0 to 100"),
    ({"guidance_scale": 1e9}, "from 0 to 100"),
    ({"guidance_scale": True}, "guidance_scale is True"),
    ({"guidance_interval": (1.0, -1.0)}, "must be the lower"),
    ({"guidance_interval": (NAN, 1.0)}, "guidance_interval is nan"),
    ({"guidance_interval": 3.0}, "two log-SNR values"),
    ({"height": 30}, "multiple of 8; the nearest allowed: 24 and 32"),
    ({"width": 3}, "nearest allowed: 8"),
    ({"height": 0}, "from 1"),
    ({"height": 10**6}, "megapixels|multiple"),
    ({"height": 8192, "width": 8192}, "67 megapixels"),
    ({"num_images_per_prompt": 0}, "num_images_per_prompt is 0"),
    ({"num_images_per_prompt": 10**9}, "from 1 to 10000"),
    ({"batch_size": 0}, "batch_size is 0"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 1 << 63}, "seed is 9223372036854775808"),
    ({"seed": True}, "seed is True"),
    ({"seed": 1.0}, "not a whole number"),
    ({"seed": (1 << 63) - 1, "num_images_per_prompt": 2}, "leaves no room"),
    ({"seeds": [1, 2]}, "list of 1, one per picture"),
    ({"seeds": 1}, "list of 1"),
    ({"seed": 1, "seeds": [1]}, "seed and seeds are both given"),
    ({"generator": 3}, "torch.Generator"),
    ({"generator": [GENERATOR, GENERATOR]}, "generator is a list of 2"),
    ({"latents": torch.zeros(1, 3, 8, 8)}, r"\(1, 4, h, w\)"),
    ({"latents": torch.zeros(1, 4, 7, 8)}, "height of latents"),
    ({"latents": torch.full((1, 4, 8, 8), NAN)}, "finite"),
    ({"latents": torch.zeros(1, 4, 8, 8), "height": 64}, "latents are for 32 x 32"),
    ({"latents": [1]}, "latents must be a tensor"),
    ({"class_labels": 1}, "takes no class_labels"),
    ({"sampler": "dpmpp_2mm"}, "did you mean 'dpmpp_2m'"),
    ({"sampler_options": {"etta": 1}}, "no option 'etta'"),
    ({"sampler": "ddim", "sampler_options": {"eta": NAN}}, "finite number"),
    ({"sampler_options": 3}, "give a dict"),
    ({"schedule": "karas"}, "did you mean 'karras'"),
    ({"schedule_options": {"rho": [[7]]}}, "finite number"),
    ({"output_type": "jpg"}, "choose one of pil, np, pt, latent"),
    ({"callback_on_step_end": 3}, "cannot be called"),
    ({"callback_on_step_end_tensor_inputs": ["noise"]}, "name some of latents, denoised"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[f"{i}-{next(iter(a))}" for i, (a, _) in enumerate(BAD)])
def test_bad_arguments_are_refused_before_any_work(tiny, monkeypatch, arguments, message):
    monkeypatch.setattr(tiny.network, "forward", lambda *_: pytest.fail("the network ran"))
    with pytest.raises(ValueError, match=message):
        tiny(**{"prompt": "a cat", "progress": False, **arguments})


def test_a_negative_prompt_without_guidance_is_pointed_out(tiny):
    with pytest.warns(UserWarning, match="no effect at guidance_scale 1"):
        tiny("a cat", negative_prompt="blurry", guidance_scale=1.0, num_inference_steps=1, progress=False)


def test_a_saved_model_makes_the_same_pictures(tiny, tmp_path):
    folder = tiny.save_pretrained(tmp_path / "copy")
    copy = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    assert torch.equal(pixels(copy, PROMPTS, seeds=SEEDS), pixels(tiny, PROMPTS, seeds=SEEDS))
    assert copy.weights == tiny.weights and copy.name == "copy" and copy.config == tiny.config
    half = Generator.from_pretrained(tiny.save_pretrained(tmp_path / "half", torch.float16), device="cpu", dtype="float32")
    assert (pixels(half, "a cat", seed=1) - pixels(tiny, "a cat", seed=1)).abs().mean() < 0.01
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "half"]


def test_saving_replaces_models_and_nothing_else(tiny, tmp_path):
    folder = tiny.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="holds a model already"):
        tiny.save_pretrained(folder)
    tiny.save_pretrained(folder, overwrite=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        tiny.save_pretrained(folder, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a model; nothing was written"):
        tiny.save_pretrained(other)
    with pytest.raises(ValueError, match="is not a folder"):
        tiny.save_pretrained(other / "thesis.txt")
    assert sorted(p.name for p in tmp_path.rglob("*.txt")) == ["notes.txt", "thesis.txt"]


def test_a_failed_save_leaves_the_old_model(tiny, tmp_path, monkeypatch):
    folder = tiny.save_pretrained(tmp_path / "model")
    before = (folder / "denoiser" / "model.safetensors").read_bytes()
    monkeypatch.setattr(
        "gen.models.folder.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        tiny.save_pretrained(folder, overwrite=True)
    assert (folder / "denoiser" / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


CONFIG_ERRORS = [
    ({"format": "other"}, "not the config of a fewstep model"),
    ({"version": 2}, "reads version 1"),
    ({"prediction": "magic"}, "prediction"),
    ({"clock": "2000t"}, "clock"),
    ({"path": {"type": "os.system"}}, "path"),
    ({"path": {"type": "variance_preserving", "betas": "cosine", "start": 0.1}}, "cosine betas take steps only"),
    ({"sample_size": True}, "sample_size"),
    ({"sample_size": -8}, "sample_size"),
    ({"latent_scale": 0.0}, "latent_scale"),
    ({"_target_": "os.system"}, "_target_"),
    ({"defaults": {"num_inference_steps": 0}}, "num_inference_steps"),
]


@pytest.mark.parametrize(("change", "message"), CONFIG_ERRORS)
def test_configs_from_outside_are_checked(tiny_model, tmp_path, change, message):
    value = json.loads((tiny_model / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match=message):
        read_model_config(tmp_path)


def test_broken_folders_are_named(tiny_model, tmp_path):
    def opens(folder):
        return pytest.raises(ValueError, match=str(folder))

    with opens(tmp_path):
        Generator.from_pretrained(tmp_path)  # no config
    (tmp_path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="has no denoiser/"):
        Generator.from_pretrained(tmp_path)
    (tmp_path / "denoiser").mkdir()
    config = json.loads((tiny_model / "denoiser" / "config.json").read_text())
    (tmp_path / "denoiser" / "config.json").write_text(json.dumps(config))
    (tmp_path / "denoiser" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        Generator.from_pretrained(tmp_path)
    (tmp_path / "denoiser" / "config.json").write_text(json.dumps(config | {"type": "text_encoder"}))
    with pytest.raises(CheckpointError, match=r"uvit or dit or dimr\b.* is needed here"):
        Generator.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["", "nowhere", "./nowhere", "../x/y", "a/b/c", Path("a/b"), None])
def test_names_that_are_no_model(name):
    with pytest.raises(ValueError, match='give "default"'):
        find_model(name)


def test_hub_models_come_through_the_hubs_client(tiny_model, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name, **_: str(tiny_model / name))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, **k: asked.append((repo, k)) or str(tiny_model))
    name, folder = find_model("someone/model", "v1")
    assert name == "someone/model" and folder == tiny_model
    assert asked == [("someone/model", {"revision": "v1", "allow_patterns": ["*.json", "*.safetensors", "*.md"]})]


def test_an_unreachable_hub_is_a_sentence(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"the hub cannot be reached|cannot be had from the hub"):
        find_model("someone/no-such-model-anywhere")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"type": "rectified_flow"}, RectifiedFlow()),
        ({"type": "variance_exploding", "sigma_max": 50.0}, VarianceExploding(sigma_max=50.0)),
        ({"type": "variance_preserving", "betas": "linear"}, VariancePreserving.linear()),
        ({"type": "variance_preserving", "betas": "cosine", "steps": 100}, VariancePreserving.cosine(100)),
        (
            {"type": "variance_preserving", "betas": "scaled_linear", "zero_terminal_snr": True},
            VariancePreserving.scaled_linear(zero_terminal_snr=True),
        ),
    ],
)
def test_paths_of_a_config(value, kind):
    config = {"path": value, "prediction": "eps", "clock": "t", "sample_size": 8}
    assert model_config(config).path.build() == kind


def test_devices_and_dtypes():
    cpu = torch.device("cpu")
    assert resolve_device("cpu") == cpu and resolve_dtype("bfloat16", cpu) is torch.bfloat16
    assert resolve_dtype(None, cpu) in (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match="Unknown device 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(ValueError, match="Unknown dtype 'int8'"):
        resolve_dtype("int8", cpu)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="not available here"):
            resolve_device("cuda")


def test_sampler_state_stays_float32_in_half_precision(tiny_model):
    generator, kinds = Generator.from_pretrained(tiny_model, device="cpu", dtype="bfloat16"), set()
    generator.network.register_forward_pre_hook(lambda module, inputs: kinds.add(inputs[0].dtype))

    def watch(pipe, step, t, tensors):
        kinds.add(tensors["latents"].dtype)

    image = generator("a cat", seed=1, callback_on_step_end=watch, output_type="pt", progress=False).images
    assert kinds == {torch.bfloat16, torch.float32} and image.dtype == torch.float32


def test_latent_scale_is_undone_before_decoding(tiny_model, tmp_path):
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    config = {**generator.config.model_dump(mode="json", exclude_none=True), "latent_scale": 2.0}
    folder = write_model(tmp_path / "scaled", config, generator.network, generator.autoencoder, generator.text_encoder)
    scaled, latents = Generator.from_pretrained(folder, device="cpu", dtype="float32"), torch.randn(1, 4, 8, 8)
    torch.testing.assert_close(scaled.decode(2 * latents), generator.decode(latents))


def test_output_saves_pictures_with_their_recipes(tiny, tmp_path):
    result = tiny("a cat", num_images_per_prompt=2, num_inference_steps=1, progress=False)
    paths = result.save(tmp_path / "cat.png")
    assert [path.name for path in paths] == ["cat-0.png", "cat-1.png"] and [
        read_recipe(path) for path in paths
    ] == result.recipes
    with pytest.raises(ValueError, match="exists already"):
        result.save(tmp_path / "cat.png")
    with pytest.raises(ValueError, match="Only PIL pictures"):
        tiny("a cat", num_inference_steps=1, output_type="pt", progress=False).save(tmp_path / "x.png")


def test_pictures_are_plain_pil(tiny):
    [picture] = tiny("a cat", num_inference_steps=1, progress=False).images
    assert isinstance(picture, Image.Image) and picture.mode == "RGB" and picture.size == (32, 32)


@pytest.mark.parametrize("negative", ["", "a blurry dog"])
def test_a_network_that_asks_for_it_is_told_the_size(tmp_path, negative):
    """Height, width and height / width in pixels, in both branches of guidance; at another size the picture is another one."""
    text = {"text_tokens": 8, "text_dim": 16, "size_conditions": True}
    network = randomise(build({**UVIT, "type": "dit", "dim": 24, **text}), 1)
    folder = write_model(tmp_path / "sized", CONFIG, network, tiny_autoencoder(), tiny_text_encoder())
    generator = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    seen = []
    generator.network.register_forward_pre_hook(lambda _, args: seen.append(args[2].extra))
    options = {"seed": 1, "height": 16, "width": 32, "progress": False, "num_inference_steps": 1, "negative_prompt": negative}
    generator("a red heart", **options)
    assert seen[0]["size"].tolist() == [[16.0, 32.0]] * 2 and seen[0]["aspect"].tolist() == [[0.5]] * 2


def test_automatic_is_what_the_sampler_runs_on(tiny):
    """DPM2 has Karras, of one step more without the last noisy level; the recipe says for which sampler."""
    made = tiny("a cat", seed=1, num_inference_steps=3, sampler="DPM2 Automatic", progress=False)
    [recipe] = made.recipes
    assert (recipe.sampler, recipe.schedule, recipe.schedule_options) == ("dpm_2", "automatic", {"sampler": "dpm_2"})
    levels = get_grid("karras", tiny.denoiser.path, 4)
    by_hand = tiny("a cat", seed=1, sampler="dpm_2", schedule=(*levels[:-2], levels[-1]), progress=False)
    assert np.array_equal(np.asarray(made.images[0]), np.asarray(by_hand.images[0]))
    again = tiny.replay(Recipe.from_json(recipe.to_json()), progress=False)
    assert again.recipes == made.recipes
