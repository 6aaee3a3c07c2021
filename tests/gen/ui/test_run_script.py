"""`./run`: a first word that is a command with packages of its own installs those, anything else is a prompt."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "extras", "arguments"),
    [
        (["a red heart", "--seed", "1"], "", "-m gen image|a red heart|--seed|1"),
        ([], "", "-m gen image"),
        (["ui", "--port", "9"], "ui", "-m gen|ui|--port|9"),
        (["serve"], "serve", "-m gen|serve"),
        (["batch", "a b.txt"], "batch", "-m gen|batch|a b.txt"),
    ],
)
def test_run(tmp_path, words, extras, arguments):
    shutil.copy(ROOT / "run", tmp_path / "run")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "python").write_text(
        '#!/bin/bash\nprintf "%s" "$1 $2 ${3:-}"; for word in "${@:4}"; do printf "|%s" "$word"; done\n'
    )
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "scripts" / "setup.sh").write_text(f'set -eu\necho "[$FEWSTEP_EXTRAS]" >&2\npython={tmp_path}/python\n')
    told = subprocess.run(["bash", str(tmp_path / "run"), *words], capture_output=True, text=True, check=True)
    first, _, rest = arguments.partition("|")
    expected = arguments if first == "-m gen image" else f"-m gen {rest}"
    assert (told.stderr.strip(), told.stdout) == (f"[{extras}]", expected)
