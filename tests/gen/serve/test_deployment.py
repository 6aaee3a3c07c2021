"""The examples of deployment: the unit is one for systemd, the container's build names no host, and both call what there is."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer.main

from gen.cli.app import app

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples" / "serve"


def options_of_serve():
    serve = typer.main.get_command(app).commands["serve"]
    return {name for parameter in serve.params for name in (*parameter.opts, *parameter.secondary_opts)}


def commands():
    """The words of `fewstep serve` in each example."""
    unit = (EXAMPLES / "fewstep.service").read_text().replace("\\\n", " ")
    yield shlex.split(re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)[1])
    entry = re.search(r"^ENTRYPOINT \[(.*)\]$", (EXAMPLES / "Containerfile").read_text(), re.MULTILINE)[1]
    yield [word.strip(' "') for word in entry.split(",")]


def test_the_options_are_those_of_the_command():
    for words in commands():
        assert words[0].endswith("fewstep") and words[1] == "serve"
        assert {word for word in words if word.startswith("--")} <= options_of_serve()


def test_the_container_s_build_names_no_index():
    text = (EXAMPLES / "Containerfile").read_text()
    assert "://" not in text.replace("http://127.0.0.1:8188", "") and "index-url" not in text
    assert "ARG PIP_INDEX_URL PIP_EXTRA_INDEX_URL" in text


def test_the_unit_is_one(tmp_path):
    verify = shutil.which("systemd-analyze")
    if verify is None:
        pytest.skip("systemd-analyze is not installed")
    text = (EXAMPLES / "fewstep.service").read_text()
    unit = tmp_path / "fewstep.service"
    unit.write_text(re.sub(r"/opt/\S+/fewstep", "/bin/true", text))  # which is there everywhere
    found = subprocess.run([verify, "verify", "--man=no", unit], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and not found.stderr, found.stderr
    assert int(re.search(r"TimeoutStopSec=(\d+)", text)[1]) > int(re.search(r"--grace (\d+)", text)[1])
