"""Training methods, one file for each paper; `bases/` holds what they share."""

from __future__ import annotations

from typing import Any

from torch import nn

from distill.data.source import Source
from distill.objectives.bases.objective import Objective
from distill.registry import OBJECTIVES
from gen.nn.registry import from_registry


def check_objective(config: dict[str, Any]) -> None:
    """ValueError for a type or options that make_objective would not take."""
    from_registry(OBJECTIVES, "objective", config)


def make_objective(config: dict[str, Any], network: nn.Module, source: Source | None = None) -> Objective:
    """The objective that `config["type"]` names, training `network` on `source`; an identity stands for no network given."""
    objective, checked = from_registry(OBJECTIVES, "objective", config)
    if isinstance(network, nn.Identity) and not objective.makes_network:
        raise ValueError(f"The objective {config['type']!r} trains the network that the config describes; give its section.")
    return objective(checked, network, source)
