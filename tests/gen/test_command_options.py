"""Options that every command which draws has, and that they reach the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.core import TyperOption

from gen.cli.app import app, main
from gen.cli.headings import ENOUGH, EVERYDAY, HEADINGS, OTHER, heading_of
from gen.pipeline.png import read_recipe

DRAWING = ("image", "sweep", "layout", "ambiguous", "panorama", "outpaint", "upscale", "restore", "batch")


@pytest.mark.parametrize("command", DRAWING)
def test_every_command_that_draws_has_them(command):
    options = {name for one in typer.main.get_command(app).commands[command].params for name in one.opts}
    wanted = {"--quantize", "--offload", "--guidance", "--schedule", "--cache", "--lora", "--lora-dir", "--guidance-option"}
    assert wanted <= options, command


def long_commands() -> dict[str, list]:
    """Commands with many options -> these, with that for help."""
    found = {}
    for name, command in typer.main.get_command(app).commands.items():
        options = [one for one in command.params if isinstance(one, TyperOption)]
        if len(options) >= ENOUGH:
            found[name] = options
    return found


def test_every_option_of_a_long_command_has_a_heading():
    """And the table lists none twice, and none that there is not."""
    listed = [option for options in HEADINGS.values() for option in options]
    assert len(listed) == len(set(listed))
    there = {"--help"}
    for name, options in long_commands().items():
        assert [one.opts for one in options if heading_of(one.opts) == OTHER] == [], name
        there |= {option for one in options for option in one.opts}
    assert set(listed) <= there


def test_help_begins_with_what_most_uses_need(capsys):
    assert main(["image", "--help"]) == 0
    said = capsys.readouterr().out
    headings = [line.removesuffix(":") for line in said.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings[:3] == ["Arguments", EVERYDAY, "What is made"] and len(headings) >= 9
    first = said.split(f"{EVERYDAY}:")[1].split("What is made:")[0]
    assert [option for option in HEADINGS[EVERYDAY] if f"{option} " not in first] == []
    assert [one.opts for one in long_commands()["image"] if not any(f"{name} " in said for name in one.opts)] == []


LAYOUT = "width: 32\nheight: 32\nregions:\n- {prompt: a heart, box: [0, 0, 16, 32]}\n- {prompt: a cat, box: [16, 0, 16, 32]}\n"


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["layout", "l.yaml"], "o.png"),
        (["restore", "p.png", "a cat"], "o.png"),
        (["panorama", "a cat", "--size", "64x32"], "o.png"),
        (["upscale", "p.png", "a cat"], "o.png"),
    ],
)
def test_they_reach_the_recipe(tiny_model, tmp_path, monkeypatch, capsys, arguments, output):
    monkeypatch.chdir(tmp_path)
    Path("l.yaml").write_text(LAYOUT)
    Image.new("RGB", (32, 32), "white").save("p.png")
    options = ["--guidance", "cfg + rescale", "--guidance-option", "factor=0.5", "--schedule", "karras", "--quantize", "int8"]
    code = main([*arguments, *options, "--steps", "4", "-o", output, "--model", str(tiny_model), "--device", "cpu"])
    said = capsys.readouterr()
    assert code == 0, said.err
    recipe = read_recipe(output)
    assert (recipe.guidance, recipe.schedule, recipe.machine.quantize) == ("cfg + rescale", "karras", "int8")


@pytest.mark.parametrize("folder", [3, ["x"], {"a": 1}, b"x"])
def test_a_folder_of_loras_is_a_path(tiny, folder):
    with pytest.raises(ValueError, match=r"lora_dir is .*give the path of a folder"):
        tiny("a cat", lora_dir=folder, num_inference_steps=1, progress=False)
