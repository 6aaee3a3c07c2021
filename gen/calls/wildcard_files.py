"""The folder of wildcards: text files with a value a line, by their path in the folder without `.txt`.

A name is looked up among the files that the folder holds and is never a path, so a prompt from elsewhere cannot open others.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import cached_property
from pathlib import Path

from gen.calls.templates import Option, parse_template
from gen.io.errors import read_text
from samplers.lookup import nearest

MAX_FILE = 64 << 20  # bytes
MAX_FILES = 100_000
_WEIGHT = re.compile(r"(\d+\.?\d*|\.\d+)::")


class WildcardFiles:
    """What `__name__` in a prompt may name.

    folder: of .txt files, in folders too; None is no folder, of which every name is refused.
    Raises ValueError if it is not a folder.
    """

    def __init__(self, folder: Path | str | None):
        self.folder = None if folder is None else Path(folder)
        self._options: dict[str, tuple[Option, ...]] = {}
        if self.folder is not None and not self.folder.is_dir():
            raise ValueError(f"{self.folder} is not a folder; give one of .txt files with a value a line for wildcards.")

    @cached_property
    def names(self) -> dict[str, Path]:
        """Name -> file, in the order of names. Links that lead out of the folder are left out."""
        if self.folder is None:
            return {}
        root, found = self.folder.resolve(), {}
        for where, folders, files in os.walk(root):
            folders.sort()
            for file in files:
                path = Path(where, file)
                if path.suffix.lower() == ".txt" and path.resolve().is_relative_to(root):
                    found[path.relative_to(root).with_suffix("").as_posix()] = path
            if len(found) > MAX_FILES:
                raise ValueError(f"{self.folder} holds more than {MAX_FILES} files of wildcards; give a folder in it.")
        return dict(sorted(found.items()))

    def options(self, name: str) -> tuple[Option, ...]:
        """The values of a file, or of all that a name with * stands for (* within one folder, ** through all).

        Raises ValueError if there is no such file, it is empty, or a line of it cannot be read.
        """
        if name not in self._options:
            options = tuple(option for one in self._matching(name) for option in self._read(one))
            if not any(option.weight for option in options):
                raise ValueError(f"The wildcard __{name}__ has no values; write some into its file, one a line.")
            self._options[name] = options
        return self._options[name]

    def digest(self) -> str:
        """sha256 of all names and contents."""
        total = hashlib.sha256()
        for name, path in self.names.items():
            content = hashlib.sha256(read_text(path, MAX_FILE).encode()).hexdigest()
            total.update(f"{name}\0{content}\n".encode())
        return total.hexdigest()

    def _matching(self, name: str) -> list[str]:
        if self.folder is None:
            raise ValueError(
                f"The prompt asks for the wildcard __{name}__, but no folder of wildcards is given; give one (--wildcards DIR) "
                "or write \\__ for the characters."
            )
        if "*" not in name:
            found = [name] if name in self.names else []
        else:
            stars = {"*": "[^/]*", "**": ".*"}
            pattern = re.compile("".join(stars.get(part) or re.escape(part) for part in re.split(r"(\*\*?)", name)))
            found = [one for one in self.names if pattern.fullmatch(one)]
        if not found:
            near = nearest(name, self.names)
            hint = f" Did you mean __{near}__?" if near else f" It holds {', '.join(list(self.names)[:8]) or 'none'}."
            raise ValueError(f"{self.folder} has no wildcard __{name}__ (a file {name}.txt).{hint}")
        return found

    def _read(self, name: str) -> list[Option]:
        options = []
        for number, line in enumerate(read_text(self.names[name], MAX_FILE).splitlines(), 1):
            value = line.strip()
            if not value or value.startswith("#"):
                continue
            weight = 1.0
            if match := _WEIGHT.match(value):
                weight, value = float(match[1]), value[match.end() :].strip()
            try:
                options.append(Option(weight, parse_template(value)))
            except ValueError as error:
                raise ValueError(f"{self.names[name]}, line {number}: {error}") from None
        return options
