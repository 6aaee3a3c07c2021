"""Python files of the user's own: run once per process at the user's word, and remembered by their content.

A file from outside can never name one: only the command line (`--import my_methods.py`) and the user's own Python call
`import_file`. What it registers (`register_solver`, `register_guidance`, `register_objective`, ...) is known by name for the
rest of the process. Recipes and checkpoints record the sha256, and a replay or resume asks for the same file.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType

from gen.io.errors import read_bytes

_lock = threading.RLock()
_modules: dict[str, ModuleType] = {}  # sha256 -> module
_imported: dict[str, str] = {}  # file name -> sha256


def import_file(path: str | Path, option: str = "--import") -> ModuleType:
    """Run a Python file and return its module; a file of the same content is run only once in a process.

    path: of a regular .py file.
    option: what the user typed it after, for messages.
    Raises ValueError in a sentence for what is no Python file, for one that fails, and for two of one name that differ.
    """
    path = Path(path)
    if path.suffix != ".py" or not path.is_file():
        what = "is not Python source" if path.is_file() else "is not a file"
        raise ValueError(f"{option} {path}: it {what}; give the path of a .py file.")
    digest = hashlib.sha256(read_bytes(path, 16 << 20)).hexdigest()
    with _lock:
        if digest in _modules:
            return _modules[digest]
        if path.name in _imported:
            raise ValueError(f"{option} {path}: another file named {path.name} was imported before; rename one of them.")
        try:
            module = run_file(path, f"_user_{path.stem}_{digest[:8]}")
        except Exception as error:
            raise ValueError(f"{option} {path} failed: {type(error).__name__}: {error}.") from error
        assert module is not None  # as of every .py file
        _modules[digest], _imported[path.name] = module, digest
        return module


def import_files(paths: Iterable[str | Path] | None) -> None:
    """`import_file` of each, in order."""
    for path in paths or ():
        import_file(path)


def run_file(path: Path, name: str) -> ModuleType | None:
    """Run a file as the module `name`, and return it; None for a file that is no Python. What it raises comes through."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def imported() -> dict[str, str]:
    """File name -> sha256 of every file that this process has imported."""
    with _lock:
        return dict(_imported)


def check_imported(recorded: Mapping[str, str], what: str = "The picture was made") -> None:
    """ValueError unless every file that was recorded (name -> sha256) has been imported in this process, unchanged."""
    here = imported()
    for name, digest in recorded.items():
        if digest not in here.values():
            changed = f", which differs from the {name} imported now" if name in here else ", which is not imported"
            raise ValueError(f"{what} with {name} (sha256 {digest[:12]}…){changed}; give that file with --import.")
