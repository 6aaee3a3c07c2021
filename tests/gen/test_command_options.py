"""Options that every command which draws has, and that they reach the recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from PIL import Image

from gen.cli.app import app, main
from gen.pipeline.png import read_recipe

DRAWING = ("image", "sweep", "layout", "ambiguous", "panorama", "outpaint", "upscale", "restore", "batch")


@pytest.mark.parametrize("command", DRAWING)
def test_every_command_that_draws_has_them(command):
    options = {name for one in typer.main.get_command(app).commands[command].params for name in one.opts}
    wanted = {"--quantize", "--offload", "--guidance", "--schedule", "--cache", "--lora", "--lora-dir", "--guidance-option"}
    assert wanted <= options, command


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
