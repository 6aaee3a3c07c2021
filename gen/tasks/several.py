"""Keywords that take one value or several: pictures, and where each counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.io.images import read_picture
from gen.tasks.edit.task import fit_and_warn, size_tolerance

if TYPE_CHECKING:
    from gen.models.model import Model
    from gen.pipeline.types import Settings


def listed(value: Any) -> list[Any]:
    """One or several, as a list; nothing as an empty one."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def read_masks(name: str, whose: str, model: Model, settings: Settings, masks: Any, count: int) -> Tensor | None:
    """(N, 1, H, W) of 0 and 1, at the size of the made picture, one for each of `count` pictures; None for none.

    name: of the keyword. whose: has the pictures, for the ValueError of another number ("an adapter").
    """
    given = listed(masks)
    if not given:
        return None
    if len(given) != count:
        raise ValueError(f"{name} has {len(given)} masks where {whose} has {count} pictures; give one for each.")
    tolerance = size_tolerance(model)
    read = [read_picture(name, one, "L") for one in given]
    return (torch.cat([fit_and_warn(name, one, settings.height, settings.width, tolerance) for one in read]) >= 0.5).float()
