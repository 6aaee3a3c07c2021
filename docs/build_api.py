"""Builds the API reference: HTML pages of all four packages, from their docstrings, by pdoc.

    python docs/build_api.py [FOLDER]      FOLDER is outputs/api by default; open FOLDER/index.html

It needs the extra `dev`.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import pkgutil
import re
import sys
import typing
import warnings
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

PACKAGES = ("samplers", "gen", "distill", "customization")
PARAMETER = re.compile(r"(\w+(?:, \w+)*): ")  # "x, y: meaning (unit)"
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})(?!\d)")


def modules() -> list[ModuleType]:
    """Every module of the packages, imported."""
    found = []
    for package in PACKAGES:
        top = importlib.import_module(package)
        found += [top]
        names = [info.name for info in pkgutil.walk_packages(top.__path__, f"{package}.")]
        found += [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    return found


def resolve_fields(module: ModuleType) -> None:
    """Give the `__init__` of dataclasses and the `__new__` of named tuples real types in the place of their names.

    A field that a class inherits has a type that only the base's module knows by name.
    """
    for kind in vars(module).values():
        if not inspect.isclass(kind) or kind.__module__ != module.__name__:
            continue
        made = "__init__" if dataclasses.is_dataclass(kind) else "__new__" if hasattr(kind, "_fields") else ""
        if not made or not hasattr(function := getattr(kind, made), "__annotations__"):
            continue
        for base in reversed(kind.__mro__):
            for name, annotation in inspect.get_annotations(base).items():
                text = annotation.__forward_arg__ if isinstance(annotation, typing.ForwardRef) else annotation
                if name not in function.__annotations__ or not isinstance(text, str):
                    continue
                try:
                    function.__annotations__[name] = eval(text, dict(vars(sys.modules[base.__module__])))
                except NameError:  # imported for type checking only, which pdoc sees to
                    continue


def as_markdown(docstring: str) -> str:
    """A docstring of ours as Markdown: parameters as a list, papers as links."""
    lines: list[str] = []
    for line in docstring.splitlines():
        listed = PARAMETER.match(line)
        if listed and lines and lines[-1] and not in_list(lines):
            lines.append("")  # Markdown wants an empty line before a list
        lines.append(f"- **{listed[1]}**: {line[listed.end() :]}" if listed else line)
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", "\n".join(lines))


def in_list(lines: list[str]) -> bool:
    """Do the last lines, back to an empty one, belong to a list?"""
    paragraph = itertools.takewhile(bool, reversed(lines))
    return any(line.startswith("- **") for line in paragraph)


def build(folder: Path) -> None:
    import gen

    for module in modules():
        resolve_fields(module)
        for name in getattr(module, "__all__", ()):  # some are loaded when they are first used
            setattr(module, name, getattr(module, name))
        if hasattr(module, "__path__") and hasattr(module, "__all__"):  # pdoc shows no module that is not in __all__
            module.__all__ = [*module.__all__, *(info.name for info in pkgutil.iter_modules(module.__path__))]

    import pdoc
    import pdoc.docstrings

    convert = pdoc.docstrings.convert
    pdoc.docstrings.convert = lambda text, docformat, source: convert(as_markdown(text), docformat, source)
    # torch gives subclasses of its Parameter an attribute that is in no source
    warnings.filterwarnings("ignore", r"Cannot determine where .*\._is_param is taken from")
    pdoc.render.configure(docformat="markdown", show_source=False, footer_text=f"fewstep {gen.__version__}")
    pdoc.pdoc(*PACKAGES, output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "outputs" / "api")
