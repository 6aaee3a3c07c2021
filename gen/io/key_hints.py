"""What somebody meant by a key that a config does not have: the nearest one, or the section that has it."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The configs that a field's type allows."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in sections(part)]


def dotted_keys(model: type[BaseModel], prefix: str = "", depth: int = 4) -> list[str]:
    """All keys of a config and of the configs inside of it, as "section.key"."""
    keys = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        if depth > 1:
            keys += [key for inner in sections(field.annotation) for key in dotted_keys(inner, f"{prefix}{name}.", depth - 1)]
    return list(dict.fromkeys(keys))


def nearest_keys(unknown: str, known: Sequence[str]) -> list[str]:
    """The dotted keys that an unknown one may mean, at most two: the same name in another section, and a misspelt neighbour;
    else a misspelt name in another section."""
    from samplers.lookup import nearest  # which loads torch, and keys are seldom wrong

    section, dot, name = unknown.rpartition(".")
    beside = [leaf for start, _, leaf in (key.rpartition(".") for key in known) if start == section]

    same = [key for key in known if key.rpartition(".")[2] == name]
    suggestions = [min(same, key=lambda key: (key.count("."), known.index(key)))] if same else []
    if near := nearest(name, beside):
        suggestions.append(f"{section}{dot}{near}")
    if suggestions:
        return suggestions
    by_name = {key.rpartition(".")[2]: key for key in reversed(known)}
    return [by_name[near]] if (near := nearest(name, by_name)) else []


def unknown_key(unknown: str, known: Sequence[str]) -> str:
    """The sentence about an unknown key: what was meant, or what there is beside it."""
    near = nearest_keys(unknown, known)
    section = unknown.rpartition(".")[0]
    beside = [key for key in known if key.rpartition(".")[0] == section]
    hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known keys: {', '.join(beside or known)}"
    return f"unknown key {unknown!r}; {hint}"
