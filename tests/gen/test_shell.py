"""`fewstep shell`: lines drawn by one open model, settings, what goes wrong, and pictures in terminals."""

from __future__ import annotations

import io
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from gen.cli import app as cli
from gen.cli.session import one_setting, split_line
from gen.generator import Generator
from gen.pipeline.png import read_recipe

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell(tmp_path, monkeypatch, capsys, tiny_model):
    """Run lines in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*lines: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        code = cli.main(["shell", "--model", str(tiny_model), "--device", "cpu", "--dtype", "float32", *options])
        said = capsys.readouterr()
        assert "Traceback" not in said.err and "defect" not in said.err, said.err
        return code, said.out, said.err

    return run


def test_lines_draw_what_a_call_draws(shell, tiny):
    code, out, err = shell("a red heart --steps 2 --seed 3 --sampler=heun", ":save one.png", ":save", ":quit", "never")
    assert code == 0 and out.split() == ["one.png", "a-red-heart-3.png"], err
    made = tiny("a red heart", num_inference_steps=2, seed=3, sampler="heun", progress=False)
    with Image.open("one.png") as saved:
        assert saved.tobytes() == made.images[0].tobytes()
    assert read_recipe("one.png").sampler == "heun"


def test_a_slip_while_saving_makes_no_folder(shell, tmp_path):
    Path("there").mkdir()
    lines = [
        "a cat --steps 1 --seed 3",
        ":save nowhere/one.png",
        ":save one",
        ":save one.xyz",
        ":save there",
        ":save there/two",
    ]
    code, out, err = shell(*lines)
    assert code == 0 and out.split() == ["one.png", "there/a-cat-3.png", "there/two.png"], err
    assert "There is no folder nowhere" in err and ".png, .jpg, .webp or .avif" in err
    assert sorted(path.name for path in Path().iterdir()) == ["one.png", "there"]


def test_the_model_is_opened_once(shell, monkeypatch):
    opened = []
    real = Generator.from_pretrained.__func__
    monkeypatch.setattr(Generator, "from_pretrained", classmethod(lambda *a, **k: opened.append(1) or real(*a, **k)))
    shell("a cat --steps 1", "a dog --steps 1", ":again")
    assert len(opened) == 1


def test_settings_hold_until_they_are_forgotten(shell):
    lines = [":set steps 3", ":set sampler-option:eta 0.5", ":set sampler ddim", ":seed 5", "a cat", "a cat --steps 2"]
    code, out, err = shell(*lines, ":set", ":unset steps", ":unset sampler-option:eta", "a cat", options=("--save-all",))
    assert code == 0 and out.split() == ["a-cat-5.png", "a-cat-5-1.png", "a-cat-5-2.png"], err
    recipes = [read_recipe(path) for path in out.split()]
    assert [recipe.num_inference_steps for recipe in recipes] == [3, 2, 4]
    assert [dict(recipe.sampler_options) for recipe in recipes] == [{"eta": 0.5}, {"eta": 0.5}, {}]
    assert "steps 3" in err and "seed 5" in err


def test_again_and_undo(shell):
    lines = [
        "a cat --steps 2 --seed 1",
        ":again --seed 2",
        "a dog --seed 9 --steps 1",
        ":undo",
        ":save",
        ":undo",
        ":save",
        ":undo",
    ]
    code, out, err = shell(*lines)
    assert code == 0 and out.split() == ["a-cat-2.png", "a-cat-1.png"]
    assert [read_recipe(path).num_inference_steps for path in out.split()] == [2, 2]
    assert "there is none before it" in err
    code, out, _ = shell(":seed random", "a cat --steps 1", ":again", options=("--save-all",))
    assert len({read_recipe(path).seed for path in out.split()}) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (":sav", "Did you mean :save?"),
        (":again", "No picture is drawn yet"),
        (":undo", "No picture is drawn yet"),
        (":save", "No picture is drawn yet"),
        (":set stps 3", "did you mean 'steps'"),
        (":set steps four", "whole numbers"),
        (":unset steps", "steps is not set"),
        (":unset stps", "no setting 'stps'"),
        ("a cat --steps", "has no value"),
        ("a cat --steps 2 again", "stands after the settings"),
        ("a cat --steps 0", "--steps is 0"),
        ("a cat --steps 2-3", "several to fewstep sweep"),
        ("a cat --negative 'x", "cannot be read"),
        ("a cat --lora:x 1", "no setting here"),
        ("--steps 2", "No prompt was given"),
    ],
)
def test_what_goes_wrong_is_a_sentence_and_the_loop_goes_on(shell, line, message):
    code, out, err = shell(line, "a cat --seed 4 --steps 1", ":save")
    assert code == 0 and out == "a-cat-4.png\n" and message in err


def test_ctrl_c_stops_the_picture_and_not_the_loop(shell, monkeypatch):
    decode, calls = Generator.decode, []

    def interrupted(self, *given):
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return decode(self, *given)

    monkeypatch.setattr(Generator, "decode", interrupted)
    code, out, err = shell("a cat --seed 1 --steps 1", "a dog --seed 2 --steps 1", ":save")
    assert code == 0 and out == "a-dog-2.png\n" and "Stopped." in err


def test_sigterm_ends_it(shell, monkeypatch):
    monkeypatch.setattr(Generator, "decode", lambda *_: (_ for _ in ()).throw(cli.Terminated()))
    assert shell("a cat --seed 1 --steps 1", "a dog --seed 2 --steps 1")[0] == 143


@pytest.mark.parametrize(
    ("line", "prompt", "settings"),
    [
        ("a dog's house --steps 8", "a dog's house", {"num_inference_steps": 8}),
        ('"a cat" --negative "blue, dark"', "a cat", {"negative_prompt": "blue, dark"}),
        ("a <lora:x:0.5> cat", "a <lora:x:0.5> cat", {}),
        ("well-known -- as it is --- a cat", "well-known -- as it is --- a cat", {}),
        ("--guidance-interval -3:2", "", {"guidance_interval": (-3.0, 2.0)}),
        ("a --bins false", "a", {"use_resolution_binning": False}),
    ],
)
def test_lines_are_split_into_prompt_and_settings(line, prompt, settings):
    assert split_line(line) == (prompt, settings)


def test_a_setting_is_one_value():
    assert one_setting("sampler-option:eta", "0.5") == {"sampler_options": {"eta": 0.5}}
    assert one_setting("guidance_scale", "3") == {"guidance_scale": 3.0}


# ---- in a terminal ----


@pytest.mark.skipif(sys.platform == "win32", reason="there is no pty")
def test_in_a_real_terminal(tiny_model, tmp_path):
    """With a prompt, history, Ctrl-C at the prompt, and Ctrl-D at the end."""
    import pty

    master, slave = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(tmp_path), "TERM": "xterm-256color"}
    environment.pop("COLORTERM", None)
    command = [sys.executable, "-m", "gen", "shell", "--model", str(tiny_model), "--device", "cpu"]
    program = subprocess.Popen(
        command, cwd=tmp_path, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    os.close(slave)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            assert select.select([master], [], [], 60)[0], f"{text!r} did not come after {seen[-300:]!r}"
            seen += os.read(master, 65536)
        seen = seen.partition(text)[2]

    try:
        until(b"fewstep> ")
        os.write(master, b"a cat --seed 1 --steps 1\n")
        until(b"\x1b7")  # a preview
        until(b"\x1b[J")  # which goes
        until(b"\xe2\x96\x80")  # a half block
        until(b"seed 1, 1 steps")
        until(b"fewstep> ")
        os.write(master, b"half a line")
        until(b"half a line")
        time.sleep(0.3)  # until readline waits again: a signal just before that waits for the next key
        program.send_signal(signal.SIGINT)
        until(b"fewstep> ")
        os.write(master, b":save x.png\n")
        until(b"x.png")
        until(b"fewstep> ")
        os.write(master, b"\x04")
        assert program.wait(timeout=60) == 0
    finally:
        program.kill()
        os.close(master)
    assert read_recipe(tmp_path / "x.png").seed == 1
    history = tmp_path / "fewstep" / "history"
    assert "a cat --seed 1 --steps 1" in history.read_text() and history.stat().st_mode & 0o077 == 0
