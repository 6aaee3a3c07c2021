"""Merges of adapters by data: under constraints, by what the layers see, by a search for the best weights."""

from __future__ import annotations

from customization.merge.constrained import constrained_merge
from customization.merge.fusion import fuse_by_inputs
from customization.merge.hub import HubSearch, hub_merge, lorahub_factors, search_weights
from customization.merge.inputs import record_inputs

__all__ = [
    "HubSearch",
    "constrained_merge",
    "fuse_by_inputs",
    "hub_merge",
    "lorahub_factors",
    "record_inputs",
    "search_weights",
]
