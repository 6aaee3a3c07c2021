"""The programs in docs/examples, on a tiny model."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.mark.filterwarnings("ignore:A prompt is longer")
def test_a_cube_is_painted_and_shown_from_its_corner(tiny):
    cube = runpy.run_path(str(EXAMPLES / "cube.py"))
    strip = cube["paint"](tiny, 0, steps=1)
    assert strip.shape == (1, 3, 32, 6 * 32) and len(torch.stack(strip.chunk(6, dim=3)).flatten(1).unique(dim=0)) == 6
    colours = torch.arange(1.0, 7).repeat_interleave(8).reshape(1, 1, 1, 48).expand(1, 3, 8, 48) / 10
    seen = cube["corner"](colours, 120)[0, 0]
    front, right, top = 0.92 * 0.1, 0.82 * 0.2, 1.0 * 0.5
    for row, column, value in ((75, 50, front), (75, 70, right), (45, 60, top), (2, 2, 1.0)):
        assert abs(seen[row, column].item() - value) < 1e-6
    assert len(seen.unique()) == 4  # three faces and the ground behind them
    # a mark at the front's upper right, the right's upper left and the top's lower right is the corner in the middle
    marks = torch.zeros(1, 3, 8, 48)
    marks[..., 0, 7] = marks[..., 0, 8] = marks[..., 7, 4 * 8 + 7] = 1
    middle = cube["corner"](marks, 120)[0, 0]
    assert (middle[58:62, 58:62] > 0.8).all()


def example(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


def test_solvers_and_guidance_rules_are_drawn_side_by_side(tiny):
    sheet = example("solvers")["make"](tiny, ("euler", "heun"), (1, 2))
    assert sheet.width > 2 * 32 and sheet.height > 2 * 32
    sheet = example("guidance")["make"](tiny, ("cfg", "apg"), (1.0, 3.0), steps=1)
    assert sheet.width > 2 * 32 and sheet.height > 2 * 32
    sheet = example("negative")["make"](tiny, {"a cat": "red", "a heart": "blue"}, steps=1)
    assert sheet.width > 2 * 32 and sheet.height > 2 * 32


def test_errors_on_the_toy_fall_as_fast_as_the_order_says():
    data, samples, errors = example("toy")["run"](50, {"euler": 1, "dpmpp_2m": 1}, (16, 64))
    assert data.shape == samples.shape == (50, 2)
    assert errors["euler"][1] < errors["euler"][0] / 3 and errors["dpmpp_2m"][1] < errors["dpmpp_2m"][0] / 12


def test_a_student_is_distilled(tmp_path):
    sheet = example("distill_student")["make"](tmp_path, 2, 2, pictures=2)
    assert sheet.width > 2 * 64 and sheet.height > 3 * 64
    discs = example("distill_student")["Discs"]()
    assert torch.equal(discs.batch([3]).images, discs.batch([1, 3]).images[1:])  # a function of the counter


def test_a_word_is_taught(tiny_model, tmp_path):
    pytest.importorskip("peft")
    sheet = example("teach_lora")["make"](tmp_path, str(tiny_model), steps=1, num_inference_steps=1, like="red")
    assert sheet.width > 2 * 32 and (tmp_path / "ring.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["solvers", "guidance", "teach_lora", "distill_student", "toy"])
def test_a_tutorial_makes_the_picture_that_the_docs_show(name, tmp_path):
    made = tmp_path / "made.png"
    subprocess.run([sys.executable, EXAMPLES / f"{name}.py", made], cwd=EXAMPLES.parents[1], check=True, timeout=500)
    with Image.open(made) as ours, Image.open(EXAMPLES / f"{name}.png") as shown:
        assert ours.size == shown.size
        if name in ("solvers", "guidance"):  # without training, what other machines round differently stays small
            assert sum(ImageStat.Stat(ImageChops.difference(ours.convert("RGB"), shown.convert("RGB"))).mean) / 3 < 2
