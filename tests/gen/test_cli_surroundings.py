"""The command line where it stands: full disks, pipes whose reader left, terminals of few letters, files that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gen.cli import app as cli

ENV = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])}


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def as_program(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "gen", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, env={**ENV, **environment})


def test_a_reader_that_leaves_is_no_error(tmp_path):
    """As in `fewstep samplers | head -1`: the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        ran = subprocess.run(
            [sys.executable, "-m", "gen", "samplers"], stdout=pipe, stderr=subprocess.PIPE, env=ENV, cwd=tmp_path
        )
    assert (ran.returncode, ran.stderr) == (0, b"")


def test_a_terminal_without_its_letters_gets_their_numbers(tiny_model, tmp_path):
    options = ["--model", tiny_model, "--device", "cpu", "--steps", "1", "--seed", "1", "-q"]
    ran = as_program(tmp_path, "image", "hérz", *options, PYTHONIOENCODING="ascii")
    assert (ran.returncode, ran.stdout) == (0, b"h\\xe9rz-1.png\n") and files(tmp_path) == ["hérz-1.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit of files' sizes")
def test_a_full_disk_is_a_sentence_and_leaves_no_half_file(tiny_model, tmp_path):
    """As far as a limit of files' sizes is a full disk: pictures of 32 pixels have more than 1 kB with their recipes."""
    script = (
        "import resource, signal, sys\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from gen.__main__ import program\nimport gen.generator\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\nprogram()"
    )
    (tmp_path / "rows.txt").write_text("a cat\na dog\n")
    options = ["--model", str(tiny_model), "--device", "cpu", "--steps", "1"]
    for arguments, message in (
        (["image", "a cat", "-o", "x.png"], "x.png cannot be written (File too large)"),
        (["batch", "rows.txt", "-o", "out"], "out: File too large. What was made before is in place; the same command goes on"),
    ):
        ran = subprocess.run(
            [sys.executable, "-c", script, *arguments, *options], cwd=tmp_path, capture_output=True, text=True, env=ENV
        )
        assert ran.returncode == 2 and message in ran.stderr and "defect" not in ran.stderr, ran.stderr
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
