"""Every wrong request to the command line is one sentence, exit code 2, and nothing on disk."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from gen.cli import app as cli
from tests.gen.commands import files

MISTAKES = [
    (["--steps", "0"], "--steps is 0"),
    (["--steps", "many"], "--steps"),
    (["--steps", "1000000"], "from 1 to 1000"),
    (["--stps", "3"], "--steps"),
    (["--sampler", "eulr"], "did you mean 'euler'"),
    (["--schedule", "karas"], "did you mean 'karras'"),
    (["--sampler-option", "eta"], "name=value"),
    (["--sampler-option", "etta=1"], "no option 'etta'"),
    (["--guidance-scale", "nan"], "--guidance-scale is nan"),
    (["--guidance-scale", "-1"], "from 0 to 100"),
    (["--seed", "-1"], "--seed is -1"),
    (["--seed", str(1 << 63)], "--seed is 9223372036854775808"),
    (["-n", "0"], "--number is 0"),
    (["--height", "33"], "nearest allowed: 32 and 40"),
    (["--width", "1000000"], "megapixels"),
    (["--batch-size", "0"], "--batch-size is 0"),
    (["--device", "tpu9"], "Unknown device 'tpu9'"),
    (["--dtype", "int4"], "Unknown dtype 'int4'"),
    (["-o", "x.gif"], "ends in .png"),
    (["-o", "x.xyz"], "ends in .png, .jpg, .webp or .avif, or make the folder x.xyz first"),
    (["--size", "33"], "The height of --size is 33"),
    (["--size", "32x"], "WIDTHxHEIGHT"),
    (["--size", "32", "--width", "32"], "--width says one again"),
    (["--lora-dir", "nowhere"], "--lora-dir"),
    (["-o", "x.png", "--format", "webp"], "says one format"),
    (["--format", "wep"], "did you mean 'webp'"),
    (["--format", "webp", "--quality", "0"], "--quality is 0"),
    (["--quality", "80"], "says nothing of a PNG"),
    (["-o", "taken/x.png"], "not a folder"),
    (["-o", "taken"], "not a folder"),
    (["--grid", "x.gif"], "ends in .png"),
    (["--grid", "."], "ends in .png"),
    (["--grid", "taken/x.png"], "not a folder"),
    (["--model", "nowhere"], "nowhere does not exist"),
    (["--model", "upscal"], 'Did you mean "upscale"?'),
    (["--joint", "segments=none.png"], "--joint KIND=FILE: none.png cannot be opened"),
    (["--model", "taken"], "taken is neither a folder nor a safetensors or GGUF file"),
    (["-o", "a\0b.png"], "null"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=lambda v: "-".join(v) if isinstance(v, list) else "")
def test_mistakes_are_one_sentence_and_exit_code_2(fewstep, tiny_model, arguments, message):
    Path("taken").write_text("mine")
    model = [] if "--model" in arguments else ["--model", tiny_model]
    code, out, err = fewstep("image", "a cat", *arguments, *model)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and err.startswith("fewstep: ")
    assert "defect" not in err and files() == ["taken"]


def test_other_mistakes(fewstep, tiny_model):
    assert "Did you mean 'image'?" in fewstep("imge")[2]
    assert "write one in quotes" in fewstep("image", "--model", tiny_model)[2]
    assert "No such file" in fewstep("replay", "none.png")[2]
    assert "No such file" in fewstep("info", "none.png")[2]
    Path("fake.png").write_text("<svg/>")
    assert "not a PNG" in fewstep("info", "fake.png")[2]
    code, out, err = fewstep()
    assert code == 2 and out == "" and "Commands:" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(fewstep, tiny_model):
    Path("locked").mkdir(mode=0o500)
    code, _, err = fewstep("image", "a cat", "-o", "locked", "--model", tiny_model)
    assert code == 2 and "locked cannot be written to" in err


def test_output_is_checked_before_the_model_is_opened(image, monkeypatch):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("gen.generator.Generator.from_pretrained", lambda *_: pytest.fail("opened"))
    code, _, err = image("a cat", "-o", "out")
    assert code == 2 and "out cannot be written to (Read-only file system)" in err


def test_an_unforeseen_error_is_called_a_defect(image, monkeypatch):
    monkeypatch.setattr("gen.generator.Generator.decode", lambda *_: 1 // 0)
    code, _, err = image("a cat")
    assert code == 2 and "ZeroDivisionError" in err and "defect of fewstep" in err and files() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1-3", "-n", "2"], "give one of them"),
        (["--seed", "x"], "--seed is 'x'"),
        (["--steps", "4,x"], "--steps is '4,x'"),
        (["--prompts", "none.txt"], "none.txt: does not exist"),
        (["--prompts", "empty.txt"], "empty.txt holds no prompt"),
        (["--wildcards", "none"], "none is not a folder"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(image, arguments, message):
    Path("empty.txt").write_text("# nothing\n")
    code, out, err = image("a cat", *arguments)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1 and "defect" not in err


@pytest.mark.parametrize("arguments", [["convert", "IN", "--to", "dit"], ["lora", "convert", "IN", "--to", "peft"]])
def test_where_to_write_is_said_once(fewstep, arguments):
    assert "Say what to write; give it once: -o OUT." in fewstep(*arguments)[2]
    assert "a and b are both given" in fewstep(*arguments[: arguments.index("IN") + 1], "a", "-o", "b", *arguments[-2:])[2]
    assert "IN" in fewstep(*arguments[: arguments.index("IN") + 1], "-o", "b", *arguments[-2:])[2]


def test_errors_speak_in_the_words_of_the_option(fewstep):
    def said(*arguments):
        return fewstep(*arguments)[2].removeprefix("fewstep: ")

    assert said("layout", ".") == ". is a folder; give a layout (YAML, JSON), or a painting (PNG) with --colour.\n"
    assert said("image", "a cat", "--greedy", "none.py:f").startswith("--greedy none.py:f: none.py is not a file")
    assert said("image", "a cat", "--device", "").startswith("Unknown device ''")
    assert said("image", "a cat", "--schedule", "zzz").startswith("Unknown schedule 'zzz'. Known:")


HANDED = [
    *[("train", "distill.train"), ("evaluate", "distill.evaluate"), ("words", "distill.words")],
    *[("data build", "distill.data.emoji.build"), ("data compose", "customization.compose")],
    ("forget", "customization.forget"),
    ("scaling", "distill.scaling"),
]


@pytest.mark.parametrize(("command", "module"), HANDED)
def test_commands_of_other_packages_are_handed_over(fewstep, monkeypatch, command, module):
    assert cli.MODULES[command] == module
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    seen = []

    def run(name, run_name, alter_sys):
        seen.append((name, run_name, sys.argv))
        raise SystemExit(3)

    monkeypatch.setattr("runpy.run_module", run)
    before = sys.argv
    code, _, _ = fewstep(*command.split(), "config.yaml", "--help", "steps=3", "-x")
    assert code == 3 and sys.argv is before
    assert seen == [(module, "__main__", [f"fewstep {command}", "config.yaml", "--help", "steps=3", "-x"])]


def test_a_missing_package_is_a_sentence(fewstep, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, _, err = fewstep("train", "x.yaml")
    assert code == 2 and "needs the module distill.train" in err
