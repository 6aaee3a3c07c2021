"""The structure of the project: who imports whom, and that `gen` is ours."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["samplers", "gen", "distill", "customization"]  # each imports only from itself and from those before it


def imported(source: str) -> set[str]:
    """Top-level names of every absolute import in a module, wherever it stands."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    return found


@pytest.mark.parametrize("package", ORDER)
def test_imports_go_one_way(package):
    forbidden = set(ORDER[ORDER.index(package) + 1 :])
    for path in sorted((ROOT / package).rglob("*.py")):
        wrong = imported(path.read_text()) & forbidden
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}, which stands to the right of {package}"


def test_the_check_sees_an_arrow_to_the_right():
    assert "distill" in imported("def f():\n    from distill.trainer import Trainer")


def test_samplers_import_nothing_but_torch():
    allowed = {"samplers", "torch", *sys.stdlib_module_names}
    for path in sorted((ROOT / "samplers").rglob("*.py")):
        assert imported(path.read_text()) <= allowed, path


@pytest.mark.parametrize("package", ORDER)
def test_packages_are_ours(package):
    """PyPI has another distribution that installs a package called gen."""
    module = __import__(package)
    assert Path(module.__file__).resolve().is_relative_to(ROOT)


def test_importing_gen_loads_no_heavy_library():
    code = (
        "import sys, gen; from gen import Generator; "
        "print([m for m in ('transformers', 'diffusers', 'peft', 'gradio', 'accelerate') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
