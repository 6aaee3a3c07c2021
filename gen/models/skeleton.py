"""A model's networks without their weights, from its configs alone: enough to say which layers of an adapter fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.io.weights import CheckpointError, read_json


def skeleton(folder: Path) -> dict[str, nn.Module]:
    """The parts that adapters change, on the meta device, of a model folder or a diffusers pipeline; by adapters' names."""
    if (folder / "model_index.json").is_file() and not (folder / "config.json").exists():
        return _pipeline(folder)
    from gen.models.folder import read_model_config, types_of
    from gen.nn.initialisation import no_initialisation
    from gen.nn.registry import build

    read_model_config(folder)
    parts = {}
    for part in ("denoiser", "text_encoder"):
        if (folder / part).is_dir():
            config = read_json(folder / part / "config.json")
            if config.get("type") not in types_of(part):
                raise CheckpointError(folder / part / "config.json", f"has type {config.get('type')!r}; that is no {part}.")
            with torch.device("meta"), no_initialisation():
                parts[part] = build(config)
    return parts


def _pipeline(folder: Path) -> dict[str, nn.Module]:
    from gen.models.bridge.load import CLASSES, library_class, read_part_config
    from gen.models.bridge.pipeline import read_index

    family, classes, _ = read_index(folder)
    parts = {}
    for part, name in classes.items():
        if part != family.backbone and not part.startswith("text_encoder"):
            continue
        config, kind = read_part_config(folder / part, name), library_class(name)
        try:
            with torch.device("meta"):
                parts["denoiser" if part == family.backbone else part] = _bare(kind, config, CLASSES[name])
        except Exception as error:  # whatever a library makes of a config
            raise CheckpointError(folder / part / "config.json", f"is not the config of a {name}: {error}") from None
    return parts


def _bare(kind: Any, config: dict[str, Any], library: str) -> nn.Module:
    return kind.from_config(config) if library == "diffusers" else kind(kind.config_class.from_dict(config))
