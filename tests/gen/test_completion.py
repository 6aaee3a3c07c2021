"""Completion: every name that there is, read without torch, and a shell that gets them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gen.cli import app as cli
from gen.cli import complete, known_names
from tests.gen.commands import ENV

ROOT = Path(__file__).parents[2]


def test_the_names_are_those_of_the_tables():
    from samplers.cache import CACHES
    from samplers.guidance import GUIDANCE
    from samplers.registry import GRIDS, SOLVERS

    tables = {"SAMPLERS": SOLVERS, "SCHEDULES": GRIDS, "GUIDANCE": GUIDANCE, "CACHES": CACHES}
    for name, table in tables.items():
        missing = set(table) ^ set(getattr(known_names, name))
        assert not missing, f"gen/cli/known_names.py: {name} differs from its table by {sorted(missing)}"


def test_choices_are_those_that_are_taken():
    from gen.models.options import DTYPES
    from gen.models.pretrained import PACKAGED
    from gen.pipeline.exif import FORMATS

    assert set(complete.MODELS) == set(PACKAGED) and set(complete.DTYPES) >= set(DTYPES)
    assert {f".{name}" for name in complete.FORMATS} <= set(FORMATS)


ASKED = {
    "fewstep swe": ["sweep"],
    "fewstep image --sampler dpmpp_3": ["dpmpp_3s", "dpmpp_3m", "dpmpp_3m_sde"],
    "fewstep panorama --schedule karr": ["karras"],
    "fewstep image --variation-st": ["--variation-strength"],
    "fewstep completion z": ["zsh"],
    "fewstep lora ins": ["inspect"],
}


def test_a_shell_is_answered_without_torch():
    """What the program tells bash, asked for the last word of each line."""
    code = (
        "import contextlib, io, json, os, sys\nfrom gen.cli.app import main\ntold = []\n"
        "for line in sys.argv[1:]:\n"
        "    words = line.split()\n"
        "    os.environ.update(COMP_WORDS='\\n'.join(words), COMP_CWORD=str(len(words) - 1))\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):\n"
        "        main([])\n"
        "    told.append(said.getvalue().split())\n"
        "print(json.dumps([told, sorted({'torch', 'PIL', 'numpy'} & set(sys.modules))]))"
    )
    environment = {**ENV, "_FEWSTEP_COMPLETE": "complete_bash"}
    done = subprocess.run([sys.executable, "-c", code, *ASKED], capture_output=True, text=True, env=environment)
    told, loaded = json.loads(done.stdout)
    assert dict(zip(ASKED, told, strict=True)) == ASKED and loaded == [], done.stderr


def test_stacks_lists_and_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for name in ("a.safetensors", "b.gguf", "c.txt", ".hidden"):
        (tmp_path / "models" / name).touch()
    assert complete.guidance("apg + resc") == ["apg + rescale"] and complete.guidance("apg+resc") == ["apg+rescale"]
    assert complete.varied("samp") == ["sampler="] and complete.varied("sampler=euler,lc") == ["sampler=euler,lcm"]
    assert complete.varied("steps=4") == []
    assert complete.models("") == ["default", "fast", "upscale", "models/"]
    assert complete.models("models/") == ["models/a.safetensors", "models/b.gguf"]
    assert complete.models("none/") == [] and complete.models("models/c") == []


def test_the_scripts(capsys):
    for shell in ("bash", "zsh", "fish"):
        assert cli.main(["completion", shell]) == 0
        script = capsys.readouterr().out
        assert "_FEWSTEP_COMPLETE" in script and "fewstep" in script
    assert cli.main(["completion", "tcsh"]) == 2 and "one of bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes(tmp_path, capsys):
    cli.main(["completion", "bash"])
    program = tmp_path / "fewstep"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m gen "$@"\n')
    program.chmod(0o755)
    script = capsys.readouterr().out + (
        "\nCOMP_WORDS=(fewstep image --sampler dpmpp_3m); COMP_CWORD=3; _fewstep_completion fewstep; echo ${COMPREPLY[@]}"
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path})
    assert done.stdout.split() == ["dpmpp_3m", "dpmpp_3m_sde"], done.stderr
