"""Recipes of an earlier version, with the defaults of their time written out, so that they make the same picture again.

Version 1: solvers with memory kept their points on long steps (`ending`), EDICT mixed alike on all (`mix_length`), a
threshold's limit was 1 for every model, and a colour was matched by red, green and blue.
Version 2: the leader of a cached composition kept its weight (`decay`), and the schedule "automatic" gave LCM that of Euler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen.pipeline.recipe import Recipe

CURRENT = 3
_AS_THEN = {"ending": "full", "mix_length": 0.0}  # of solvers


def upgraded(recipe: Recipe) -> Recipe:
    """A recipe as one of the current version; itself if it is one."""
    if recipe.version == CURRENT:
        return recipe
    changes = _since_2(recipe) | (_since_1(recipe) if recipe.version == 1 else {})
    return recipe.model_copy(update={"version": CURRENT, **changes})


def _since_1(recipe: Recipe) -> dict[str, Any]:
    changes: dict[str, Any] = {"sampler_options": _solver_options(recipe.sampler, recipe.sampler_options)}
    if {"clip", "dynamic_threshold"} & set(recipe.guidance.split(" + ")):
        changes["guidance_options"] = {"limit": 1.0, **recipe.guidance_options}
    if recipe.guide is not None and recipe.guide.energy == "colour":
        changes["guide"] = recipe.guide.model_copy(update={"options": _colour_options(recipe.guide.options)})
    greedy = recipe.tweaks.get("greedy")
    if greedy is not None and greedy.energy == "colour":
        greedy = greedy.model_copy(update={"options": _colour_options(greedy.options)})
        changes["tweaks"] = {**recipe.tweaks, "greedy": greedy}
    return changes


def _since_2(recipe: Recipe) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if recipe.composition == "cached":
        changes["composition_options"] = {"decay": 1.0, **recipe.composition_options}
    if recipe.schedule == "automatic" and recipe.schedule_options.get("sampler", recipe.sampler) == "lcm":
        changes["schedule_options"] = {**recipe.schedule_options, "sampler": "euler"}
    return changes


def _solver_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from samplers.registry import solver_info

    try:
        known = solver_info(name).options
    except ValueError:  # a solver of its maker's own, or one that is gone: said when it is used
        known = ()
    return {option: value for option, value in _AS_THEN.items() if option in known} | dict(options)


def _colour_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"match": "rgb", **options}
