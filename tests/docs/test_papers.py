"""docs/papers.md is what the sources say, and every method is in it."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def papers():
    return runpy.run_path(str(ROOT / "docs" / "generate_papers.py"))


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "papers.md").read_text(encoding="utf-8")


def test_the_page_is_what_the_generator_writes(papers, page):
    assert page == papers["page"](), "docs/papers.md is old: run python docs/generate_papers.py"


def test_every_registered_method_has_a_paper_or_a_reason(papers):
    table, registered = papers["read_table"](), papers["registered"]()
    unknown = [
        f"{kind} {name}"
        for kind, names in registered.items()
        for name in names
        if papers["papers_of"](table, kind, name) is None
    ]
    assert not unknown, f"docs/papers.yaml says no paper, and no other source, of {', '.join(unknown)}"
    for part in ("methods", "not_from_a_paper"):
        for kind, rows in table[part].items():
            assert not set(rows) - set(registered[kind]), f"docs/papers.yaml names a {kind} that is not registered"


def test_every_paper_has_a_title_and_is_cited_by_the_code(papers):
    table = papers["read_table"]()
    cited = {number for package in papers["PACKAGES"] for number in papers["cited_by"](package, "*.py")}
    assert cited == set(table["papers"])
    methods = {number for rows in table["methods"].values() for numbers in rows.values() for number in numbers}
    assert methods <= cited


def test_every_file_of_the_page_exists(page):
    files = re.findall(r"`((?:samplers|gen|distill|customization|tests|configs|docs)/[^`]+)`", page)
    assert len(files) > 300 and not [name for name in files if not (ROOT / name).is_file()]
    assert "| none |" not in page  # every paper has a test


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("DPM-Solver++", "samplers/solvers/dpm_solver_pp.py"),
        ("UniPC", "samplers/solvers/unipc.py"),
        ("TFG", "samplers/guidance/tfg.py"),
        ("MultiDiffusion", "samplers/canvas/multidiffusion.py"),
        ("Consistency models", "distill/objectives/consistency_distillation.py"),
        ("sCM", "distill/objectives/scm.py"),
        ("DMD2", "distill/objectives/dmd2.py"),
        ("CFG++", "samplers/guidance/cfgpp.py"),
        ("Custom Diffusion", "customization/methods/custom_diffusion.py"),
        ("Progressive distillation", "distill/objectives/progressive_distillation.py"),
    ],
)
def test_a_paper_is_found_by_its_name(page, name, file):
    rows = [line for line in page.splitlines() if line.lower().startswith(f"| **{name.lower()}")]
    assert any(file in row for row in rows)


def test_citations_are_read_however_they_are_written(papers):
    citations = papers["citations"]
    assert citations("arXiv 2403.12015, 2503.09641; see\narXiv\n    1910.02054") == {"2403.12015", "2503.09641", "1910.02054"}
    assert not citations("arXiv 2403.120156, 0.75629, 2403.12015")  # a number that is too long, and numbers without the word
