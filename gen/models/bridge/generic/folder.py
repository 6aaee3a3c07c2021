"""A folder of a pipeline that runs as a whole, opened by the closed table: no file chooses what code runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gen.io.weights import CheckpointError, read_json
from gen.models.bridge.generic.network import PipelineNetwork, pipeline_config
from gen.models.bridge.generic.table import OPTIONAL, WHOLE
from gen.models.bridge.load import check_config, load_network, load_tokenizer, quietly, variants_for
from gen.models.bridge.pipeline import INDEX, PIPELINES, part_entry, read_index
from gen.models.bridge.schedulers import KEYS
from gen.models.folder import Opened
from gen.models.options import ModelOptions


def is_whole(folder: Path) -> bool:
    """Does a pipeline's folder name a class that runs as a whole here, as it has no native family?"""
    name = read_json(folder / INDEX).get("_class_name")
    return isinstance(name, str) and name in WHOLE and name not in PIPELINES


def classes_of(folder: Path) -> dict[str, str]:
    """part -> class, of a pipeline's folder of either kind; CheckpointError for what the tables do not have."""
    if not is_whole(folder):
        return read_index(folder)[1]
    path = folder / INDEX
    index = read_json(path)
    name, found = index["_class_name"], {}
    for part, allowed in WHOLE[name].items():
        library, class_name = part_entry(path, part, index.get(part))
        if class_name is None and part not in OPTIONAL:
            raise CheckpointError(path, f"has no {part}, which a {name} needs ({' or '.join(allowed)}).")
        if class_name is None:
            continue
        if class_name not in allowed or library not in ("diffusers", "transformers"):
            raise CheckpointError(path, f"gives {part} as {library}.{class_name}; a {name} has {' or '.join(allowed)} there.")
        found[part] = class_name.removesuffix("Fast") if "Tokenizer" in class_name else class_name
    return found


def open_whole(folder: Path, dtype: torch.dtype, options: ModelOptions) -> Opened:
    """The pipeline, all of its networks in `dtype`; ValueError for options that are for native models."""
    path, classes = folder / INDEX, classes_of(folder)
    index = read_json(path)
    name = index["_class_name"]
    for option in ("vae", "text_encoder", "native", "quantize"):
        if getattr(options, option) not in (None, False):
            raise ValueError(
                f"{folder} is a {name}, which runs as a whole, so it takes no {option}; build the pipeline with diffusers, and "
                "give it to Generator.from_pipeline."
            )
    check_config(path, index)
    import diffusers

    kind = getattr(diffusers, name)
    takes = inspect.signature(kind.__init__).parameters
    parts: dict[str, Any] = {part: None for part in takes if part in WHOLE[name] or part in kind._optional_components}
    parts |= {key: value for key, value in index.items() if key in takes and key not in parts and _is_plain(value)}
    if "requires_safety_checker" in takes:
        parts["requires_safety_checker"] = False
    weights = {}
    for part, class_name in classes.items():
        if "Tokenizer" in class_name:
            parts[part] = load_tokenizer(folder / part, class_name)
        else:
            variants = variants_for(options.variant, dtype)
            parts[part], weights[part] = load_network(folder / part, class_name, dtype, variants=variants)
    parts["scheduler"] = _scheduler(folder / "scheduler" / "scheduler_config.json")
    try:
        with quietly():
            pipe = kind(**parts)
        network, config = PipelineNetwork(pipe, owned=True), pipeline_config(pipe, name)
    except Exception as error:
        raise CheckpointError(folder, f"cannot be opened as a {name}: {error}") from None
    return Opened(config, {"denoiser": network}, weights)


def _is_plain(value: Any) -> bool:
    """Is a value of model_index.json one of the pipeline's own settings: a number, text, or a list of those?"""
    values = value if isinstance(value, list) else [value]
    return all(isinstance(one, bool | int | float | str) for one in values)


def _scheduler(path: Path) -> Any:
    config: Mapping[str, Any] = read_json(path, infinite=True)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in KEYS:
        raise CheckpointError(path, f"has scheduler {name!r}; known are {', '.join(KEYS)}.")
    check_config(path, config)
    import diffusers

    with quietly():
        return getattr(diffusers, name).from_config({key: config[key] for key in KEYS[name] if key in config})
