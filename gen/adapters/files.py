"""Reading and writing adapter files; every format becomes the same `Adapter` and can be written back.

    adapter = read_adapter("style.safetensors")
    write_adapter(adapter, "style-kohya.safetensors", format="kohya")

Formats: kohya (LyCORIS is spelled the same), diffusers, peft (a folder), ai-toolkit. `gen.adapters.keys` has the spellings.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from gen.adapters.adapter import Adapter
from gen.adapters.delta import AdapterError, Delta
from gen.adapters.foreign import foreign, foreign_config, whole_weights
from gen.adapters.keys import WRITTEN, Key, backbone, parse, spell
from gen.adapters.peft_config import BESIDE, IN_FILE, make_config, read_configs, scale_of
from gen.adapters.words import take_words, words_to_tensors
from gen.io.folders import written_folder
from gen.io.weights import PICKLE, CheckpointError, read_json, read_metadata, read_weights, sha256, write_json, write_weights

FORMATS = tuple(WRITTEN)
IN_FOLDER = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
MAX_KEYS = 200_000
MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # starts of training that take the first factors from W


def read_adapter(path: Path | str, name: str | None = None, strict: bool = True, allow_nonfinite: bool = False) -> Adapter:
    """An adapter from a safetensors file, or from a folder as peft and diffusers write them; named after the file.

    CheckpointError, which names the file, for a file that is not a whole adapter: unreadable, damaged, with NaN or infinite
    values, factors missing or of shapes that do not fit each other, keys that are not known. strict=False passes over
    unknown keys, and says so in the adapter's notes; allow_nonfinite=True takes NaN and infinity among the weights (not as
    an alpha).
    """
    path = Path(path)
    name = path.stem if name is None else name
    if _is_folder(path):
        files = [path / file for file in IN_FOLDER if (path / file).is_file()]
        if not files:
            pickled = [name for name in ("adapter_model.bin", "pytorch_lora_weights.bin") if (path / name).exists()]
            if pickled:
                raise CheckpointError(path, f"has only {pickled[0]}, {PICKLE.removeprefix('is ')}")
            raise CheckpointError(path, f"is a folder without {' or '.join(IN_FOLDER)}; give the adapter's file.")
        path = files[0]
    tensors, metadata = read_weights(path, allow_nonfinite), read_metadata(path)
    if path.name == IN_FOLDER[0] and (path.parent / BESIDE).exists():
        metadata = {**metadata, BESIDE: json.dumps(read_json(path.parent / BESIDE))}
    try:
        return replace(from_tensors(tensors, metadata, name, strict), sha256=sha256(path))
    except AdapterError as error:
        raise CheckpointError(path, f"is not an adapter that can be used: {error}") from None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # what is wrong with it is said where it is opened
        return False


def from_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, name: str = "adapter", strict: bool = True
) -> Adapter:
    """An adapter from tensors by key, as a file holds them; AdapterError says what is wrong."""
    metadata = dict(metadata or {})
    if len(tensors) > MAX_KEYS:
        raise AdapterError(f"it has {len(tensors)} tensors; adapters of up to {MAX_KEYS} are read.")
    groups: dict[str, dict[str, Tensor]] = defaultdict(dict)
    tensors, words, keys = take_words(tensors, metadata, name, parse)
    dialects: dict[str, int] = defaultdict(int)
    unknown = []
    for key, tensor in tensors.items():
        parsed = parse(key)
        if parsed is None:
            unknown.append(key)
            continue
        layer, factor, dialect, adapter = parsed
        if (layer, factor) in keys:
            other = keys[layer, factor]
            if (first := parse(other)) and first.adapter != adapter:
                raise AdapterError(
                    f"it holds adapters side by side, {first.adapter or 'one without a name'!r} and "
                    f"{adapter or 'one without a name'!r}; save each in a file of its own."
                )
            raise AdapterError(f"{other!r} and {key!r} are both the {factor} of the same layer.")
        groups[layer][factor], keys[layer, factor] = tensor, key
        dialects[dialect] += 1
    if words and not groups and not unknown:
        return Adapter(name, {}, metadata, "diffusers", keys, words=words)
    if unknown:
        _drop_scales(groups)
    if not groups:
        raise AdapterError(foreign(unknown) or "none of its keys are those of a LoRA or another adapter; is it a checkpoint?")
    if unknown and strict:
        raise AdapterError(foreign(unknown) or whole_weights(unknown) or f"it has unknown keys: {_some(unknown)}.")
    configs = read_configs(metadata)
    if (message := foreign_config(configs)) is not None:
        raise AdapterError(message)
    layers = {}
    for layer, factors in groups.items():
        try:
            layers[layer] = _delta(layer, factors, keys, configs)
        except AdapterError as error:
            raise AdapterError(f"layer {layer.partition('.')[2]!r}: {error}") from None
    notes = [f"{len(unknown)} unknown keys were passed over: {_some(unknown)}"] if unknown else []
    notes += _scale_note(metadata, configs, layers)
    for config in configs.values():
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(MOVES_BASE):
            notes.append(
                f"it was started by {start[:20]!r}, which changes the model's own weights; it is right only if converted"
            )
    return Adapter(name, layers, metadata, max(dialects, key=lambda d: dialects[d]), keys, tuple(notes), words=words)


def _delta(layer: str, factors: dict[str, Tensor], keys: Mapping[tuple[str, str], str], configs: Mapping) -> Delta:
    part, _, path = layer.partition(".")
    rank = Delta(factors).rank
    if "alpha" in factors:
        if factors["alpha"].numel() != 1:
            raise AdapterError(f"its alpha has {factors['alpha'].numel()} values; alpha is one number.")
        alpha = factors["alpha"].double().item()
        if not math.isfinite(alpha):
            raise AdapterError(f"its alpha is {alpha}; it must be finite.")
        scale = 1.0 if rank is None else alpha / rank  # two whole matrices of a LoKr are applied as they are
    else:
        scale = scale_of(configs.get(part, {}), path, rank)
    axis = 0
    if "magnitude" in factors:
        shape = tuple(factors["magnitude"].shape)
        lycoris = keys[layer, "magnitude"].endswith("dora_scale")  # peft's for convolutions is (1, out, 1, 1)
        axis = int(len(shape) > 1 and shape[0] == 1 and (lycoris or len(shape) == 2))
    return Delta(factors, scale, axis)


def _scale_note(metadata: Mapping[str, str], configs: Mapping, layers: Mapping[str, Delta]) -> list[str]:
    """Trainers that drop alpha leave it in their metadata: the file then acts more strongly than it was trained."""
    alpha, rank = metadata.get("ss_network_alpha"), metadata.get("ss_network_dim")
    if configs or not alpha or not rank or alpha == rank or any("alpha" in delta.factors for delta in layers.values()):
        return []
    return [f"it stores no alpha, but its metadata says alpha {alpha[:20]} at rank {rank[:20]}; it is applied at full scale"]


def _drop_scales(groups: dict[str, dict[str, Tensor]]) -> None:
    """Forget layers that have nothing but a scale: where keys are unknown, it is of a method that is not known."""
    for layer in [layer for layer, factors in groups.items() if factors.keys() <= {"alpha", "magnitude"}]:
        del groups[layer]


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def to_tensors(adapter: Adapter, format: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors by key, metadata) of an adapter in a format, its own if None. AdapterError where the format cannot hold it.

    In its own format an adapter comes back as it was read, key by key.
    """
    format = (adapter.format or "diffusers") if format is None else format
    if format not in FORMATS:
        raise AdapterError(f"Unknown adapter format {format!r}: choose one of {', '.join(FORMATS)}.")
    same_format = format == adapter.format
    if adapter.format == "kohya" and not same_format:
        raise AdapterError(
            f"{adapter.name} is named as kohya names layers, with underscores; give it the names of its network first "
            "(gen.adapters.renamed), then write it."
        )
    tensors: dict[str, Tensor] = {}
    of = backbone(adapter.layers)
    for layer, delta in adapter.layers.items():
        for factor, value in _factors(adapter, layer, delta, format).items():
            key = adapter.keys.get((layer, factor), "") if same_format else ""
            key = key or spell(format, layer, factor, of)
            if key in tensors:
                raise AdapterError(f"Two layers of {adapter.name} would both be written as {key!r}; {format} cannot hold them.")
            tensors[key] = value
    words, word_notes = words_to_tensors(adapter, format)
    return tensors | words, (_metadata(adapter, format) if adapter.layers else dict(adapter.metadata)) | word_notes


def _factors(adapter: Adapter, layer: str, delta: Delta, format: str) -> dict[str, Tensor]:
    """The tensors of a layer as the format has them: alpha where it stores one, the magnitude in its shape."""
    factors = dict(delta.factors)
    known = format == adapter.format and (layer, "alpha") in adapter.keys
    alpha, rank = factors.pop("alpha", None), delta.rank
    stored = None if alpha is None or rank is None else alpha.double().item() / rank
    if alpha is not None and known and (stored == delta.scale or rank is None):
        factors["alpha"] = alpha
    elif format == "kohya" and delta.kind not in ("full", "bias") and not _silent(adapter, layer, delta):
        if rank is None and delta.scale != 1:
            raise AdapterError(f"{layer}: kohya's format has no scale for a LoKr of whole matrices; write delta.folded().")
        exact = torch.tensor(delta.scale * (rank or 1), dtype=torch.float64)
        factors["alpha"] = exact.float() if exact.float().double() == exact else exact
    elif format == "ai-toolkit" and delta.scale != 1:
        raise AdapterError(f"{layer}: the ai-toolkit format stores no scale, and this layer's is not 1; write delta.folded().")
    if "magnitude" in factors and not (format == adapter.format and (layer, "magnitude") in adapter.keys):
        factors["magnitude"] = _magnitude(delta, format)
    return factors


def _silent(adapter: Adapter, layer: str, delta: Delta) -> bool:
    """Was it read from a file that stores no alpha for it, and is its scale still 1?"""
    read = any((layer, factor) in adapter.keys for factor in delta.factors)
    return adapter.format == "kohya" and read and (layer, "alpha") not in adapter.keys and delta.scale == 1


def _magnitude(delta: Delta, format: str) -> Tensor:
    value, ndim = delta.factors["magnitude"], max(len(delta.dims), 2)
    if format == "kohya":
        shape = [1] * ndim
        shape[delta.magnitude_axis] = -1
        return value.reshape(shape)
    if delta.magnitude_axis:
        raise AdapterError(f"Its DoRA magnitude is per input (LyCORIS); the {format} format knows it per output only.")
    return value.flatten() if ndim == 2 else value.reshape(1, -1, *[1] * (ndim - 2))


def _metadata(adapter: Adapter, format: str) -> dict[str, str]:
    metadata = dict(adapter.metadata)
    parts = {part: {} for part in adapter.parts}  # type: dict[str, dict[str, Delta]]
    for layer, delta in adapter.layers.items():
        part, _, path = layer.partition(".")
        # CLIP's layers begin with text_model in some versions of the library; peft compares the ends of names
        parts[part][path.removeprefix("text_model.")] = delta
    if format not in ("diffusers", "peft"):
        return {name: text for name, text in metadata.items() if format == adapter.format or name not in (IN_FILE, BESIDE)}
    configs = read_configs(metadata)
    if format == adapter.format:
        as_read = {layer: scale_of(configs.get(layer.partition(".")[0], {}), layer.partition(".")[2], delta.rank)
                   for layer, delta in adapter.layers.items() if (layer, "alpha") not in adapter.keys}  # fmt: skip
        if all(adapter.layers[layer].scale == scale for layer, scale in as_read.items()):
            return metadata
    metadata = {name: text for name, text in metadata.items() if name not in (IN_FILE, BESIDE)}
    if format == "peft":
        return metadata | {BESIDE: json.dumps(make_config(parts["denoiser"], configs.get("denoiser", {})))}
    named = {
        backbone(adapter.layers)[0] if part == "denoiser" else part: make_config(layers, configs.get(part, {}))
        for part, layers in parts.items()
    }
    joined = {f"{part}.{key}": value for part, config in named.items() for key, value in config.items()}
    return metadata | {IN_FILE: json.dumps(joined, indent=2, sort_keys=True)}


def write_adapter(adapter: Adapter, path: Path | str, format: str | None = None, dtype: torch.dtype | None = None) -> Path:
    """Write an adapter in a format (its own if None), each file in one piece; returns the weights' path.

    path: a .safetensors file; for peft a folder.
    dtype: of the factors, as they are if None.
    """
    path = Path(path)
    tensors, metadata = to_tensors(adapter, format)
    if (format or adapter.format) == "peft":
        # a folder that is there may hold other files, and gets these; a new one is there when it is whole
        with nullcontext(path) if path.is_dir() else written_folder(path) as folder:
            if BESIDE in metadata:
                write_json(folder / BESIDE, json.loads(metadata.pop(BESIDE)))
            _write(folder / IN_FOLDER[0], tensors, metadata, dtype)
        return path / IN_FOLDER[0]
    if path.suffix != ".safetensors":
        raise AdapterError(f"{path}: adapters are written as safetensors; give a name that ends in .safetensors.")
    _write(path, tensors, metadata, dtype)
    return path


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype | None) -> None:
    alphas = {key for key in tensors if key.endswith(".alpha")}
    converted: dict[str, Tensor] = {}
    places: set[int] = set()
    for key, value in tensors.items():
        value = value if dtype is None or key in alphas else value.to(dtype)
        place = value.untyped_storage().data_ptr()
        converted[key] = value.clone() if place in places else value  # layers that were cut from one have the same A
        places.add(place)
    write_weights(path, converted, metadata={name: text for name, text in metadata.items() if name != "format"})


__all__ = ["FORMATS", "Key", "from_tensors", "read_adapter", "to_tensors", "write_adapter"]
