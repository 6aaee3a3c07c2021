"""The examples of docs/extending.md, run as they stand: files are written, Python is executed, commands are called."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")

# Runs one section: its Python in namespaces of its own, then its commands in the same process.
DRIVER = """
import json, shlex, sys
from gen.__main__ import program
sys.path.insert(0, ".")
for kind, text in json.load(open("section.json")):
    if kind == "python":
        exec(compile(text, "example", "exec"), {"__name__": "example"})
        continue
    for line in text.splitlines():
        sys.argv = shlex.split(line)
        try:
            program()
        except SystemExit as end:
            if end.code:
                sys.exit(f"{line}: exit code {end.code}")
"""


def sections() -> dict[str, list[tuple[str, str]]]:
    """Title -> the code blocks below it as (language, text)."""
    found = {}
    for part in PAGE.split("\n## ")[1:]:
        title, _, text = part.partition("\n")
        if blocks := re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S):
            found[title] = blocks
    return found


def named(text: str) -> str | None:
    """The file that a block is, by its first line: "# my_solver.py"."""
    match = re.match(r"# (\w+\.(?:py|yaml))\n", text)
    return match and match[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all files of the page are."""
    here = tmp_path_factory.mktemp("extending")
    for blocks in sections().values():
        for _, text in blocks:
            if name := named(text):
                (here / name).write_text(text)
    return here


def test_the_page_has_what_can_be_extended():
    assert [*sections()] == [
        "A network", "A solver", "A guidance rule", "An energy", "An objective and a data source", "A task"
    ]  # fmt: skip


@pytest.mark.parametrize("title", sections())
def test_the_examples_of_a_section_run(folder, title):
    import json

    blocks = [(kind, text) for kind, text in sections()[title] if not named(text)]
    assert {kind for kind, _ in blocks} <= {"python", "sh"}
    (folder / "section.json").write_text(json.dumps(blocks))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", DRIVER]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
