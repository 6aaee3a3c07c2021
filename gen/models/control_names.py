"""The controls that come with the default model, by name."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).parents[1] / "weights" / "control"
NAMED = ("edges", "segments")  # in the order of the shipped union
