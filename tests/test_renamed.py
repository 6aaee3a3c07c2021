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


def test_packages_that_were_modules_lead_on(recwarn):
    from distill.losses import pseudo_huber
    from distill.optim import Muon
    from distill.parallel import local
    from distill.parallel.shards import local as kept
    from gen.cli import main

    assert local is kept and callable(main) and callable(pseudo_huber) and isinstance(Muon, type)
    assert sum("has moved to" in str(w.message) for w in recwarn) >= 4


def test_what_never_was_is_still_an_error():
    with pytest.raises(ModuleNotFoundError, match=r"gen\.nowhere"):
        importlib.import_module("gen.nowhere")
    with pytest.raises(AttributeError, match=r"none of gen\..* has 'nothing'"):
        _ = importlib.import_module("gen.components").nothing
    before = list(sys.meta_path)
    install("samplers")  # once more changes nothing
    assert sys.meta_path == before
    assert not {name for table in TABLES.values() for name in table} & set(importlib.import_module("samplers").__all__)
