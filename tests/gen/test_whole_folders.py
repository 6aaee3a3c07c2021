"""Folders of pipelines that have no native family: opened by the closed table, and run as a whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gen.cli.app import app
from gen.generator import Generator
from gen.io.weights import CheckpointError
from gen.models.bridge.generic.folder import classes_of, is_whole
from gen.models.bridge.generic.table import WHOLE
from gen.models.bridge.pipeline import PIPELINES, needed_files
from gen.pipeline.png import read_recipe
from tests.gen.pipelines import SIZE, save, stable_diffusion
from tests.gen.whole_editing import EDITING
from tests.gen.whole_pipelines import bria, kandinsky3_texts, opened, pag, picture

BUILDERS = {
    "bria": bria,
    "kandinsky3": kandinsky3_texts,
    "pag": pag,
    **{build.__name__: build for build in EDITING if build.__name__ not in ("kontext", "sd_inpaint")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Any:
    """name -> the folder of a pipeline."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            pipe = (opened(name) if name in ("bria", "pag") else BUILDERS[name]())[0]
            made[name] = save(pipe, tmp_path_factory.mktemp("whole") / name)
        return made[name]

    return of


@pytest.mark.parametrize("name", list(BUILDERS))
def test_a_folder_gives_the_picture_of_its_pipeline(folder, name):
    where, (pipe, call) = folder(name), BUILDERS[name]()
    pipe.set_progress_bar_config(disable=True)
    generator = Generator.from_pretrained(where, device="cpu", dtype="float32")
    result = pipe(generator=torch.Generator().manual_seed(3), num_inference_steps=3, output_type="np", **call)
    keywords = {n: v for n, v in call.items() if n in ("prompt", "negative_prompt", "height", "width", "strength", "image")}
    keywords |= {"mask": call["mask_image"]} if "mask_image" in call else {}
    options = {n: v for n, v in call.items() if n not in keywords and n != "mask_image"}
    made = generator(**keywords, num_inference_steps=3, seed=3, output_type="np", progress=False, pipeline_options=options)
    assert abs(made.images - result.images).max() < 1e-4
    recipe = made.recipes[0]
    assert recipe.unrecorded == () and {"vae", "movq"} & set(recipe.model.weights) and recipe.model.name == name


def test_every_class_of_the_table_is_tested_and_native_families_win(tmp_path):
    tested = {type(build()[0]).__name__ for build in BUILDERS.values()}
    assert tested >= {name for name in WHOLE if name not in PIPELINES}
    where = save(stable_diffusion(), tmp_path / "native")
    assert not is_whole(where) and Generator.from_pretrained(where, device="cpu", dtype="float32").text_encoder is not None


def changed(folder: Path, to: Path, **values: Any) -> Path:
    shutil.copytree(folder, to)
    index = json.loads((to / "model_index.json").read_text())
    (to / "model_index.json").write_text(json.dumps(index | values))
    return to


HOSTILE = {
    "class": ({"_class_name": "EvilPipeline"}, "is a 'EvilPipeline'.*BriaPipeline"),
    "part": ({"transformer": ["os", "system"]}, "gives transformer as os.system"),
    "library": ({"transformer": ["evil", "BriaTransformer2DModel"]}, "gives transformer as evil.BriaTransformer2DModel"),
    "missing": ({"vae": [None, None]}, "has no vae, which a BriaPipeline needs"),
    "remote": ({"custom_pipelines": "x"}, "chooses code to run"),
    "shape": ({"vae": "AutoencoderKL"}, "has vae = 'AutoencoderKL'; a pair such as"),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_a_folder_chooses_no_code(folder, tmp_path, name):
    values, message = HOSTILE[name]
    with pytest.raises(CheckpointError, match=message):
        Generator.from_pretrained(changed(folder("bria"), tmp_path / "bad", **values), device="cpu")


def test_schedulers_and_weights_are_checked(folder, tmp_path):
    bad = changed(folder("bria"), tmp_path / "scheduler")
    config = bad / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({"_class_name": "EvilScheduler"}))
    with pytest.raises(CheckpointError, match="has scheduler 'EvilScheduler'"):
        Generator.from_pretrained(bad, device="cpu")
    bad = changed(folder("bria"), tmp_path / "weights")
    weights = bad / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.bin"))
    with pytest.raises(CheckpointError, match="a pickle file"):
        Generator.from_pretrained(bad, device="cpu")


@pytest.mark.parametrize("options", [{"vae": "x"}, {"native": True}, {"quantize": "int8"}, {"offload": "model"}])
def test_options_of_native_models_are_refused(folder, options):
    with pytest.raises(ValueError, match=r"from_pipeline"):
        Generator.from_pretrained(folder("bria"), device="cpu", dtype="float32", **options)


def test_of_a_repository_only_what_is_needed_is_fetched(folder):
    where = folder("sd_control")
    names = [str(path.relative_to(where)) for path in where.rglob("*") if path.is_file()]
    needed = needed_files([*names, "safety_checker/pytorch_model.bin", "unet/x.msgpack"], classes_of(where))
    assert {"controlnet/diffusion_pytorch_model.safetensors", "unet/config.json", "tokenizer/tokenizer.json"} <= set(needed)
    assert not [name for name in needed if name.endswith((".bin", ".msgpack"))]


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_what_it_needs_in_memory_is_said_as_far_as_it_is_known(folder):
    told = run("info", str(folder("bria")), "--dtype", "float32", "--device", "cpu")
    parts = Generator.from_pretrained(folder("bria"), device="cpu", dtype="float32").network.pipe.components.values()
    size = sum(p.nbytes for part in parts if isinstance(part, torch.nn.Module) for p in part.state_dict().values())
    assert f"runs as a whole, so what it holds beside its {size / 1e6:.1f} MB of weights" in str(told.exception)


def test_the_command_line_makes_and_replays_pictures(folder, tmp_path, monkeypatch):
    """Pictures for the pipeline as files; the same to the last byte from the recipe."""
    monkeypatch.chdir(tmp_path)
    picture().save("edges.png")
    model = ("--model", str(folder("sd_control")))
    usual = (
        "--height",
        str(SIZE),
        "--width",
        str(SIZE),
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--steps",
        "3",
        "--seed",
        "4",
    )
    given = ("--image", "edges.png", "--pipeline-option", "controlnet_conditioning_scale=0.5")
    made = run("image", "a cat", *model, *given, "-o", "cat.png", *usual)
    assert made.exit_code == 0, made.exception
    recipe = read_recipe(tmp_path / "cat.png")
    assert recipe.pipeline.options == {"controlnet_conditioning_scale": 0.5} and set(recipe.pipeline.pictures) == {"image"}
    assert recipe.model.weights.keys() == {"unet", "vae", "text_encoder", "controlnet"}
    again = run("replay", "cat.png", *model, "--image", "edges.png")
    assert again.exit_code == 0 and "Identical to the last byte" in again.output, again.output
    refused = run("replay", "cat.png", *model)
    assert "made with a picture as --image, which is not in its recipe" in str(refused.exception)
    unknown = run("image", "a cat", *model, "--image", "edges.png", "--pipeline-option", "padding=1", *usual)
    assert "takes no 'padding'" in str(unknown.exception)


@pytest.mark.parametrize("prompt", ["a [cat:dog:0.5]", "a [cat|dog]", "a cat AND a dog", "a cat <lora:style:0.7>"])
def test_prompts_that_the_pipeline_reads_as_plain_words_are_said(prompt, recwarn):
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    generator = Generator.from_pipeline(pipe)
    call = {"num_inference_steps": 1, "seed": 0, "progress": False}
    generator("a cat (on [a] mat), and \\[all:that:1\\]", **call)
    assert not [w for w in recwarn if "plain words" in str(w.message)]
    with pytest.warns(UserWarning, match="StableDiffusionPipeline reads its prompts itself.* are plain words"):
        generator(prompt, **call)
