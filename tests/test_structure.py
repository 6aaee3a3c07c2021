"""The structure of the project: who imports whom, and that `gen` is ours."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ["samplers", "gen", "distill", "customization"]  # each imports only from itself and from those before it

# The layers of a package from the ground up. An entry is a file or folder, in which * stands for any one name; a folder holds
# all below it that no longer entry names. A module imports from its own entry and from layers below, lazily and for types too.
# Packages that are not listed are not checked yet.
LAYERS: dict[str, list[list[str]]] = {
    "samplers": [
        ["path", "lookup", "atomic", "renamed", "tableaus", "philox", "constants"],
        ["prediction", "noise", "noise_ratio", "interval", "simplex"],
        ["policy"],
        ["denoiser", "brownian"],
        ["sample", "rows", "hooks", "step_cache", "analytic"],
        ["wrappers", "grids"],
        ["solvers", "cache", "anytime", "likelihood"],
        ["guidance", "editing", "composition", "registry"],
        ["canvas", "multi_model", "search"],
        ["__init__"],
    ],
    "gen": [
        ["io"],
        ["nn"],
        ["models/formats"],
        ["adapters"],
        ["models", "rewards"],
        ["tasks/declaration"],
        ["tasks/*/options"],
        ["tasks/table"],
        ["pipeline"],
        ["tasks"],
        ["generator"],
        ["calls"],
        ["batch"],
        ["serve"],
        ["ui"],
        ["cli/values", "cli/output", "cli/groups", "cli/known_names", "cli/energies"],
        ["cli/complete"],
        ["cli/options"],
        ["cli/lora"],
        ["tasks/*/cli"],
        ["cli"],
        ["__main__", "__init__"],
    ],
    "distill": [
        ["types", "registry", "run_folder", "names", "imports"],
        ["optimizer_config"],
        ["config"],
        ["losses", "parallel"],
        ["optim"],
        ["data"],
        ["checkpointing"],
        ["networks"],
        ["objectives/bases"],
        ["objectives"],
        ["eval"],
        ["logs", "role_networks", "agreement", "missing_parts"],
        ["trainer"],
        ["memory"],
        ["command"],
        ["train", "cache", "ema", "evaluate", "propagation", "scaling", "text_teacher", "transport", "words"],
        ["__init__"],
    ],
    "customization": [
        ["algebra", "registry"],
        ["merge", "base"],
        ["methods", "data", "erasure", "scenes"],
        ["size_sampling"],
        ["agreement"],
        ["lora_files", "train"],
        ["lora", "forget", "compose"],
        ["__init__"],
    ],
}


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


def modules(package: str) -> dict[str, Path]:
    """name -> file of every module of a package; a folder has the name of its `__init__`."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported_modules(source: str, name: str, known: set[str]) -> set[str]:
    """The `known` modules that a module of this name imports anywhere: in functions and for type checking too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*name.split(".")[: -node.level], node.module or ""]).strip(".") if node.level else node.module
            found |= {full if (full := f"{base}.{alias.name}") in known else base for alias in node.names}
    return found & known - {name}


def entry_of(module: str, layers: list[list[str]]) -> str:
    """The longest entry of a layer table that holds a module."""
    path = "/".join(module.split(".")[1:]) or "__init__"
    held = [entry for layer in layers for entry in layer if re.match(entry.replace("*", "[^/]+") + "(/|$)", path)]
    assert held, f"{module} is in no layer: add it to LAYERS, where what it imports is below it"
    return max(held, key=len)


def arrows_up(imports: dict[str, set[str]], layers: list[list[str]]) -> list[str]:
    """What a module imports from its own layer or from one above, as sentences. imports: module -> modules of its package."""
    height = {entry: i for i, layer in enumerate(layers) for entry in layer}
    wrong = []
    for module, others in imports.items():
        own = entry_of(module, layers)
        for other in sorted(others):
            its = entry_of(other, layers)
            if its != own and height[its] >= height[own]:
                wrong.append(f"{module} imports {other}, which does not lie below it")
    return wrong


@pytest.mark.parametrize("package", LAYERS)
def test_layers_import_downwards(package):
    files = modules(package)
    known = set(files)
    imports = {name: imported_modules(path.read_text(), name, known) for name, path in files.items()}
    assert not (wrong := arrows_up(imports, LAYERS[package])), "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("from samplers.guidance.cfg import ClassifierFree", "samplers.guidance.cfg"),
        ("def f():\n    import samplers.guidance.cfg", "samplers.guidance.cfg"),
        ("if TYPE_CHECKING:\n    from samplers.guidance import cfg", "samplers.guidance.cfg"),
        ("from ..guidance.cfg import ClassifierFree", "samplers.guidance.cfg"),
        ("from samplers import ClassifierFree", "samplers"),
    ],
)
def test_the_layers_see_an_arrow_up(source, seen):
    name, known = "samplers.solvers.heun", set(modules("samplers"))
    found = imported_modules(source, name, known)
    assert seen in found
    assert arrows_up({name: found}, LAYERS["samplers"])
    assert not arrows_up({name: {"samplers.path", "samplers.solvers.evaluate"}}, LAYERS["samplers"])


def public_classes() -> dict[str, list[str]]:
    """Name -> the modules that define a class of it; not those of tasks' command lines, which mean one thing in each."""
    found: dict[str, list[str]] = {}
    for package in ORDER:
        for module, path in modules(package).items():
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not module.endswith(".cli"):
                    found.setdefault(node.name, []).append(module)
    return found


def test_a_name_of_a_class_means_one_thing():
    classes = public_classes()
    assert classes["Generator"] == ["gen.generator"]
    assert {name: places for name, places in classes.items() if len(places) > 1} == {}


def test_a_task_is_named_by_its_row_alone():
    """Nothing outside of gen/tasks imports a task; a whole pipeline, which stands in the place of a call, is asked for by
    Generator."""
    doors = {("gen.generator", "gen.tasks.whole_pipeline.run")}
    files = {name: path for package in ORDER for name, path in modules(package).items()}
    folders = {f"gen.tasks.{path.parent.name}" for path in (ROOT / "gen" / "tasks").glob("*/options.py")}
    assert len(folders) >= 8
    for name, path in files.items():
        tasks = imported_modules(path.read_text(), name, set(files)) if not name.startswith("gen.tasks") else set()
        wrong = {other for other in tasks if other in folders or other.rpartition(".")[0] in folders}
        assert not {one for one in wrong if (name, one) not in doors}, f"{name} imports {sorted(wrong)}"


def test_recipes_and_the_table_of_tasks_need_no_torch():
    code = (
        "import sys, gen.pipeline.recipe; print([m for m in ('torch', 'typer') if m in sys.modules]); "
        "from gen.cli.task_options import joined; joined('IMAGE'), joined('REPLAY'); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "False"]


@pytest.mark.parametrize("package", ORDER)
def test_no_file_of_a_package_is_long(package):
    lines = {path: path.read_text().count("\n") for path in (ROOT / package).rglob("*.py")}
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 400} == {}


@pytest.mark.parametrize("package", ORDER)
def test_packages_are_ours(package):
    """PyPI has another distribution that installs a package called gen."""
    module = __import__(package)
    assert Path(module.__file__).resolve().is_relative_to(ROOT)
