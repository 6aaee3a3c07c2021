"""Writes docs/papers.md: every paper that the sources cite, with its code, tests, and the config or command that runs it.

    python docs/generate_papers.py

Sources cite a paper as "arXiv 2211.01095". docs/papers.yaml holds what the sources cannot say: titles, and the papers of every
registered method. tests/docs/test_papers.py fails while docs/papers.md is not what this program writes.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PACKAGES = ("samplers", "gen", "distill", "customization")
NUMBER = r"\d{4}\.\d{4,5}(?!\d)"
CITATION = re.compile(rf"arXiv\s+({NUMBER}(?:,\s+{NUMBER})*)")
OPTIONS = {
    "sampler": "fewstep image --sampler",
    "schedule": "fewstep image --schedule",
    "guidance": "fewstep image --guidance",
    "cache": "fewstep image --cache",
    "composition": "fewstep image --compose",
    "energy guidance": "fewstep image --guide-method",
    "energy": "fewstep image --guide",
    "merge": "fewstep lora merge --method",
}
COMMANDS = {
    ("task", "composition"): "fewstep image --compose",
    ("task", "layout"): "fewstep layout",
    ("task", "views"): "fewstep ambiguous",
    ("task", "search"): "fewstep search",
    ("task", "canvas"): "fewstep panorama",
    ("task", "restoration"): "fewstep restore",
    ("task", "guide"): "fewstep image --guide",
    ("task", "training_free"): "fewstep image --negtome",
    ("task", "encoding"): "fewstep image --clip-skip",
    ("task", "pipeline"): "fewstep image --pipeline-option",
    ("task", "image"): "fewstep image --image",
    ("task", "control"): "fewstep image --control",
    ("task", "image_prompt"): "fewstep image --image-prompt",
    ("task", "references"): "fewstep image --reference",
    ("task", "refiner"): "fewstep image --refiner",
    ("task", "enlargement"): "fewstep upscale --model upscale",
    ("task", "translation"): "fewstep translate",
    ("task", "around"): "fewstep outpaint",
    ("task", "joint"): "fewstep image --joint",
    ("task", "transparent"): "fewstep image --transparent",
    ("training-free change", "reference"): "fewstep image --free-custom",
    ("training-free change", "negtome"): "fewstep image --negtome",
    ("training-free change", "aesthetic"): "fewstep image --aesthetic",
    ("training-free change", "concepts"): "fewstep image --concept",
    ("training-free change", "greedy"): "fewstep image --greedy",
}
# commands of code that is no method with a name: beginnings of its files
RUN_BY = {
    "customization/erasure/": "fewstep forget",
    "customization/methods/esd.py": "fewstep forget --method esd",
    "customization/methods/slug.py": "fewstep forget --method ssgu",
    "customization/scenes/": "fewstep data compose",
    "distill/scaling/": "fewstep scaling",
    "gen/tasks/layout/two_stages.py": "fewstep concepts",
}
CONFIGS = {"objective": ("configs/distill", "configs/preference", "configs/default"), "customization": ("configs/lora",)}


def read_table() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docs" / "papers.yaml").read_text())


def registered() -> dict[str, list[str]]:
    """kind -> names of every method that can be chosen by a name."""
    import distill.networks.evaluator  # noqa: F401  (makes its reward known)
    from customization.algebra.sparse import METHODS as MERGES
    from customization.registry import METHODS as CUSTOMIZATIONS
    from distill.registry import OBJECTIVES
    from gen.rewards import REWARDS
    from gen.tasks.energies import ENERGIES
    from gen.tasks.table import TASKS
    from gen.tasks.training_free.task import TRAINING_FREE
    from samplers.cache.registry import CACHES
    from samplers.composition.registry import COMPOSITIONS
    from samplers.guidance.energy_methods import METHODS as ENERGY_METHODS
    from samplers.guidance.registry import GUIDANCE
    from samplers.registry import GRIDS, SOLVERS

    tables = {
        "sampler": SOLVERS,
        "schedule": GRIDS,
        "guidance": GUIDANCE,
        "cache": CACHES,
        "composition": COMPOSITIONS,
        "energy guidance": ENERGY_METHODS,
        "energy": (*ENERGIES, *(f"reward:{name}" for name in REWARDS)),
        "task": TASKS,
        "training-free change": TRAINING_FREE,
        "objective": OBJECTIVES,
        "customization": CUSTOMIZATIONS,
        "merge": ("sum", *MERGES),
    }
    return {kind: list(names) for kind, names in tables.items()}


def base_name(kind: str, name: str) -> str:
    """Our name of a sampler or schedule that ComfyUI calls by this one."""
    from samplers.registry import grid_info, solver_info

    return (solver_info if kind == "sampler" else grid_info)(name).name


def papers_of(table: dict[str, Any], kind: str, name: str) -> list[str] | None:
    """The arXiv numbers of a method, [] for one that is not from a paper, None for one that the table does not know."""
    for one in (name, name.removeprefix("comfy:")):
        one = one if one is name else base_name(kind, one)
        if one in table["methods"].get(kind, {}):
            return table["methods"][kind][one]
        if one in table["not_from_a_paper"].get(kind, {}):
            return []
    return None


def citations(text: str) -> set[str]:
    """The arXiv numbers that a text cites."""
    return {number for group in CITATION.findall(text) for number in re.findall(NUMBER, group)}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def cited_by(folder: str, pattern: str) -> dict[str, list[tuple[bool, str]]]:
    """arXiv number -> (in passing, file) of the files below a folder that cite it, first those whose source it is."""
    found: dict[str, list[tuple[bool, str]]] = defaultdict(list)
    for path in sorted((ROOT / folder).rglob(pattern)):
        text = text_of(path)
        if not (numbers := citations(text)):
            continue
        opening = ast.get_docstring(ast.parse(text)) or "" if path.suffix == ".py" else text
        sources = "\n".join(line for line in text.splitlines() if re.search(r"\b[Ss]ources?\b", line))
        for number in numbers:
            found[number].append((number not in opening + sources, name_of(path)))
    return {number: sorted(files) for number, files in found.items()}


def defined(file: str, number: str) -> set[str]:
    """Public names that a source file defines and that cite a paper; all of its public names where none does."""
    text = text_of(ROOT / file)
    nodes = [
        node
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_") and len(node.name) > 3
    ]
    citing = {node.name for node in nodes if number in citations(ast.get_source_segment(text, node) or "")}
    return citing or {node.name for node in nodes}


@dataclass(frozen=True)
class TestFile:
    """A test: its text, the words in it, and the dotted names in it."""

    text: str
    words: set[str]
    dotted: set[str]


def read_tests() -> dict[str, TestFile]:
    found = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        text = text_of(path)
        found[name_of(path)] = TestFile(text, set(re.findall(r"\w+", text)), set(re.findall(r"\w+(?:\.\w+)+", text)))
    return found


def tests_of(number: str, code: list[str], methods: list[str], tests: dict[str, TestFile]) -> list[str]:
    """The two tests that say most about a paper.

    They cite it, are named after a file that implements it, import that file, use what it defines, or name a method of it.
    """
    points = {}
    modules = [file.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for file in code]
    stems = {stem for module in modules if len(stem := module.rpartition(".")[2]) > 3}
    names = [defined(file, number) for file in code]
    packages = {file.partition("/")[0] for file in code}
    for path, test in tests.items():
        score = 12 * (number in citations(test.text)) + 4 * any(stem in path.rpartition("/")[2] for stem in stems)
        score += 3 * min(len(names[0] & test.words), 3) + sum(bool(others & test.words) for others in names[1:])
        score += 2 * bool(test.dotted.intersection(modules))
        score += 4 * min(sum(f'"{name}"' in test.text for name in methods), 2)
        if score > 1:
            points[path] = score + 2 * (path.split("/")[1] in packages)
    return sorted(points, key=lambda name: (-points[name], name))[:2]


@cache
def configs_by_type(folder: str) -> dict[str, str]:
    """type of the objective -> the config with the shortest name that has it."""
    paths = sorted((ROOT / folder).glob("*.yaml"), key=lambda path: (len(path.name), path.name), reverse=True)
    return {(yaml.safe_load(text_of(path)).get("objective") or {}).get("type"): name_of(path) for path in paths}


def config_of(kind: str, name: str) -> str | None:
    return next((found[name] for folder in CONFIGS[kind] if name in (found := configs_by_type(folder))), None)


def use_of(kind: str, name: str) -> str | None:
    """The config or command that runs a method."""
    if kind in CONFIGS:
        config = config_of(kind, name)
        return f"`{config}`" if config else None
    command = COMMANDS.get((kind, name)) or f"{OPTIONS[kind]} {name}"
    return f"`{command}`"


def joined(names: list[str]) -> str:
    return "<br>".join(f"`{name}`" for name in names) or "none"


def named_after(short: str, file: str) -> int:
    """How many letters of a paper's name its file has: dpm_solver_pp.py of DPM-Solver++ more than dpm_solver.py; 0 for none."""
    from samplers.lookup import normalise_name

    stem = normalise_name(Path(file).stem)
    return len(stem) if stem in normalise_name(short) else 0


def papers_table(table: dict[str, Any]) -> list[str]:
    """A row for every paper that the code cites."""
    cited: dict[str, list[tuple[bool, str]]] = defaultdict(list)
    for package in PACKAGES:
        for number, files in cited_by(package, "*.py").items():
            cited[number] += files
    names = {number: table["papers"].get(number, ("",))[0] for number in cited}
    code = {
        number: [file for _, file in sorted(files, key=lambda one: (-named_after(names[number], one[1]), one[0]))]
        for number, files in cited.items()
    }
    methods: dict[str, list[str]] = defaultdict(list)
    uses: dict[str, list[str]] = defaultdict(list)
    for kind, names in registered().items():
        for name in names:
            for number in papers_of(table, kind, name) or []:
                methods[number].append(name)
                if not is_form(table, kind, name) and (use := use_of(kind, name)):
                    uses[number].append(use)
    for number, files in code.items():
        for begin, command in RUN_BY.items():
            if any(file.startswith(begin) for file in files):
                uses[number].append(f"`{command}`")
    configs = cited_by("configs", "*.yaml")
    tests = read_tests()

    rows = []
    papers: dict[str, list[str]] = table["papers"]
    for number in sorted((n for n in code if n in papers), key=lambda n: papers[n][0].casefold()):
        short, title = papers[number]
        name = f"**{title}**" if title.startswith(short) else f"**{short}**: {title}"
        link = f"[arXiv {number}](https://arxiv.org/abs/{number})"
        chosen = tests_of(number, code[number], methods[number], tests)
        shown = list(dict.fromkeys(uses[number])) or [f"`{file}`" for _, file in configs.get(number, [])]
        use = "<br>".join(shown[:4] + (["..."] if len(shown) > 4 else [])) or "from Python"
        rows.append(f"| {name}. 20{number[:2]}, {link} | {joined(code[number])} | {joined(chosen)} | {use} |")
    return ["| paper | code | tests | config or command |", "|---|---|---|---|", *rows]


def is_form(table: dict[str, Any], kind: str, name: str) -> bool:
    """ComfyUI's form of another row, which has no row of its own in the second table."""
    return name.startswith("comfy:") and name not in table["methods"].get(kind, {})


def method_tables(table: dict[str, Any]) -> list[str]:
    """For every kind of method a table of names with their papers."""
    lines = []
    for kind, names in registered().items():
        lines += ["", f"### {kind.capitalize()}", "", "| name | papers |", "|---|---|"]
        for name in names:
            if is_form(table, kind, name):
                continue
            source = "; ".join(f"{table['papers'][n][0]} (arXiv {n})" for n in papers_of(table, kind, name) or [])
            source = source or f"not from a paper: {table['not_from_a_paper'].get(kind, {}).get(name)}"
            lines.append(f"| `{name}` | {source} |")
    return lines


INTRODUCTION = """# Papers

`docs/generate_papers.py` writes this page from the sources. The first table lists every paper that the code cites: the files
that implement it, the tests that say most about it, and the config or command that runs it. The tables below it list every
method by its name.
"""


def page() -> str:
    """docs/papers.md."""
    table = read_table()
    forms = "ComfyUI's form of a sampler or schedule (`comfy:NAME`) has the papers of `NAME`."
    lines = [INTRODUCTION, *papers_table(table), "", "## Methods by name", "", forms, *method_tables(table)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "papers.md").write_text(page(), encoding="utf-8")
