"""Translators: what scales with the strength, where skip connections join, the task in a run, and the folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gen.cli.app import main
from gen.io.images import read_picture
from gen.io.weights import CheckpointError, read_weights, write_weights
from gen.models.bridge.vae import BridgedAutoencoder
from gen.models.translation.files import as_read, find_direction, open_translator, read_translator_config
from gen.models.translation.network import TranslationBase, TranslationJob
from gen.models.translation.skips import skips_of
from gen.nn.low_rank import LowRankWeight
from gen.nn.replaced_weight import replaced
from gen.pipeline.png import read_recipe
from gen.tasks.translate.options import TranslateKeywords
from gen.tasks.translate.task import Translate
from samplers.denoiser import Context
from samplers.noise import normal
from tests.gen import pipelines
from tests.gen.translators import saved_translator, tiny_translator

CALL = {"seed": 7, "progress": False, "output_type": "pt"}


def pictures(count: int = 2, side: int = 32) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(4)) * 2 - 1


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "in.png"
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(path)
    return path


# ---- changes of weights ----


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv", "strided"])
def test_a_changed_weight_computes_what_the_sum_does(kind, full):
    """For one share, and for one of each sample: the same as every sample by itself."""
    g = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    weight = normal(6, 4) if kind == "linear" else normal(6, 4, 3, 3)
    width = weight[0].numel()
    down, up = (normal(6, width), None) if full else (normal(2, width), normal(6, 2))
    x, bias = (normal(3, 5, 4) if kind == "linear" else normal(3, 4, 7, 7)), normal(6)

    def run(x, weight):
        if kind == "linear":
            return F.linear(x, weight, bias)
        return F.conv2d(x, weight, bias, stride=2 if kind == "strided" else 1, padding=1)

    dense = (down if up is None else up @ down).view(weight.shape)
    shares = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    for share in shares.tolist():
        torch.testing.assert_close(run(x, LowRankWeight.of(weight, down, up, share)), run(x, weight + share * dense))
        torch.testing.assert_close(LowRankWeight.of(weight, down, up, share).whole(), weight + share * dense)
    each = torch.cat([run(x[i : i + 1], weight + share * dense) for i, share in enumerate(shares)])
    torch.testing.assert_close(run(x, LowRankWeight.of(weight, down, up, shares)), each)
    with pytest.raises(ValueError, match="Samples have changes of their own"):
        LowRankWeight.of(weight, down, up, shares).whole()


def test_weights_are_put_back_whatever_happens(tiny):
    translator = tiny_translator(tiny)
    before = {name: value.clone() for name, value in tiny.network.state_dict().items()}
    parameters = dict(tiny.network.named_parameters())
    with pytest.raises(RuntimeError), replaced(tiny.network, translator.denoiser.weights(tiny.network)):
        assert any(isinstance(value, LowRankWeight) for value in tiny.network.parameters())
        raise RuntimeError
    assert all(value is parameters[name] for name, value in tiny.network.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in tiny.network.state_dict().items())


# ---- skip connections ----


def test_skips_join_the_same_resolutions_of_our_autoencoder(tiny):
    """Pictures of 32 pixels, latents of 8: into the coarsest level, and into full resolution, from the picture itself."""
    skips = skips_of(tiny.autoencoder)
    latents, maps = skips.encode(pictures())
    assert torch.equal(latents, tiny.autoencoder.encode(pictures()))
    assert [tuple(one.shape[1:]) for one in maps] == [(8, 8, 8), (3, 32, 32)] and torch.equal(maps[1], pictures())
    added = [torch.randn(2, width, *one.shape[-2:]) for (_, width), one in zip(skips.widths, maps, strict=True)]
    layers = list(tiny.autoencoder.decoder)
    x = layers[0](latents) + added[0]
    for layer in layers[1:-2]:
        x = layer(x)
    by_hand = layers[-1](layers[-2](x + added[1])) + F.pixel_shuffle(tiny.autoencoder.decoder_skip(latents), 4)
    torch.testing.assert_close(skips.decode(latents, added), by_hand)
    assert torch.equal(skips.decode(latents, [torch.zeros_like(one) for one in added]), tiny.autoencoder.decode(latents))


@torch.no_grad()
def test_skips_join_the_blocks_of_diffusers_autoencoder():
    """As the published code has it: what enters a block on the way down, added to what enters its counterpart."""
    vae = pipelines.vae(4, scaling_factor=0.5, shift_factor=0.25)
    ours = BridgedAutoencoder(vae)
    skips = skips_of(ours)
    images = pictures(2, 16)
    latents, maps = skips.encode(images)
    assert torch.equal(latents, ours.encode(images))
    seen, x = [], vae.encoder.conv_in(images)
    for block in vae.encoder.down_blocks:
        seen.append(x)
        x = block(x)
    assert all(torch.equal(one, other) for one, other in zip(maps, reversed(seen), strict=True))
    convolutions = [torch.nn.Conv2d(shown, joined, 1, bias=False) for shown, joined in skips.widths]
    added = [convolution(one) for convolution, one in zip(convolutions, maps, strict=True)]
    z = latents / 0.5 + 0.25
    x = vae.decoder.conv_in(z if vae.post_quant_conv is None else vae.post_quant_conv(z))
    x = vae.decoder.mid_block(x)
    for block, one in zip(vae.decoder.up_blocks, added, strict=True):
        x = block(x + one)
    by_hand = vae.decoder.conv_out(vae.decoder.conv_act(vae.decoder.conv_norm_out(x)))
    torch.testing.assert_close(skips.decode(latents, added), by_hand, atol=1e-6, rtol=1e-5)
    assert torch.equal(skips.decode(latents, [torch.zeros_like(one) for one in added]), ours.decode(latents))


def test_other_autoencoders_have_no_place_for_them():
    with pytest.raises(ValueError, match="no autoencoder; choose another model"):
        skips_of(None)


# ---- one step ----


@torch.no_grad()
def test_without_changes_and_skips_it_is_encode_one_step_decode(tiny):
    translator = tiny_translator(tiny, seed=None)
    for coder in translator.coders.values():
        for skip in coder.skips:
            skip.weight.zero_()
    condition = tiny.encode_prompt(["a cat", "a dog"])
    ((made, back),) = translator(TranslationJob("icon", pictures(), condition))
    z = tiny.autoencoder.encode(pictures())
    level = translator.base.level
    x0 = tiny.config.denoiser(tiny.network)(level.sigma * z, level, condition, Context()).x0
    assert back is None and torch.equal(made, tiny.autoencoder.decode(x0))


@torch.no_grad()
def test_at_strength_0_it_is_the_model_and_at_others_all_that_is_published_scales(tiny):
    """Through the parts: LoRAs, skips and input at r are those of weights scaled by r, for every sample its own r."""
    translator = tiny_translator(tiny)
    condition, noise = tiny.encode_prompt(["a cat"] * 2), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    strength = torch.tensor([0.0, 0.4])
    ((both, _),) = translator(TranslationJob("outline", pictures(), condition, strength, noise))
    level = translator.base.level
    plain = tiny.config.denoiser(tiny.network)(level.sigma * noise, level, condition, Context()).x0
    torch.testing.assert_close(both[:1], tiny.autoencoder.decode(plain)[:1], atol=1e-5, rtol=1e-5)

    scaled = tiny_translator(tiny)
    for name, parameter in scaled.named_parameters():
        if ".up." in name or ".full." in name or ".skips." in name:
            parameter.mul_(0.4)
    z, maps = scaled.encode("outline", pictures())
    with replaced(tiny.network, scaled.denoiser.weights(tiny.network)):
        x = level.sigma * (0.4 * z + 0.6 * noise)
        x0 = tiny.config.denoiser(tiny.network)(x, level, condition, Context()).x0
    torch.testing.assert_close(both[1:], scaled.decode("outline", x0, maps)[1:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="needs noise"):
        translator(TranslationJob("icon", pictures(), condition, 0.5))


@torch.no_grad()
def test_back_again_is_a_translation_of_a_translation(tiny):
    translator, condition = tiny_translator(tiny), tiny.encode_prompt(["a cat"] * 2)
    ((there, back),) = translator(TranslationJob("icon", pictures(), condition, back=("outline", condition)))
    ((again, _),) = translator(TranslationJob("outline", there, condition))
    assert torch.equal(back, again)


def test_lines_are_dark_on_light_whichever_way_they_were_drawn():
    lines = torch.ones(1, 3, 8, 8)
    lines[..., 3] = -1
    assert torch.equal(as_read(lines, "lines"), lines) and torch.equal(as_read(-lines, "lines"), lines)
    assert as_read(lines, "picture") is lines


# ---- in a run ----


@torch.no_grad()
@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_the_task_is_the_network_that_trained(tiny, tmp_path, picture, strength):
    folder = saved_translator(tiny, tmp_path / "translator")
    made = tiny.translate(picture, "a dog", translator=folder, strength=strength, num_images_per_prompt=2, **CALL)
    source = read_picture("picture", picture, "RGB") * 2 - 1
    noise = normal(made.seeds, (4, 8, 8), "latents")
    job = TranslationJob(
        "icon", as_read(source, "lines").expand(2, -1, -1, -1), tiny.encode_prompt(["a dog"] * 2), strength, noise
    )
    ((by_hand, _),) = tiny_translator(tiny)(job)
    torch.testing.assert_close(made.images, (by_hand / 2 + 0.5).clamp(0, 1), atol=2e-5, rtol=1e-4)
    assert made.recipes[0].num_inference_steps == 1 and made.recipes[0].translation.strength == strength
    assert tiny.adapters == {}  # what it changes acts in its own runs alone


def test_a_call_that_says_no_steps_takes_one(tiny, tmp_path, picture):
    """Though the model's own default is another."""
    folder = saved_translator(tiny, tmp_path / "translator")
    assert tiny.config.defaults.num_inference_steps != 1
    made = tiny("a dog", translate=picture, translator=folder, guidance_scale=1.0, **CALL)
    assert torch.equal(made.images, tiny.translate(picture, "a dog", translator=folder, **CALL).images)


def test_at_strength_0_the_picture_is_the_models_own(tiny, tmp_path, picture):
    folder = saved_translator(tiny, tmp_path / "translator")
    plain = tiny("a dog", num_inference_steps=1, guidance_scale=1.0, **CALL)
    made = tiny.translate(picture, "a dog", translator=folder, strength=0.0, **CALL)
    assert torch.equal(made.images, plain.images)


def test_a_direction_may_have_a_prompt_of_its_own(tiny, tmp_path, picture):
    folder = saved_translator(tiny, tmp_path / "translator")
    told = tiny.translate(picture, "a dog", translator=folder, direction="outline", **CALL)
    other = tiny.translate(picture, "a heart", translator=folder, direction="outline", **CALL)
    assert torch.equal(told.images, other.images)
    icon, another = (tiny.translate(picture, prompt, translator=folder, **CALL).images for prompt in ("a dog", "a heart"))
    assert not torch.equal(icon, another)


def test_a_recipe_makes_the_picture_again(tiny, tmp_path, picture):
    folder = saved_translator(tiny, tmp_path / "translator")
    made = tiny.translate(picture, "a dog", translator=folder, strength=0.5, **CALL)
    again = tiny.replay(made.recipes[0], "pt", progress=False, translate=picture, translator=folder)
    assert torch.equal(made.images, again.images)
    other = saved_translator(tiny, tmp_path / "other", seed=9)
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    for given, says in (
        ({}, "was translated from another"),
        ({"translate": tmp_path / "red.png", "translator": folder}, "This picture is not the one"),
        ({"translate": picture, "translator": other}, "This translator is not the one"),
    ):
        with pytest.raises(ValueError, match=says):
            tiny.replay(made.recipes[0], "pt", progress=False, **given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"direction": "icom"}, "did you mean 'icon'"),
        ({"strength": 1.5}, "translate_strength"),
        ({"num_inference_steps": 4}, "one step without guidance"),
        ({"translator": "nowhere"}, "is no folder here"),
        ({"hires": 2.0}, "hires goes without translation"),
    ],
)
def test_what_is_refused(tiny, tmp_path, picture, given, says):
    folder = saved_translator(tiny, tmp_path / "translator")
    with pytest.raises(ValueError, match=says):
        tiny.translate(picture, "a dog", **{"translator": folder, **given}, **CALL)
    with pytest.raises(ValueError, match="one step, and 4 are asked for"):
        tiny("a dog", translate=picture, translator=folder, num_inference_steps=4, **CALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is no translator: it has no config"):
        tiny.translate(picture, "a dog", translator=tmp_path / "empty", **CALL)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        tiny.translate(picture, "a dog", translator=folder, **CALL)
    with pytest.raises(ValueError, match="without a picture to translate"):
        tiny("a dog", translator=folder, **CALL)


def test_an_offloaded_model_translates_nothing():
    """Its autoencoder would come to the device with weights that are put back afterwards."""
    model = SimpleNamespace(offload="model", device=torch.device("cuda"))
    with pytest.raises(ValueError, match="open it without offload"):
        Translate.from_call(model, TranslateKeywords("a.png"), SimpleNamespace(steps=1))


def test_the_command_translates_a_folder(tiny, tiny_model, tmp_path, picture, monkeypatch, capsys):
    folder = saved_translator(tiny, tmp_path / "translator")
    (tmp_path / "many").mkdir()
    for name in ("b.png", "a.jpg", "c.tif"):
        Image.open(picture).save(tmp_path / "many" / name)
    given = ["--model", str(folder), "--base", str(tiny_model), "--device", "cpu", "--dtype", "float32"]
    code = main(["translate", str(tmp_path / "many"), *given, "--grid", str(tmp_path / "g.png"), "-o", str(tmp_path / "out")])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert [line.rpartition("/")[2] for line in said.out.split()] == ["a-icon-0.png", "b-icon-0.png", "c-icon-0.png", "g.png"]
    assert read_recipe(tmp_path / "out" / "a-icon-0.png").translation.direction == "icon"
    for bad, words in (
        (["translate", "gone.png", *given], "gone.png does not exist"),
        (["translate", str(tmp_path / "many"), *given, "-o", str(tmp_path / "one.png")], "give a folder with -o"),
        (["translate", str(picture), "--strength", "7", *given], "--strength is 7.0"),
        (["translate", str(picture), "--model", str(folder)], "give that model's folder or id with --base"),
    ):
        assert main(bad) == 2 and words in capsys.readouterr().err


# ---- the folder ----


def test_a_folder_opens_as_it_was_saved(tiny, tmp_path):
    folder = saved_translator(tiny, tmp_path / "translator")
    base = TranslationBase(tiny.config, tiny.network, tiny.autoencoder)
    opened, saved = open_translator(folder, base, dict(tiny.weights)), tiny_translator(tiny)
    assert opened.config == saved.config and not any(one.requires_grad for one in opened.parameters())
    state = saved.state_dict()
    assert state.keys() == opened.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in opened.state_dict().items())
    assert find_direction(opened.config, None).name == "icon"


def test_a_sheet_shows_drawings_as_they_are_read(tmp_path):
    """What is transparent is paper, as for the network."""
    from gen.tasks.translate.cli import sheet_rows

    Image.new("RGBA", (4, 4)).save(tmp_path / "a.png")
    made = SimpleNamespace(images=[Image.new("RGB", (8, 8))], seeds=[0])
    before, caption = sheet_rows(tmp_path / "a.png", made, "icon")[0]
    assert (before.size, before.getpixel((3, 3)), caption) == ((8, 8), (255, 255, 255), "a")


def _with_config(folder, **changes):
    value = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**value, **changes}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "fewstep"}, "the config of a model, not a translator"),
        ({"format": 1}, "the config of no translator"),
        ({"code": "import os"}, "code"),
        ({"version": 2}, "version"),
        ({"rank": 4000}, "does not fit Translator"),
        ({"weights": {"denoiser": "0" * 64}}, "trained on another denoiser"),
        ({"directions": []}, "directions"),
        ({"directions": [{"name": "a"}, {"name": "a"}]}, "a name of its own"),
        ({"directions": [{"name": "train"}]}, "cannot be named 'train'"),
        ({"layers": {"denoiser": ["__class__"]}}, "no linear layer"),
        ({"layers": {"denoiser": ["blocks"]}}, "no linear layer"),
        ({"gamma": float("nan")}, "gamma|NaN"),
    ],
)
def test_damaged_and_hostile_configs_are_refused(tiny, tmp_path, changes, says):
    folder = saved_translator(tiny, tmp_path / "translator")
    _with_config(folder, **changes)
    base = TranslationBase(tiny.config, tiny.network, tiny.autoencoder)
    with pytest.raises(CheckpointError, match=says):
        open_translator(folder, base, dict(tiny.weights))


def test_damaged_weights_are_refused(tiny, tmp_path):
    folder = saved_translator(tiny, tmp_path / "translator")
    base = TranslationBase(tiny.config, tiny.network, tiny.autoencoder)
    whole = read_weights(folder / "model.safetensors")
    name = next(iter(whole))
    for state in ({key: value for key, value in whole.items() if key != name}, {**whole, "more": torch.zeros(1)}):
        write_weights(folder / "model.safetensors", state)
        with pytest.raises(CheckpointError):
            open_translator(folder, base)
    assert read_translator_config(folder).model == "tiny"


# ---- the shipped one ----


def test_the_shipped_translator_fills_a_drawing(tmp_path, monkeypatch, capsys):
    """The inside has the prompt's colour, and the paper stays white."""
    drawing = str(Path(__file__).parents[2] / "docs" / "examples" / "cat_edges.png")
    monkeypatch.chdir(tmp_path)
    for number, colour in ((0, "red"), (2, "blue")):
        assert main(["translate", drawing, "--prompt", f"a {colour} cat", "--device", "cpu", "-o", f"{colour}.png"]) == 0
        made = read_picture("picture", f"{colour}.png", "RGB")[0]
        inside = made[:, 85:92, 50:56].mean((1, 2))
        assert inside.argmax() == number and inside.mean() < 0.75 and made[:, :10].min() > 0.8
    capsys.readouterr()
