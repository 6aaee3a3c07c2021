"""The registry of objectives: name -> module, config class, objective class. Closed, imported when used."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from torch import nn

from distill.objective import Objective
from gen.components import describe

if TYPE_CHECKING:
    from distill.data import Source

OBJECTIVES: dict[str, tuple[str, str, str]] = {
    "diffusion": ("distill.objectives.diffusion", "DiffusionConfig", "DiffusionObjective"),
    "autoencoder": ("distill.objectives.autoencoder", "AutoencoderObjectiveConfig", "AutoencoderObjective"),
    "text": ("distill.objectives.text", "TextObjectiveConfig", "TextObjective"),
    "evaluator": ("distill.objectives.evaluator", "EvaluatorObjectiveConfig", "EvaluatorObjective"),
}


def make_objective(config: dict[str, Any], network: nn.Module, source: Source | None = None) -> Objective:
    """The objective that `config["type"]` names, training `network` on `source`."""
    config = dict(config)
    kind = config.pop("type", None)
    if kind not in OBJECTIVES:
        near = difflib.get_close_matches(str(kind), OBJECTIVES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"Unknown objective {kind!r}: {hint}Known: {', '.join(OBJECTIVES)}.")
    module, config_class, objective_class = OBJECTIVES[kind]
    module = importlib.import_module(module)
    try:
        parsed = getattr(module, config_class)(**config)
    except ValidationError as error:
        raise ValueError(f"The {kind} objective's config is not valid: {describe(error)}.") from None
    return getattr(module, objective_class)(parsed, network, source)
