"""Adapters of a call in a model: loaded under names of their own, and the ones that another call left taken away."""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gen.calls.call import AdapterUse

_put: weakref.WeakKeyDictionary[Any, tuple[list[Any], list[str]]] = weakref.WeakKeyDictionary()  # files as they were, names


def load_one(generator: Any, adapter: Any, weight: float) -> list[str]:
    """Load an adapter: what matched, and which of its learned words have another name because one before it has them too."""
    from gen.adapters.words import words_apart

    loaded = generator.loaded_adapters.loaded.values() if generator.loaded_adapters else ()
    adapter, names = words_apart(adapter, loaded)
    report = generator.load_adapter(adapter, weight=weight)
    renamed = (
        f"Note: another file has learned {old} too; that of {adapter.name} is written {new} in prompts."
        for old, new in names.items()
    )
    return [report.text(), *renamed]


def load_files(generator: Any, uses: Sequence[AdapterUse], allow_nonfinite: bool = False) -> list[str]:
    """Load files one after the other; two of one name become name and name-2. What was matched, in sentences."""
    from gen.adapters import read_adapter

    said: list[str] = []
    for use in uses:
        adapter = read_adapter(Path(use.file), allow_nonfinite=allow_nonfinite)
        name, n = adapter.name, 1
        while name in generator.adapters:
            n += 1
            name = f"{adapter.name}-{n}"
        said += load_one(generator, replace(adapter, name=name), use.weight)
    return said


def put_adapters(generator: Any, uses: Sequence[AdapterUse]) -> list[str]:
    """Let just these act, as if the model had been opened for them. What is loaded is kept if it is the same files in the same
    order. Returns what was said of those that were loaded."""
    wanted = [(use.file, _state(Path(use.file))) for use in uses]
    kept = _put.get(generator)
    loaded = dict(generator.loaded_adapters.loaded) if generator.loaded_adapters else {}
    if kept is not None and kept[0] == wanted and list(loaded) == kept[1]:
        generator.set_adapters(dict(zip(kept[1], (use.weight for use in uses), strict=True)))
        return []
    _put.pop(generator, None)
    for name in loaded:
        generator.unload_adapter(name)
    said = load_files(generator, uses)
    _put[generator] = (wanted, list(generator.adapters))
    return said


def _state(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does; None for a folder, which is read again each time."""
    try:
        state = os.stat(path)
    except OSError:
        return None
    return (state.st_ino, state.st_size, state.st_mtime_ns) if path.is_file() else None
