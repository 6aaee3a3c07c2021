"""Calls as plain data: what they hold and refuse, and that their Python and command line make the same file to the byte."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import shlex
from pathlib import Path

import pytest
from PIL import Image

from gen import Generator, Recipe, read_recipe
from gen.adapters import Adapter, write_adapter
from gen.calls.call import AdapterUse, Call
from gen.calls.command import COMMANDS, as_arguments, as_command
from gen.calls.keywords import FOLDERS, IMAGE, MAPPED, NAMES_ONLY, OWN, PICTURES, TENSORS, WITH_FILES, files_in
from gen.calls.run import run
from gen.calls.script import as_python
from gen.calls.values import parse_options, write_options
from gen.cli.app import main
from gen.pipeline.task_table import METHODS
from gen.tasks.restore.task import COMMON
from gen.tasks.restore.task import TASKS as RESTORATIONS
from gen.tasks.table import TASKS
from tests.gen.test_adapters_generator import DENOISER, TEXT, lora

RUNTIME = {  # of `Generator.__call__`: what is no plain data, or belongs to who calls
    *("self", "generator", "latents", "output_type", "callback_on_step_end", "callback_on_step_end_tensor_inputs"),
    *("progress", "on_images", "_task_args", "_check_only", "tasks"),
}


@pytest.fixture
def tiny(tiny_model) -> Generator:
    return Generator.from_pretrained(tiny_model)


@pytest.fixture
def loras(tmp_path) -> tuple[AdapterUse, ...]:
    """Two files of one name, with different weights in them."""
    uses = []
    for seed, layers in enumerate((DENOISER, (*DENOISER, *TEXT))):
        path = tmp_path / str(seed) / "style.safetensors"
        path.parent.mkdir()
        write_adapter(Adapter("style", lora(seed, *layers)), path, "diffusers" if seed else "kohya")
        uses.append(AdapterUse(str(path), 0.5 + seed))
    return tuple(uses)


@pytest.fixture
def picture(tmp_path) -> str:
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(tmp_path / "in.png")
    return str(tmp_path / "in.png")


def saved(call: Call, generator: Generator, path: Path) -> bytes:
    run(call, generator).save(path)
    return path.read_bytes()


def command(arguments: list[str], folder: Path) -> None:
    """The command line, in the folder."""
    with contextlib.chdir(folder):
        assert main(arguments) == 0


def test_the_keywords_are_those_of_a_generator():
    parameters = set(inspect.signature(Generator.__call__).parameters)
    assert set(IMAGE) == parameters - RUNTIME
    assert set(OWN) == {"image", *METHODS}
    for method in OWN.keys() - {"image", "restore", "layout"}:
        own = set(inspect.signature(METHODS[method].load_method(method)).parameters)
        assert set(OWN[method]) == own - {"generator", "group", "call", "prompt", "height", "width", "low"}, method
    assert set(OWN["restore"]) == {"image", "task", "mask", *COMMON, *(name for row in RESTORATIONS.values() for name in row)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"promt": "a"}, "did you mean 'prompt'"),
        ({"seed": float("nan")}, "finite"),
        ({"prompt": object()}, "no plain value"),
        ({"guide": "evil.py:run"}, "Files of code"),
        ({"greedy": "evil.py:run"}, "Files of code"),
        ({"image": 3}, "path of a file"),
        ({"layout": "/etc/passwd"}, "A file of them is not read"),
        ({"regions": {"a": 1}}, "path of a file for each"),
        ({"sampler_options": {"a": [[[[[[[1]]]]]]]}}, "flatter"),
        ({"prompt": "x" * 1_000_001}, "shorter"),
        ({"latents": [1]}, "takes no 'latents'"),
    ],
)
def test_what_no_call_can_have_is_refused_in_a_sentence(arguments, words):
    with pytest.raises(ValueError, match=words) as refusal:
        Call(arguments)
    assert len(str(refusal.value)) < 400


def test_a_call_survives_json(loras, picture):
    call = Call({"prompt": "a cat", "image": [picture], "guidance_interval": (-5.0, 2), "seed": None}, "image", loras, "fast")
    assert "seed" not in call.arguments and call.arguments["guidance_interval"] == [-5.0, 2]
    assert Call.from_dict(json.loads(json.dumps(call.to_dict()))) == call
    assert list(call.files()) == [Path(picture), *(Path(use.file) for use in loras)]
    assert list(files_in({"negtome": "batch", "regions": {"a": "m.png"}, "controlnet": "c"})) == [Path("m.png"), Path("c")]
    for damaged in ([], {"call": 1}, {"adapters": [1]}, {"adapters": [{"file": "a", "code": 1}]}, {"method": "__init__"}):
        with pytest.raises(ValueError):
            Call.from_dict(damaged)


def test_options_come_back_as_they_were_written():
    options = {"a": 0.1, "b": 3, "c": True, "d": "text", "e": [1, 2.5], "f": -1e-7, "g": 1.0}
    assert parse_options(write_options(options)) == options
    assert [type(value) for value in parse_options(write_options(options)).values()] == [type(v) for v in options.values()]
    for value in ("5", "true", "1,2", None, {"a": 1}, [], [[1, 2], [3, 4]]):
        with pytest.raises(ValueError, match="cannot be typed"):
            write_options({"a": value})


def test_python_and_command_make_the_same_file(tiny, tiny_model, loras, picture, tmp_path):
    """One call with much in it: byte-equal, so the recipe in it is equal too."""
    arguments = {
        "prompt": '- a (red:1.2) heart\'s "cat"\n$HOME `x` \\',
        "negative_prompt": "-blurry",
        "seed": 7,
        "num_inference_steps": 3,
        "sampler": "euler_a",
        "sampler_options": {"eta": 0.5},
        "schedule": "karras",
        "schedule_options": {"rho": 5.0},
        "guidance_scale": 2.5,
        "guidance": "apg + rescale",
        "guidance_options": {"momentum": -0.25},
        "guidance_interval": [-6.0, 4.0],
        "cache": "reuse",
        "cache_options": {"stride": 2},
        "image": picture,
        "strength": 0.9,
        "batch_size": 1,
        "batch_invariant": True,
        "use_resolution_binning": False,
        "guide": "colour",
        "guide_options": {"colour": "red"},
        "composition": "switch",
    }
    call = Call(arguments, adapters=loras, model=str(tiny_model))
    made = saved(call, tiny, tmp_path / "run.png")
    exec(compile(as_python(call, str(tmp_path / "script.png")), "script", "exec"), {})
    assert (tmp_path / "script.png").read_bytes() == made
    line = as_command(call, str(tmp_path / "line.png"))
    assert shlex.split(line)[0] == "fewstep"
    command(shlex.split(line)[1:], tmp_path)
    assert (tmp_path / "line.png").read_bytes() == made
    recipe = read_recipe(tmp_path / "run.png")
    assert list(recipe.adapters) == ["style", "style-2"] and recipe.prompt == arguments["prompt"]


@pytest.mark.parametrize(
    "call",
    [
        Call({"prompt": "a cat", "width": 64, "height": 32, "window": [32, 32], "circular": "horizontal"}, "panorama"),
        Call({"prompt": "a cat", "image": "P", "left": 8, "recurrence": 2}, "outpaint"),
        Call({"prompt": "a cat", "image": "P", "scale": 2.0, "strength": 0.5}, "upscale"),
        Call({"prompt": "a cat", "image": "P", "task": "inpaint", "mask": "P", "noise": 0.1}, "restore"),
    ],
    ids=lambda call: call.method,
)
def test_other_methods_have_their_commands(call, tiny, tiny_model, picture, tmp_path):
    named = {name: picture if value == "P" else value for name, value in call.arguments.items()}
    call = dataclasses.replace(call, arguments={**named, "seed": 1, "num_inference_steps": 2}, model=str(tiny_model))
    made = saved(call, tiny, tmp_path / "run.png")
    exec(compile(as_python(call, str(tmp_path / "script.png")), "script", "exec"), {})
    assert (tmp_path / "script.png").read_bytes() == made
    command(as_arguments(call, str(tmp_path / "line.png")), tmp_path)
    assert Image.open(tmp_path / "line.png").tobytes() == Image.open(tmp_path / "run.png").tobytes()
    assert read_recipe(tmp_path / "line.png") == read_recipe(tmp_path / "run.png")


def test_a_format_and_its_quality_are_said_in_both(tiny, tiny_model, tmp_path):
    call = Call({"prompt": "a cat", "seed": 1, "num_inference_steps": 1}, model=str(tiny_model))
    run(call, tiny).save(tmp_path / "run.webp", quality=40)
    made = (tmp_path / "run.webp").read_bytes()
    exec(compile(as_python(call, str(tmp_path / "script.webp"), quality=40), "script", "exec"), {})
    command(as_arguments(call, str(tmp_path / "line.webp"), 40), tmp_path)
    assert (tmp_path / "script.webp").read_bytes() == (tmp_path / "line.webp").read_bytes() == made
    with pytest.raises(ValueError, match="'upscale' has no option for quality"):
        as_arguments(Call({"image": "a.png"}, "upscale"), "a.webp", 40)


def test_every_command_is_one_of_fewstep_and_the_rest_is_refused():
    from typer.main import get_command

    from gen.cli.app import app

    program = get_command(app)
    for method in COMMANDS:
        options = {name for parameter in program.commands[method].params for name in parameter.opts}
        for name in ("--seed", "--model", "--output", "--number", "--steps"):
            assert name in options
    for call in (Call({"seeds": [1, 2]}), Call({"prompt": "a", "others": "b"}, "ambiguous"), Call({"height": 9}, "panorama")):
        with pytest.raises(ValueError):
            as_command(call)
    with pytest.raises(ValueError, match="no way to say negative_prompt"):
        as_command(Call({"negative_prompt": ["a", "b"]}))


def test_adapters_of_another_call_leave_no_trace(tiny, tiny_model, loras, tmp_path):
    plain = Call({"prompt": "a cat", "seed": 1, "num_inference_steps": 2})
    styled = dataclasses.replace(plain, adapters=loras[:1])
    swapped = dataclasses.replace(plain, adapters=loras[::-1])
    fresh = [
        saved(call, Generator.from_pretrained(tiny_model), tmp_path / f"{i}.png")
        for i, call in enumerate((plain, styled, swapped))
    ]
    order = [1, 0, 2, 1, 1, 2, 0]
    again = [saved((plain, styled, swapped)[i], tiny, tmp_path / f"again-{k}.png") for k, i in enumerate(order)]
    assert again == [fresh[i] for i in order]
    assert len(set(fresh)) == 3
    weaker = dataclasses.replace(plain, adapters=(dataclasses.replace(loras[0], weight=0.25),))
    run(styled, tiny)
    said: list[str] = []
    assert run(weaker, tiny, say=said.append).recipes[0].adapters == {"style": 0.25}
    assert said == []  # it was loaded already
    Path(loras[0].file).write_bytes(Path(loras[1].file).read_bytes())
    assert run(weaker, tiny, say=said.append).recipes[0].adapters == {"style": 0.25}
    assert len(said) == 1  # the file has changed, so it was read again


def test_a_recipe_becomes_a_call_that_makes_the_picture_again(tiny, tiny_model, loras, tmp_path):
    asked = {
        "prompt": "a red heart",
        "negative_prompt": "blurry",
        "seed": 3,
        "num_inference_steps": 3,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
        "guidance": "apg",
        "guidance_options": {"eta": 0.5},
        "guide": "colour",
        "guide_options": {"colour": "red"},
        "composition": "composite",
    }
    call = Call(asked, adapters=loras, model=str(tiny_model))
    made = run(call, tiny)
    recipe = made.recipes[0]
    files = {sha: Path(use.file) for sha, use in zip((recipe.adapter_files or {}).values(), loras, strict=True)}
    again, missing = Call.from_recipe(recipe, files)
    assert missing == () and again.adapters == loras and again.model == "tiny"
    assert run(again, tiny).recipes[0].to_json() == recipe.to_json()
    assert run(again, tiny).images[0].tobytes() == made.images[0].tobytes()
    _, missing = Call.from_recipe(recipe)
    assert missing == ("the adapter 'style'", "the adapter 'style-2'")


def test_a_variation_and_a_second_pass_come_back_from_a_recipe(tiny, tiny_model):
    asked = {"prompt": "a cat", "seed": 3, "num_inference_steps": 3, "variation_seed": 9, "variation_strength": 0.5}
    call = Call({**asked, "hires": 2.0, "hires_steps": 2, "hires_strength": 0.7}, model=str(tiny_model))
    made = run(call, tiny)
    again, missing = Call.from_recipe(made.recipes[0])
    assert missing == () and run(again, tiny).recipes[0].to_json() == made.recipes[0].to_json()


def test_every_keyword_that_may_be_a_file_is_known_as_one():
    """What may hold anything is a picture's file, a folder, a name, or one of these, which open nothing."""
    harmless = {"layout", "aesthetic", "guide", "greedy", "ip_adapter_scale", "ip_adapter_range", *TENSORS}
    known = {*PICTURES, *FOLDERS, *MAPPED, *NAMES_ONLY, *WITH_FILES, *harmless}
    for name, row in TASKS.items():
        of = row.options.arguments
        for one in dataclasses.fields(of) if of is not None else ():
            if "Any" in str(one.type) and "Mapping" not in str(one.type) and one.name in row.options.keywords:
                assert one.name in known, (name, one.name)
    nested = Call({"ip_adapter_image": [["a.png"], ["b.png", "c.png"]], "ip_adapter": "f.safetensors"})
    assert [str(path) for path in nested.files()] == ["a.png", "b.png", "c.png", "f.safetensors"]
    options = Call(
        {
            "pipeline_options": {"image": ["a.png", "/etc/passwd"], "size": 3},
            "guide_options": {"text": "a cat", "image": "b.PNG"},
        }
    )
    assert [str(path) for path in options.files()] == ["a.png", "/etc/passwd", "b.PNG"]


def test_what_a_recipe_knows_by_its_sha_alone_is_said(tiny, picture):
    recipe = tiny("a cat", image=picture, num_inference_steps=2, seed=1, progress=False).recipes[0]
    call, missing = Call.from_recipe(Recipe.from_json(recipe.to_json()))
    assert missing == ("the picture it began with",) and "image" not in call.arguments


def test_a_class_model_is_asked_for_classes(class_model, tmp_path):
    generator = Generator.from_pretrained(class_model)
    call = Call({"class_labels": "dog", "seed": 1, "num_inference_steps": 2}, model=str(class_model))
    made = saved(call, generator, tmp_path / "run.png")
    command(as_arguments(call, str(tmp_path / "line.png")), tmp_path)
    assert (tmp_path / "line.png").read_bytes() == made
    again, missing = Call.from_recipe(read_recipe(tmp_path / "run.png"))
    assert again.arguments["class_labels"] == 1 and "prompt" not in again.arguments and not missing
