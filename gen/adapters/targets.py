"""Where a layer of an adapter goes: a module, some rows of one, or several modules that share its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn


@dataclass(frozen=True)
class Target:
    """A module, or its rows start to stop; cut: which rows of the layer's change go there, if not all."""

    module: str
    rows: tuple[int, int] | None = None
    cut: tuple[int, int] | None = None


def stacked(names: Sequence[str], modules: Mapping[str, nn.Module]) -> tuple[Target, ...]:
    """A layer whose rows are those of these modules, one after another; () where one of them is missing or no matrix."""
    if len(names) == 1:
        return (Target(names[0]),) if names[0] in modules else ()
    if not all(isinstance(modules.get(name), nn.Linear) for name in names):
        return ()
    targets, stop = [], 0
    for name in names:
        size = cast("nn.Linear", modules[name]).out_features
        targets.append(Target(name, None, (stop, stop + size)))
        stop += size
    return tuple(targets)


def swapped(name: str, modules: Mapping[str, nn.Module]) -> tuple[Target, ...]:
    """A layer whose halves are the module's in the other order: (shift, scale) for a module that has (scale, shift)."""
    module = modules.get(name)
    if not isinstance(module, nn.Linear) or module.out_features % 2:
        return ()
    half, size = module.out_features // 2, module.out_features
    return Target(name, (0, half), (half, size)), Target(name, (half, size), (0, half))
