"""Models larger than the device's memory: parts, blocks or layers come to the device when they are used, and go back.

    model        the denoiser, the text encoders or the autoencoder: one of them at a time
    group        the denoiser block by block (diffusers' group offloading), the other parts as above
    sequential   the denoiser and the text encoders layer by layer (accelerate's hooks), the autoencoder as above
    disk         as group, with the blocks kept in a folder instead of main memory

Pictures stay the same, to the last bit but for disk, where weights may lie otherwise in memory.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.nn.quantized import is_quantized

KINDS = ("model", "group", "sequential", "disk")
CPU = torch.device("cpu")


def check_offload(offload: str | None, device: torch.device) -> None:
    """ValueError for an unknown kind; a warning where there is nothing to gain."""
    if offload is None:
        return
    if offload not in KINDS:
        raise ValueError(f"offload is {offload!r}; give one of {', '.join(map(repr, KINDS))}, or leave it out.")
    if device.type == "cpu" and offload != "disk":
        warnings.warn(
            f"The model runs on a CPU, where offload={offload!r} saves no memory; disk does, or quantize.", stacklevel=3
        )


class Residency:
    """Whole parts of a model, one of which is on the device at a time. moves: how often one came there."""

    def __init__(self, device: torch.device):
        self.device, self.parts, self.current, self.moves = device, dict[str, nn.Module](), "", 0

    def add(self, name: str, part: nn.Module, methods: tuple[str, ...] = ()) -> None:
        """A part that comes to the device before its forward, or before one of `methods`, is called."""
        self.parts[name] = part
        if not methods:
            part.register_forward_pre_hook(lambda *_: self.use(name))
        for method in methods:
            object.__setattr__(part, method, self._after_use(name, getattr(part, method)))

    def _after_use(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.use(name)
            return method(*args, **kwargs)

        return call

    def use(self, name: str) -> None:
        """Have a part on the device, and the others not."""
        if name == self.current:
            return
        for other, part in self.parts.items():
            if other != name:
                part.to(CPU)
        self.parts[name].to(self.device)
        self.current, self.moves = name, self.moves + 1


def offload_parts(
    kind: str,
    device: torch.device,
    network: nn.Module,
    autoencoder: nn.Module | None,
    text_encoder: nn.Module | None,
    folder: Path | None = None,
) -> Residency:
    """Put parts that are in main memory, in their dtypes, under one of KINDS.

    folder: for disk; None: a temporary one that goes with the process. ValueError where networks of our own, or weights in
    fewer bits, are asked to move in pieces.
    """
    bridged = getattr(network, "bridged", False)
    inner: Any = network.network if bridged else network
    if kind != "model" and not bridged:
        raise ValueError(f"Our own networks move whole: give offload='model', not {kind!r}; or native=False for a pipeline's.")
    if kind != "model" and is_quantized(inner):
        raise ValueError(f"Weights in fewer bits are moved whole: use offload='model' with quantize, not {kind!r}.")
    residency = Residency(device)
    encoders = list(getattr(text_encoder, "encoders", {}).values())
    for part in (inner, *encoders):
        part.execution_device = device
    if kind == "model":
        residency.add("denoiser", network)
    elif kind == "sequential":
        for part in (inner, *encoders):
            _by_layers(part, device)
    else:
        _by_blocks(inner, device, folder if kind == "disk" and folder else _temporary() if kind == "disk" else None)
    if autoencoder is not None:
        residency.add("autoencoder", autoencoder, ("encode", "decode"))
    if text_encoder is not None and (kind != "sequential" or not encoders):
        residency.add("text_encoder", text_encoder, ("condition",))
    return residency


def _by_layers(part: nn.Module, device: torch.device) -> None:
    from accelerate import cpu_offload

    cpu_offload(part, execution_device=device, offload_buffers=True)


def _by_blocks(part: nn.Module, device: torch.device, folder: Path | None) -> None:
    from diffusers.hooks import apply_group_offloading

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    apply_group_offloading(
        part,
        onload_device=device,
        offload_device=CPU,
        offload_type="block_level",
        num_blocks_per_group=1,
        use_stream=device.type == "cuda" and folder is None,
        offload_to_disk_path=None if folder is None else str(folder),
    )


_kept: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def _temporary() -> Path:
    _kept.append(tempfile.TemporaryDirectory(prefix="fewstep-offload-"))
    return Path(_kept[-1].name)
