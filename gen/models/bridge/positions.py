"""Tables of positions, which networks compute from their configs: none larger than any known network has."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gen.io.weights import CheckpointError

# what rotary positions may have: channels of an axis, and places along it
AXES = {**dict.fromkeys(("axes_dims", "axes_dims_rope", "axes_dim_rope"), 4096), **dict.fromkeys(("axes_lens",), 1 << 16)}
MAX_SIDE = 4096  # of what a config says a network is made for, in its own pixels


def check_positions(path: Path, config: Mapping[str, Any]) -> None:
    """CheckpointError where a table of positions, which is computed and not in the file, would be larger than any known."""
    for key, most in AXES.items():
        value = config.get(key)
        for one in value if isinstance(value, list) else ():
            if isinstance(one, int) and one > most:
                raise CheckpointError(path, f"asks for positions of {one} in {key!r}; no known network goes beyond {most}.")
    sides = {key: config.get(key) for key in ("sample_size", "pos_embed_max_size")}
    for key, value in sides.items():
        for side in value if isinstance(value, list) else [value]:
            if isinstance(side, int) and side > MAX_SIDE:
                raise CheckpointError(path, f"asks for pictures of {side} in {key!r}; no known network goes beyond {MAX_SIDE}.")
