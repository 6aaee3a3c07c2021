"""Errors and notes of commands: in the words of the options that were typed, for every option of every command that draws."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from PIL import Image

from gen.calls.command import OPTIONS
from gen.calls.respell import respell
from gen.cli.app import app, main

WORDS = {"num_inference_steps": "--steps", "steps": "--steps", "image": "--image", "hires": "--hires", "control": "--control"}


@pytest.mark.parametrize(
    ("sentence", "said"),
    [
        ("num_inference_steps is 0; give more.", "--steps is 0; give more."),
        ("Give num_inference_steps=20, or less.", "Give --steps 20, or less."),
        ("With steps 0: num_inference_steps is 0.", "With steps 0: --steps is 0."),
        (
            "mask was given without an image to change; give image too.",
            "mask was given without an image to change; give --image too.",
        ),
        ("image: x.png cannot be opened.", "--image: x.png cannot be opened."),
        ("The image is small; control it.", "The image is small; control it."),
        ("say how large with hires=2 (--hires 2).", "say how large with --hires 2."),
        ("give it as image (--image).", "give it as --image."),
        ("give the same again (image, --image).", "give the same again (--image)."),
        ("give them again (image, control; --image, --control).", "give them again (--image, --control)."),
        ("give it again (image).", "give it again (--image)."),
        ("This image is not what it was made with.", "This --image is not what it was made with."),
        ("its sha256 differs; give that as control.", "its sha256 differs; give that as --control."),
        ("This picture is not such an image (the first).", "This picture is not such an image (the first)."),
        ("did you mean 'num_inference_steps'?", "did you mean 'num_inference_steps'?"),
        ("a/num_inference_steps.png is no file.", "a/num_inference_steps.png is no file."),
        ("my_num_inference_steps is 0.", "my_num_inference_steps is 0."),
    ],
)
def test_keywords_become_options(sentence, said):
    assert respell(sentence, WORDS) == said


def test_keywords_become_columns():
    assert (
        respell("num_inference_steps is 'no'; give hires=2.", {"num_inference_steps": "steps"})
        == "steps is 'no'; give hires=2."
    )


def test_what_is_varied_is_not_given_beside(tmp_path, tiny_model, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "a cat", "--vary", "steps=1,2", "--steps", "4", "--model", str(tiny_model)]) == 2
    assert "--steps is one value, and --vary steps gives others" in capsys.readouterr().err
    assert main(["panorama", "a cat", "--size", "0x32", "--model", str(tiny_model)]) == 2
    assert "The width of --size is 0" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "data build", "data compose", "words", "forget", "lora"])
def test_commands_of_other_packages_go_by_their_names(command, capsys):
    assert main([*command.split(), "--nonsense"]) == 2
    assert capsys.readouterr().err.strip().endswith(f"See `fewstep {command} --help`.")


SUBJECTS = {
    "image": ["a cat"],
    "sweep": ["a cat", "--vary", "prompt:cat=cat,dog"],
    "layout": ["l.yaml"],
    "ambiguous": ["a cat", "a dog"],
    "panorama": ["a cat"],
    "outpaint": ["p.png", "a cat", "--left", "8"],
    "upscale": ["p.png", "a cat"],
    "restore": ["p.png", "a cat"],
    "batch": ["r.csv", "-o", "b"],
    "compare": ["a cat"],
}
ANY_TEXT = {"--negative", "--aesthetic", "--background", "--cells"}  # of which no text is wrong
LATER = {"--output", "--import", "--model", "--device", "--dtype"}  # tested by themselves, or given here
LAYOUT = "width: 32\nheight: 32\nregions:\n- {prompt: a heart, box: [0, 0, 16, 32]}\n- {prompt: a cat, box: [16, 0, 16, 32]}\n"


def options_of(command: str) -> list[tuple[str, list[str]]]:
    """(option, what it cannot be) of all that take a value."""
    found = []
    for one in typer.main.get_command(app).commands[command].params:
        option = max(one.opts, key=len)
        if one.param_type_name != "option" or one.is_flag or option in ANY_TEXT | LATER:
            continue
        kind = str(one.type_descriptor.annotation)
        wrong = ["1", "zzz"] if "tuple" in kind else ["-7"] if "int" in kind else ["nan"] if "float" in kind else ["zzz"]
        found.append((option, wrong))
    return found


@pytest.mark.parametrize("command", SUBJECTS)
def test_an_error_names_the_option_that_was_typed(command, tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("l.yaml").write_text(LAYOUT)
    Path("r.csv").write_text("prompt\na cat\n")
    Image.new("RGB", (32, 32), "white").save("p.png")
    options = options_of(command)
    assert len(options) > 5
    keywords = {name for name in OPTIONS if "_" in name}
    for option, wrong in options:
        capsys.readouterr()
        words = [command, *SUBJECTS[command], "--model", str(tiny_model), "--device", "cpu", "--dtype", "float32", "-q"]
        code = main([*words, option, *wrong])
        error = (capsys.readouterr().err.strip() or "nothing").splitlines()[-1]
        assert code == 2, (option, error)
        assert option in error or f"{wrong[0]!r}" in error, (option, error)  # a name that no table has is quoted
        assert not [name for name in keywords if name in error], (option, error)
        assert "defect" not in error and error.startswith("fewstep: ") and error.endswith((".", "?")), error
    assert {path.name for path in Path().iterdir()} == {"l.yaml", "r.csv", "p.png"}
