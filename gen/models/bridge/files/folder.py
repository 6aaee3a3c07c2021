"""A network of a library's folder, filled straight from its safetensors: for weights in fewer bits, stored so or made so on the
way in, which the libraries would hold whole first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gen.io.weights import CheckpointError
from gen.models.bridge.files.fill import Filling, build, check_plan, fill
from gen.models.bridge.files.rows import Piece, Plan
from gen.models.bridge.files.stored import StoredFile


class Shards:
    """Several files as one source."""

    def __init__(self, path: Path, files: Sequence[Path]):
        self.path, self.files = path, [StoredFile(file) for file in files]
        self.shapes = {name: shape for file in self.files for name, shape in file.shapes.items()}
        self.codes = {name: code for file in self.files for name, code in file.codes.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for file in self.files:
            yield from file.tensors()


def fill_folder(
    folder: Path,
    name: str,
    config: Mapping[str, Any],
    files: Sequence[Path],
    dtype: torch.dtype,
    besides: tuple[str, ...],
    scheme: str | None,
) -> nn.Module:
    """A network of `load.CLASSES`; arguments as of `load.load_network`, files: of its weights. CheckpointError where they do
    not fit, or where they are in fewer bits already and `scheme` asks for it."""
    source = Shards(folder, files)
    if scheme is not None and source.codes:
        raise CheckpointError(folder, f"is quantised already; leave quantize={scheme!r} out.")
    network = build(folder / "config.json", name, config, source.shapes)
    wanted = network.state_dict().keys()
    plan: Plan = {}
    for key, shape in source.shapes.items():
        target = key if key in wanted else _other(key)
        if target not in wanted and key.startswith(besides or ("\0",)):
            continue
        plan[target] = (Piece(key, 0, shape[0] if shape else 1),)
    filling = Filling(network, plan, dtype, scheme=scheme)
    check_plan(folder, name, filling, source.shapes)
    fill(source, [filling])
    return network


def _other(key: str) -> str:
    """transformers wrote CLIP's names with text_model. in front, and no longer does."""
    return key.removeprefix("text_model.") if key.startswith("text_model.") else f"text_model.{key}"
