"""Published checkpoint -> network, without a second copy of the weights in memory."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gen.io.weights import CheckpointError, listed
from gen.models.formats.files import CheckpointFiles, open_checkpoint
from gen.models.formats.format import Format
from gen.models.formats.registry import detect, find
from gen.models.formats.table import Slots, expand, nearest
from gen.nn.initialisation import TooLarge, no_initialisation, no_larger_than, opening_device
from gen.nn.registry import build

DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
CHAINS = ("single_depth", "refiner_depth")  # of configs: numbers of further chains of blocks
SCALES = (1.0, 2.0, 0.5, 4.0)  # of sine-cosine positions


class UnequalRepeats(CheckpointError):
    """A file that repeats a tensor, as its format does, but with other values: a network that none of ours can be."""


def read_checkpoint(
    path: Path | str,
    format: str | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = torch.float32,
    allow_nonfinite: bool = False,
    null_text: Tensor | None = None,
    null_pooled: Tensor | None = None,
    heads: int | None = None,
    size: int | None = None,
    position_scale: float | None = None,
    null_label: bool | None = None,
    text_tokens: int | None = None,
    null_length: int | None = None,
    axes: tuple[int, int, int] | None = None,
    pictures: int | None = None,
    fills: bool | None = None,
) -> nn.Module:
    """Read a network (`gen.nn.backbones`) from a published checkpoint: a safetensors file, an index of several, or a folder.

    format: a name of `gen.models.formats.FORMATS`; None: told from the names of the tensors.
    device: of the network; None: `gen.nn.initialisation.opening_device`.
    dtype: of the network; None: each tensor keeps the file's.
    null_text: features of the empty prompt (text_tokens, text_dim), for the formats that do not store them; without it they
        are zeros, and a warning says so.
    null_pooled: the pooled vector that goes with null_text, for networks that read one.
    null_length: how many tokens of null_text are real; None: all.
    heads, size: the number of attention heads and the latent size, where neither a published width nor a config.json tells
        them.
    position_scale: the spacing of positions.
    null_label: the last label is "no label".
    text_tokens: the length of the text.
    axes: how many channels of a head turn with the three axes of rotary positions.
    pictures: how many pictures to edit a network reads as further patches (FLUX Kontext, Qwen-Image-Edit).
    fills: what a network reads beyond what it makes are channels of a picture and its mask (FLUX Fill).

    The network is in evaluation mode, without gradients.

    Every name and shape must be as expected, and every value finite; CheckpointError names the culprit. Memory: the network,
    one tensor and at most `TensorFile.WINDOW` bytes of mapped file.
    """
    source = open_checkpoint(path)
    options: dict[str, Any] = {"heads": heads, "size": size, "position_scale": position_scale, "null_label": null_label}
    options = {**options, "text_tokens": text_tokens, "null_length": null_length, "axes": axes}
    options |= {"pictures": pictures, "fills": fills}
    options = {name: value for name, value in options.items() if value is not None}
    kind, config = configure(source, format, options)
    device = opening_device() if device is None else torch.device(device)
    network = _build(source, config)
    slots = _fit(source, kind, network, dtype)
    _place(network, slots, source, dtype, device)
    with torch.no_grad():
        _fill(network, kind, slots, source, allow_nonfinite)
        _fill_null(network, kind, null_text, null_pooled, path)
    return network.eval().requires_grad_(False)


def configure(source: CheckpointFiles, format: str | None, options: Mapping[str, Any]) -> tuple[Format, dict[str, Any]]:
    """(format, config of the network) of opened files, from names, shapes, the config beside them and what the caller told."""
    kind, shapes = find(format) if format else None, source.shapes
    try:
        kind = kind or find(detect(shapes.keys()))
    except ValueError as error:
        raise CheckpointError(source.path, f"{error}.") from None
    settings: dict[str, Any] = {}
    if kind.config_in and source.config is not None:
        try:
            settings = {name: value for name, value in kind.config_in(source.config).items() if value is not None}
        except ValueError as error:
            raise CheckpointError(source.config_path, f"{error}.") from None
    settings |= options
    try:
        config = kind.infer(shapes, settings)
        if kind.positions in shapes and "position_scale" in config and "position_scale" not in options:
            config["position_scale"] = _scale(source, str(kind.positions), config)
    except ValueError as error:
        reason = f"is not a {kind.name} checkpoint that can be read: it {error}."
        raise error if isinstance(error, CheckpointError) else CheckpointError(source.path, reason) from None
    return kind, config


def _tolerance(dtype: torch.dtype) -> float:
    return {torch.float16: 4e-3, torch.bfloat16: 2e-2}.get(dtype, 1e-4)


def _scale(source: CheckpointFiles, name: str, config: Mapping[str, Any]) -> float:
    """The scale that the positions in the file have."""
    from gen.nn.backbones.dit import sincos_positions

    stored, grid = source.tensor(name), config["size"] // config["patch"]
    for scale in dict.fromkeys((config["position_scale"], *SCALES)):
        expected = sincos_positions(grid, grid, config["dim"], grid, scale)
        if stored.shape == expected.shape and (stored.double() - expected).abs().max() < _tolerance(stored.dtype):
            return scale
    known = ", ".join(map(str, sorted(SCALES)))
    raise ValueError(f"has a {name!r} that holds sine-cosine positions at none of the scales {known}")


def _build(source: CheckpointFiles, config: Mapping[str, Any]) -> nn.Module:
    try:
        with no_larger_than(source.shapes, 4), no_initialisation():
            return build(config)
    except TooLarge as error:
        raise CheckpointError(source.path, f"is described by a config that {error}.") from None
    except (RuntimeError, MemoryError):
        raise CheckpointError(source.path, "describes a network that does not fit into memory.") from None
    except ValueError as error:
        raise CheckpointError(source.path, str(error)) from None


def own_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, those that our own files leave out included."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def slots_of(kind: Format, network: nn.Module) -> dict[str, Slots]:
    """Every name that a file of this network has in this format."""
    config: Any = network.config
    blocks = config.depth // 2 if kind.kind == "uvit" else max(config.depth, *(getattr(config, name, 0) for name in CHAINS))
    return expand(kind.table, blocks, own_tensors(network))


def _fit(source: CheckpointFiles, kind: Format, network: nn.Module, dtype: torch.dtype | None) -> dict[str, Slots]:
    """The network's slots, once names, shapes and dtypes of the file are found to be theirs."""
    slots, tensors, shapes, dtypes = slots_of(kind, network), own_tensors(network), source.shapes, source.dtypes
    missing = sorted(slots.keys() - shapes.keys() - ({kind.positions} if kind.positions_optional else set()))
    unknown = sorted(shapes.keys() - slots.keys() - set(kind.ignored))
    problems = [f"lacks {listed(missing)}"] * bool(missing)
    if unknown:
        problems.append(f"has unknown {listed(unknown)}{nearest(unknown[0], missing or slots)}")
    wrong, odd = [], []
    for name in sorted(slots.keys() & shapes.keys()):
        parts = [(tensors[slot.name].shape, slot.parts) for slot in slots[name]]
        needed = (sum(shape[0] // count for shape, count in parts), *parts[0][0][1:])
        if shapes[name] != needed:
            wrong.append(f"{name} is {shapes[name]}, the model needs {needed}")
        if dtypes[name] not in DTYPES:
            odd.append(f"{name} is {dtypes[name]}")
    problems += [listed(wrong)] * bool(wrong)
    problems += [f"holds no floating numbers where weights are: {listed(odd)}"] * bool(odd)
    if problems:
        raise CheckpointError(source.path, f"does not fit the format {kind.name}: {'; '.join(problems)}.")
    if dtype is None:
        names_of_slots: dict[str, str] = {}
        for name, slot in ((theirs, one) for theirs in sorted(slots.keys() & shapes.keys()) for one in slots[theirs]):
            if names_of_slots.setdefault(slot.name, dtypes[name]) != dtypes[name]:
                raise CheckpointError(source.path, f"mixes dtypes in what is one tensor here, with {name!r}; give a dtype.")
    return slots


def _place(network: nn.Module, slots: Mapping[str, Slots], source: CheckpointFiles, dtype: torch.dtype | None, device) -> None:
    """Give every tensor of the network its device and dtype. Nothing has been written to them, so no memory is used twice."""
    dtypes = {slot.name: DTYPES[spelled] for name, spelled in source.dtypes.items() for slot in slots.get(name, ())}
    usual = dtype or next(iter(dtypes.values()))
    for prefix, module in network.named_modules():
        for leaf, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is None:
                continue
            target = dtype or dtypes.get(f"{prefix}.{leaf}".lstrip("."), usual)
            if leaf in module._buffers:
                module._buffers[leaf] = value.to(device, target)
            elif (value.dtype, value.device) != (target, device):
                module._parameters[leaf] = nn.Parameter(torch.empty(value.shape, dtype=target, device=device))


def _fill(network: nn.Module, kind: Format, slots: Mapping[str, Slots], source: CheckpointFiles, allow_nonfinite: bool) -> None:
    tensors, filled = own_tensors(network), dict[Slots, str]()
    for name, tensor in source.tensors(allow_nonfinite):
        slot = slots.get(name, ())  # none where the name is ignored
        if len(slot) != 1:
            targets = [one.of(tensors) for one in slot]
            for target, part in zip(targets, tensor.split([len(target) for target in targets]), strict=True):
                target.copy_(part)
            continue
        target = slot[0].of(tensors)
        if name == kind.positions:
            tolerance = max(_tolerance(tensor.dtype), _tolerance(target.dtype))
            if not (tensor.to(target) - target).abs().max() < tolerance:
                raise CheckpointError(source.path, f"has a {name!r} that holds other positions than this network's.")
        if slot in filled and not torch.equal(tensor.to(target), target):
            raise UnequalRepeats(
                source.path,
                f"repeats one tensor with other values: {name} is not {filled[slot]}, and no {kind.kind} can hold both.",
            )
        if slot not in filled and (name != kind.positions or tensor.dtype == target.dtype):
            target.copy_(tensor)
        filled.setdefault(slot, name)


def default_null(
    network: nn.Module, kind: Format, features: Tensor | None = None, pooled: Tensor | None = None
) -> dict[str, Tensor]:
    """What the tensors that a format lacks are for these features of "no text"; for zeros where there are none."""
    tensors = own_tensors(network)
    config: Any = network.config
    if not any(name in tensors for name in kind.absent):
        return {}
    weight = network.get_submodule("text_embed")
    first = next(weight.parameters())
    if features is None:
        features = torch.zeros(config.text_tokens, config.text_dim)
    features = features.to(first)
    made = {"null_tokens": weight(features)} if "null_tokens" in tensors else {"null_text": features}
    if "null_pooled" in tensors:
        made["null_pooled"] = torch.zeros_like(tensors["null_pooled"]) if pooled is None else pooled
    return made


def _fill_null(network: nn.Module, kind: Format, features: Tensor | None, pooled: Tensor | None, path: Path | str) -> None:
    config: Any = network.config
    shape = (config.text_tokens, config.text_dim)
    needed = any(name in own_tensors(network) for name in kind.absent)
    length = getattr(config, "null_length", 0)
    if features is not None and features.ndim == 2 and 0 < length <= len(features) < config.text_tokens:
        features = F.pad(features, (0, 0, 0, config.text_tokens - len(features)))  # room for longer texts
    if features is not None and (not needed or features.shape != shape):
        why = f"is {tuple(features.shape)}; this network needs {shape}" if needed else "is not needed: the file tells it"
        raise ValueError(f"null_text {why}.")
    if needed and features is None:
        warnings.warn(
            f"{path} does not hold features for images without text, so zeros stand there; give null_text, or a negative "
            "prompt with every call.",
            stacklevel=3,
        )
    for name, value in default_null(network, kind, features, pooled).items():
        own_tensors(network)[name].copy_(value)
