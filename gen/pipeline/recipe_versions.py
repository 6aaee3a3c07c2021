"""Recipes of an earlier version, with the defaults of their time written out, so that they make the same picture again.

Version 1: solvers with memory kept their points on long steps (`ending`), EDICT mixed alike on all (`mix_length`), a
threshold's limit was 1 for every model, and a colour was matched by red, green and blue.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen.pipeline.recipe import Recipe

_AS_THEN = {"ending": "full", "mix_length": 0.0}  # of solvers


def upgraded(recipe: Recipe) -> Recipe:
    """A recipe as one of the current version; itself if it is one."""
    if recipe.version == 2:
        return recipe
    changes: dict[str, Any] = {"version": 2, "sampler_options": _solver_options(recipe.sampler, recipe.sampler_options)}
    if {"clip", "dynamic_threshold"} & set(recipe.guidance.split(" + ")):
        changes["guidance_options"] = {"limit": 1.0, **recipe.guidance_options}
    if recipe.guide is not None and recipe.guide.energy == "colour":
        changes["guide"] = recipe.guide.model_copy(update={"options": _colour_options(recipe.guide.options)})
    greedy = recipe.tweaks.get("greedy")
    if greedy is not None and greedy.energy == "colour":
        greedy = greedy.model_copy(update={"options": _colour_options(greedy.options)})
        changes["tweaks"] = {**recipe.tweaks, "greedy": greedy}
    return recipe.model_copy(update=changes)


def _solver_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from samplers.registry import solver_info

    try:
        known = solver_info(name).options
    except ValueError:  # a solver of its maker's own, or one that is gone: said when it is used
        known = ()
    return {option: value for option, value in _AS_THEN.items() if option in known} | dict(options)


def _colour_options(options: Mapping[str, Any]) -> dict[str, Any]:
    return {"match": "rgb", **options}
