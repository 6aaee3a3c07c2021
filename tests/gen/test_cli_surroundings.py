"""The command line as a program where it stands: signals, full disks, pipes whose reader left, terminals of few letters, files
that are none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gen.cli import app as cli
from gen.pipeline.png import read_recipe
from tests.gen.commands import ENV, files


def as_program(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "gen", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, env={**ENV, **environment})


def as_in_a_terminal() -> None:
    """A test run that was itself started in the background ignores SIGINT, and hands that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_reader_that_leaves_is_no_error(tmp_path):
    """As in `fewstep samplers | head -1`: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        ran = subprocess.run(
            [sys.executable, "-m", "gen", "samplers"], stdout=pipe, stderr=subprocess.PIPE, env=ENV, cwd=tmp_path
        )
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_program_in_a_terminal_without_its_letters_gets_their_numbers(tiny_model, tmp_path):
    options = ["--model", tiny_model, "--device", "cpu", "--steps", "1", "--seed", "1", "-q"]
    ran = as_program(tmp_path, "image", "a cat", "hérz", *options, PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stdout) == (0, b"a-cat-1.png\nh\\xe9rz-2.png\n")
    assert ran.stderr.startswith(b"Note: The text encoder does not know 'h\\xe9rz'") and ran.stderr.count(b"\n") == 1
    assert files(tmp_path) == ["a-cat-1.png", "hérz-2.png"]


def test_a_program_refuses_before_anything_loads(tmp_path):
    ran = as_program(tmp_path, "image", "a cat", "-o", "x.gif")
    assert ran.returncode == 2 and ran.stderr.count(b"\n") == 1 and files(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of files' sizes")
def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(tiny_model, tmp_path):
    """As far as a limit of files' sizes is a full disk: pictures of 32 pixels have more than 1 kB with their recipes."""
    script = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from gen.cli.app import main\nimport gen.generator\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "options = sys.argv[1:]\n"
        "print(main(['image', 'a cat', '-o', 'x.png', *options]), main(['batch', 'rows.txt', '-o', 'out', *options]))"
    )
    (tmp_path / "rows.txt").write_text("a cat\na dog\n")
    options = ["--model", str(tiny_model), "--device", "cpu", "--steps", "1"]
    command = [sys.executable, "-c", script, *options]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert ran.stdout == "2 2\n" and "defect" not in ran.stderr, ran.stderr
    assert "x.png cannot be written (File too large)" in ran.stderr
    assert "out: File too large. What was made before is in place; the same command goes on" in ran.stderr
    assert [name for name in files(tmp_path) if name.endswith((".png", ".tmp"))] == []
    assert cli.main(["batch", str(tmp_path / "rows.txt"), "-o", str(tmp_path / "out"), *options, "-q"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["layout", "none.yaml"], "none.yaml does not exist"),
        (["image", "a cat", "--model", "empty"], "empty: is a folder without config.json or model_index.json"),
        (["info", "empty"], "empty: is a folder without config.json"),
    ],
)
def test_files_and_folders_that_are_none(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and said.err.count("\n") == 1


def test_ctrl_c_keeps_what_is_finished(image, monkeypatch):
    from gen.generator import Generator

    decode, calls = Generator.decode, []

    def interrupted(self, *given):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(self, *given)

    monkeypatch.setattr(Generator, "decode", interrupted)
    code, out, err = image("a cat", "-n", 6, "--batch-size", 2, "--seed", 1)
    assert code == 130 and out.split() == files() == [f"a-cat-{n}.png" for n in range(1, 5)]
    assert "Interrupted; 4 pictures saved." in err
    assert all(read_recipe(name).prompt == "a cat" for name in files())


def test_ctrl_c_as_a_program(tiny_model, tmp_path):
    """SIGINT in the middle of a long request: exit code 130, whole files only, no traceback."""
    command = [sys.executable, "-m", "gen", "image", "a cat", "-n", "5000", "--steps", "50", "--batch-size", "1", "-q"]
    program = subprocess.Popen(
        [*command, "--model", str(tiny_model)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    try:
        assert program.stdout.readline().startswith("a-cat-"), program.stderr.read()
        time.sleep(0.2)
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=120)
    finally:
        program.kill()
    assert program.returncode == 130 and "Traceback" not in err
    assert len(files(tmp_path)) == out.count("\n") + 1 and all(read_recipe(tmp_path / name) for name in files(tmp_path))


# stops itself when it is to save its second picture
STOPPED = """
import os, signal, sys
import gen.pipeline.png as png
from gen.__main__ import program

save, done = png.save_image, []

def saving(image, path, *rest, **more):
    if done:
        os.kill(os.getpid(), signal.SIGTERM)
    done.append(path)
    return save(image, path, *rest, **more)

png.save_image, sys.argv = saving, ["fewstep", *sys.argv[1:]]
program()
"""


def test_a_stop_is_said_and_leaves_nothing(tiny_model, tmp_path):
    options = ["image", "a cat", "-n", "3", "--batch-size", "1", "--seed", "1", "--model", str(tiny_model), "--device", "cpu"]
    ran = subprocess.run([sys.executable, "-c", STOPPED, *options], cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert (ran.returncode, ran.stdout) == (143, "a-cat-1.png\n") and "Interrupted; 1 picture saved." in ran.stderr
    assert files(tmp_path) == ["a-cat-1.png"] and "Traceback" not in ran.stderr


def test_an_interrupt_while_the_program_is_read_is_one_line(tmp_path):
    script = (
        "import sys\nclass Stop:\n    def find_spec(self, name, *_):\n"
        "        if name == 'gen.cli.app': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stop())\nfrom gen.__main__ import program\nprogram()"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert (ran.returncode, ran.stderr) == (130, "Interrupted.\n")
