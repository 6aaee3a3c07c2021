"""What the pages name in backticks exists: files, folders, modules, classes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
FILES = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
).stdout.split()
TOP = {"samplers", "gen", "distill", "customization", "tests", "configs", "docs"}
# names of files that users or programs make, and of other libraries' files
MADE = re.compile(
    r"(?:a|NAME|FILE|scenes|my_\w+|adapter_config|scheduler_config|model_index|metadata|report|table|recipe|_orthogonal|log)\.\w+"
    r"|model\.safetensors\.index\.json|outputs/.*|runs/.*"
)


def in_backticks(page: str) -> list[str]:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    return [word for code in re.findall(r"`([^`\n]+)`", text) for word in re.split(r"[\s,;:()]+", code)]


def missing(words: list[str], files: list[str]) -> list[str]:
    """Paths and modules among words that are no file or folder of ours."""
    folders = {f"{parent}/" for name in files for parent in map(str, Path(name).parents) if parent != "."}
    ends = {name.split("/", start)[-1] for name in files for start in range(name.count("/") + 1)}
    modules = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files if name.endswith(".py")}
    wrong = []
    for word in words:
        if re.fullmatch(r"[\w./-]+\.(?:py|yaml|md|json|txt)", word):
            if word not in ends and not MADE.fullmatch(word):
                wrong.append(word)
        elif re.fullmatch(r"(?:\w+/)+", word) and word.split("/")[0] in TOP:
            if word not in folders:
                wrong.append(word)
        elif re.fullmatch(r"\w+(?:\.\w+)+", word) and word.split(".")[0] in TOP:
            parts = word.split(".")  # a module, or a name in one
            if not any(".".join(parts[:count]) in modules for count in range(max(len(parts) - 2, 2), len(parts) + 1)):
                wrong.append(word)
    return wrong


@pytest.mark.parametrize("page", PAGES)
def test_paths_in_backticks_exist(page):
    assert not (wrong := missing(in_backticks(page), FILES)), f"{page} names {', '.join(wrong)}, which do not exist"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    wrong = [link for link in links if link and not ((ROOT / page).parent / link).exists()]
    assert not wrong, f"{page} links to {', '.join(wrong)}, which do not exist"


@pytest.mark.parametrize("page", PAGES)
def test_class_names_in_backticks_are_of_the_code(page):
    source = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in FILES if name.endswith(".py"))
    known = set(re.findall(r"\w+", source))
    named = {word for word in in_backticks(page) if re.fullmatch(r"[A-Z][a-z]+(?:[A-Z][A-Za-z]*)+", word)}
    theirs = {
        word for word in named if re.search(r"Scheduler$|Pipeline$|Model$|Discrete$|Multistep$", word)
    }  # of other libraries
    assert not (wrong := named - known - theirs), f"{page} names {', '.join(sorted(wrong))}, which the code does not have"


def test_what_does_not_exist_is_found():
    files = ["samplers/guidance/cfg.py", "docs/lora.md"]
    right = [
        "samplers/guidance/cfg.py",
        "cfg.py",
        "guidance/cfg.py",
        "samplers/guidance/",
        "samplers.guidance.cfg.ClassifierFree",
    ]
    assert not missing(right, files)
    wrong = ["cgf.py", "samplers/guide/", "samplers.guide.cfg.ClassifierFree", "lore.md", "samplers/cfg.py"]
    assert missing(wrong, files) == wrong
