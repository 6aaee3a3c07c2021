"""Import paths of earlier versions still lead to what they held."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path

import pytest

import customization
import distill
import gen
import samplers
from samplers.renamed import install, read_table

TABLES = {
    package.__name__: read_table(Path(package.__file__).parent / where)
    for package, where in (
        (samplers, "renamed.txt"),
        (gen, "io/renamed.txt"),
        (distill, "renamed.txt"),
        (customization, "renamed.txt"),
    )
}
MODULES = [(name, homes) for table in TABLES.values() for name, homes in table.items() if ":" not in name]


def test_the_tables_are_there():
    assert all(len(table) > 5 for table in TABLES.values())
    for package, table in TABLES.items():
        assert all(name.startswith(f"{package}.") for name in table)


@pytest.mark.parametrize(("name", "homes"), MODULES, ids=[name for name, _ in MODULES])
def test_an_old_path_holds_what_the_new_ones_hold(name, homes):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sys.modules.pop(name, None)
        module = importlib.import_module(name)
    assert any(issubclass(w.category, DeprecationWarning) and name in str(w.message) for w in caught)
    for home in homes:
        held = importlib.import_module(home)
        public = [one for one, value in vars(held).items() if getattr(value, "__module__", "") == home]
        assert not public or hasattr(module, public[0])


def test_renamed_functions_and_classes_are_found():
    rows = [(name, homes[0]) for table in TABLES.values() for name, homes in table.items() if ":" in name]
    for old, new in rows:
        (module, name), (home, other) = old.split(":"), new.split(":")
        assert getattr(importlib.import_module(module), name) is getattr(importlib.import_module(home), other), old


def test_what_never_was_is_still_an_error(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="gen.nowhere"):
        importlib.import_module("gen.nowhere")
    with pytest.raises(AttributeError, match=r"gen\.components'.*has no 'nothing'"):
        _ = importlib.import_module("gen.nn.registry").nothing
    (tmp_path / "renamed.txt").write_text("samplers.path samplers.noise  # hides nothing that exists\n")
    before = list(sys.meta_path)
    install(tmp_path / "renamed.txt")
    install(tmp_path / "renamed.txt")
    try:
        assert len(sys.meta_path) == len(before) + 1
        sys.modules.pop("samplers.path_of_old", None)
        assert importlib.import_module("samplers.path").__file__.endswith("path.py")
    finally:
        sys.meta_path[:] = before
