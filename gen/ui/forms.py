"""What can be chosen, with the options of each, read from the registries: the page has no list of methods of its own."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from gen.calls.values import parse_value, write_value

RESERVED = ("scale", "negative", "interval", "noise")  # given by the call itself


@dataclass(frozen=True)
class OptionField:
    """An option of a method.

    kind: "switch" of true and false, "number", "whole" number, "text" that is read as on the command line, "picture" or
        "file": the path of a picture that is given, and of a model.
    default: as text, "" where there is none.
    needed: it has no default and must be given.
    """

    name: str
    kind: str
    default: str = ""
    needed: bool = False

    def read(self, text: Any) -> Any:
        """The value of what was typed; None for nothing. ValueError says what is wrong."""
        if text is None or (isinstance(text, str) and not text.strip()):
            return None
        if self.kind in ("picture", "file"):
            return str(text)
        value = parse_value(text.strip()) if isinstance(text, str) else text
        if self.kind == "switch" and not isinstance(value, bool):
            raise ValueError(f"{self.name} is {text!r:.80}; it is true or false.")
        if self.kind == "whole" and (isinstance(value, bool) or not isinstance(value, int)):
            raise ValueError(f"{self.name} is {text!r:.80}; give a whole number.")
        if self.kind == "number" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{self.name} is {text!r:.80}; give a number.")
        return value


@dataclass(frozen=True)
class MethodChoice:
    """A method that can be chosen.

    about: its description. fields: its options. group: what kind of it.
    also: its names in other programs.
    """

    name: str
    about: str
    fields: tuple[OptionField, ...] = ()
    group: str = ""
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """All that a picture can be made with, by the keyword of a call."""

    samplers: dict[str, MethodChoice]
    schedules: dict[str, MethodChoice]
    guidance: dict[str, MethodChoice]
    caches: dict[str, MethodChoice]
    compositions: dict[str, MethodChoice]
    energies: dict[str, MethodChoice]
    methods: dict[str, MethodChoice]  # of energies


def read_catalogue(energies: Mapping[str, Any] | None = None) -> Catalogue:
    """The registries as they are now; imports torch. energies: rows of other packages (`gen.cli.energies`)."""
    from gen.tasks.energies import ENERGIES, EnergyInfo
    from samplers.cache import CACHES
    from samplers.composition import COMPOSITIONS
    from samplers.guidance import GUIDANCE
    from samplers.guidance.energy_methods import METHODS
    from samplers.registry import GRIDS, SOLVERS

    rows = {**ENERGIES, **{name: EnergyInfo(name, *row) for name, row in (energies or {}).items()}}
    shown = {name: info for name, info in rows.items() if info.made_by is None}
    return Catalogue(
        samplers={info.name: _choice(info) for info in SOLVERS.values()},
        schedules={info.name: _choice(info) for info in GRIDS.values() if info.name != "table"},
        guidance={
            info.name: _choice(info, group=_group(info)) for info in GUIDANCE.values() if set(info.needs) <= set(RESERVED)
        },
        caches={info.name: _choice(info) for info in CACHES.values()},
        compositions={info.name: _choice(info) for info in COMPOSITIONS.values()},
        energies={name: _with_files(_choice(info, _factory_of(info), info.needs)) for name, info in shown.items()},
        methods={info.name: _choice(info) for info in METHODS.values()},
    )


def fields_of(make: Callable[..., Any] | None, names: Iterable[str], needs: Iterable[str] = ()) -> tuple[OptionField, ...]:
    """The options of a factory, their kinds and defaults by its signature."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(make).parameters if make else {}
    except (TypeError, ValueError):
        parameters = {}
    needs = tuple(needs)
    return tuple(_field(name, parameters.get(name), name in needs) for name in names if name not in RESERVED)


def _field(name: str, parameter: inspect.Parameter | None, needed: bool) -> OptionField:
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return OptionField(name, "text", "", needed)
    default = parameter.default
    if isinstance(default, bool):
        return OptionField(name, "switch", str(default).lower())
    annotation = str(parameter.annotation)
    if isinstance(default, int) and "float" not in annotation:
        return OptionField(name, "whole", str(default))
    if isinstance(default, int | float):
        return OptionField(name, "number", str(default) if math.isfinite(default) else "")  # no call can say infinity
    try:
        return OptionField(name, "text", "" if default is None else write_value(default))
    except ValueError:
        return OptionField(name, "text")


def _choice(info: Any, make: Any = None, needs: tuple[str, ...] = (), group: str = "") -> MethodChoice:
    own = fields_of(make or getattr(info, "factory", None) or info.build, info.options, needs)
    return MethodChoice(info.name, info.description, own, group, tuple(getattr(info, "aliases", ())))


def _with_files(energy: MethodChoice) -> MethodChoice:
    """The options that are files, as such."""
    kinds = {"image": "picture", "model": "file", "head": "file", "folder": "file"}
    return replace(energy, fields=tuple(replace(one, kind=kinds.get(one.name, one.kind)) for one in energy.fields))


def _group(info: Any) -> str:
    return "inside another" if info.inner else "around another" if info.modifier else "a rule"


def _factory_of(info: Any) -> Any:
    """The factory of an energy; one whose module needs what is not there has options without defaults."""
    import importlib

    try:
        return info.made_by or getattr(importlib.import_module(info.module), info.factory)
    except ImportError:
        return lambda: None
