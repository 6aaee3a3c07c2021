"""Import paths of earlier versions: a module that moved is found under its old name too, with a DeprecationWarning.

Each package lists its own in a text file, a line each: the old name, then the modules that hold now what it held. A line
`old.module:name new.module:name` is of a function or class that has another name too.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def read_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Old name -> new names, from a file of lines; the rest of a line after # is a comment."""
    rows = (line.partition("#")[0].split() for line in path.read_text("utf-8").splitlines())
    return {row[0]: tuple(row[1:]) for row in rows if row}


@functools.cache
def finder(package: str, table: str = "renamed.txt") -> _Renamed:
    """What finds the old names of a package. table: the file of them, in the package's folder."""
    return _Renamed(read_table(Path(sys.modules[package].__path__[0]) / table))


def install(package: str) -> None:
    """Make the old names of a package importable."""
    if finder(package) not in sys.meta_path:
        sys.meta_path.append(finder(package))  # after the usual ones: a module that exists is never hidden


def attributes(package: str, *homes: str) -> Callable[[str], Any]:
    """A `__getattr__` for a package that was a module: what that held is found in `homes`, with a DeprecationWarning."""

    def find(attribute: str) -> Any:
        if importlib.util.find_spec(f"{package}.{attribute}") is not None:  # a module: the import system looks for it itself
            raise AttributeError(f"module {package!r} has no attribute {attribute!r}")
        held = find_in(homes, attribute)
        warnings.warn(f"{package}.{attribute} has moved to {held[0]}.", DeprecationWarning, stacklevel=2)
        return held[1]

    return find


def find_in(homes: Sequence[str], attribute: str) -> tuple[str, Any]:
    """(module, value) of the first module that has an attribute; AttributeError if none has."""
    if not attribute.startswith("__"):
        for home in homes:
            held = importlib.import_module(home)
            if hasattr(held, attribute):
                return home, getattr(held, attribute)
    raise AttributeError(f"none of {', '.join(homes)} has {attribute!r}")


class _Renamed(MetaPathFinder, Loader):
    """Finds modules by their old names, and fills them with what the new ones hold."""

    def __init__(self, table: Mapping[str, tuple[str, ...]]):
        self.table = table

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.table:
            return None
        return ModuleSpec(fullname, self, is_package=any(name.startswith(f"{fullname}.") for name in self.table))

    def exec_module(self, module: ModuleType) -> None:
        homes = self.table[module.__name__]
        warnings.warn(f"{module.__name__} has moved to {' and '.join(homes)}.", DeprecationWarning, stacklevel=2)

        def find(attribute: str) -> Any:
            if renamed := self.table.get(f"{module.__name__}:{attribute}"):
                home, _, name = renamed[0].partition(":")
                return getattr(importlib.import_module(home), name)
            return find_in(homes, attribute)[1]

        module.__getattr__ = find  # type: ignore[method-assign]
