"""A file's networks before anything of them is read: which are there, their configs, and where their tensors are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.io.weights import CheckpointError
from gen.models.bridge.files.fill import Filling, TensorSource, build, check_plan
from gen.models.bridge.files.gguf_file import GGUFFile, check_installed
from gen.models.bridge.files.kinds import Holder
from gen.models.bridge.files.rows import Plan, row_plan
from gen.models.bridge.files.stored import StoredFile


@dataclass(frozen=True)
class Planned:
    """A network of a file: its config, where its tensors are, and itself without them."""

    holder: Holder
    config: dict[str, Any]
    plan: Plan
    network: nn.Module

    def filling(self, source: TensorSource, dtype: torch.dtype, scheme: str | None = None) -> Filling:
        """Ready to be filled; CheckpointError where the file does not fit. scheme: as of `Filling`."""
        filling = Filling(self.network, self.plan, dtype, scheme=scheme)
        check_plan(source.path, self.holder.class_name, filling, source.shapes)
        return filling


def open_source(path: Path) -> TensorSource:
    """The file by its ending: GGUF or safetensors."""
    if path.suffix == ".gguf":
        check_installed(path)
        return GGUFFile(path)
    return StoredFile(path)


def holding(holders: tuple[Holder, ...], names: Collection[str]) -> tuple[Holder, str] | None:
    for holder in holders:
        if (prefix := holder.prefix(names)) is not None:
            return holder, prefix
    return None


def planned(source: TensorSource, holder: Holder, prefix: str) -> Planned:
    """What is known of a network of a file; CheckpointError for names or shapes that it cannot have."""
    shapes = {name.removeprefix(prefix): shape for name, shape in source.shapes.items() if name.startswith(prefix)}
    try:
        config = holder.config(shapes)
        plan = row_plan(shapes, lambda tensors: holder.convert(tensors, config))
    except (KeyError, IndexError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        what = f"it lacks {prefix}{error.args[0]}" if isinstance(error, KeyError) and error.args else str(error)
        raise CheckpointError(source.path, f"does not fit {holder.class_name}: {what}.") from None
    network = build(source.path, holder.class_name, config, source.shapes)
    names = network.state_dict().keys()
    bare = not any(name.startswith("text_model.") for name in names)
    own = {}
    for target, pieces in plan.items():
        target = target.removeprefix("text_model.") if bare else target
        if target.endswith(("position_ids", "logit_scale")) or (target.startswith("text_projection") and target not in names):
            continue  # what CLIP files have beside the encoder
        own[target] = tuple(replace(piece, source=prefix + piece.source) for piece in pieces)
    return Planned(holder, config, own, network)
