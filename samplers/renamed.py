"""Import paths of earlier versions: a module that moved is found under its old name too, with a DeprecationWarning.

Each package lists its own in a text file, a line each: the old name, then the modules that hold now what it held. A line
`old.module:name new.module:name` is of a function or class that has another name too.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any


def read_table(path: Path) -> dict[str, tuple[str, ...]]:
    """Old name -> new names, from a file of lines; the rest of a line after # is a comment."""
    rows = (line.partition("#")[0].split() for line in path.read_text("utf-8").splitlines())
    return {row[0]: tuple(row[1:]) for row in rows if row}


def install(path: Path) -> None:
    """Make the old names in a table file importable, once in a process."""
    finder = _Renamed(read_table(path))
    if not any(isinstance(other, _Renamed) and other.table == finder.table for other in sys.meta_path):
        sys.meta_path.append(finder)  # after the usual ones: a module that exists is never hidden


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
            if not attribute.startswith("__"):
                for home in homes:
                    held = importlib.import_module(home)
                    if hasattr(held, attribute):
                        return getattr(held, attribute)
            raise AttributeError(f"module {module.__name__!r}, which has moved to {', '.join(homes)}, has no {attribute!r}")

        module.__getattr__ = find  # type: ignore[method-assign]
