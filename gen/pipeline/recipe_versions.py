"""Recipes of an earlier version, with the defaults of their time written out, so that they make the same picture again.

Version 1: solvers with memory kept their points on long steps (`ending`), EDICT mixed alike on all (`mix_length`), a
threshold's limit was 1 for every model.
Version 2: the schedule "automatic" gave LCM that of Euler.
Tasks declare what changed of theirs (`gen.tasks.declaration.TaskOptions.upgrades`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from gen.tasks.table import TASKS

if TYPE_CHECKING:
    from gen.pipeline.recipe import PlainRecipe

AnyRecipe = TypeVar("AnyRecipe", bound="PlainRecipe")

CURRENT = 3
_AS_THEN = {"ending": "full", "mix_length": 0.0}  # of solvers


def upgraded(recipe: AnyRecipe) -> AnyRecipe:
    """A recipe as one of the current version; itself if it is one."""
    if recipe.version == CURRENT:
        return recipe
    changes: dict[str, Any] = {}
    for version in range(CURRENT - 1, recipe.version - 1, -1):
        changes |= _CHANGES[version](recipe)
        for row in TASKS.values():
            if version in row.options.upgrades:
                changes |= row.options.upgrades[version](recipe)
    return recipe.model_copy(update={"version": CURRENT, **changes})


def _since_1(recipe: PlainRecipe) -> dict[str, Any]:
    changes: dict[str, Any] = {"sampler_options": _solver_options(recipe.sampler, recipe.sampler_options)}
    if {"clip", "dynamic_threshold"} & set(recipe.guidance.split(" + ")):
        changes["guidance_options"] = {"limit": 1.0, **recipe.guidance_options}
    return changes


def _since_2(recipe: PlainRecipe) -> dict[str, Any]:
    if recipe.schedule == "automatic" and recipe.schedule_options.get("sampler", recipe.sampler) == "lcm":
        return {"schedule_options": {**recipe.schedule_options, "sampler": "euler"}}
    return {}


_CHANGES = {1: _since_1, 2: _since_2}


def _solver_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from samplers.registry import solver_info

    try:
        known = solver_info(name).options
    except ValueError:  # a solver of its maker's own, or one that is gone: said when it is used
        known = ()
    return {option: value for option, value in _AS_THEN.items() if option in known} | dict(options)
