"""The API reference builds from the docstrings without a warning."""

from __future__ import annotations

import importlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_reference_builds_without_a_warning(tmp_path):
    pytest.importorskip("pdoc")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "docs" / "build_api.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0 and "Warn" not in done.stderr, done.stderr
    for page in ("index.html", "samplers/guidance/cfg.html", "gen/generator.html", "distill/objectives/dmd2.html"):
        assert (tmp_path / page).is_file()
    text = (tmp_path / "samplers" / "guidance" / "cfg.html").read_text(encoding="utf-8")
    assert "https://arxiv.org/abs/2207.12598" in text


@pytest.mark.parametrize("package", ["samplers", "gen", "distill", "customization"])
def test_every_name_that_a_package_offers_is_there(package):
    """Some are loaded when they are first used, by a table of module names."""
    for file in sorted((ROOT / package).rglob("__init__.py")):
        name = ".".join(file.parent.relative_to(ROOT).parts)
        module = importlib.import_module(name)
        missing = [one for one in getattr(module, "__all__", ()) if not hasattr(module, one)]
        assert not missing, f"{name} has no {', '.join(missing)}"


def test_docstrings_of_ours_become_lists_and_links():
    as_markdown = runpy.run_path(str(ROOT / "docs" / "build_api.py"))["as_markdown"]
    text = "One step.\n\nx: a picture,\nor two.\ns, t: levels.\nSource: arXiv 2206.00364, Table 1.\n\n    code: kept"
    assert as_markdown(text) == (
        "One step.\n\n- **x**: a picture,\nor two.\n- **s, t**: levels.\n"
        "- **Source**: [arXiv 2206.00364](https://arxiv.org/abs/2206.00364), Table 1.\n\n    code: kept"
    )
    assert as_markdown("A thing.\nx: a picture.") == "A thing.\n\n- **x**: a picture."
