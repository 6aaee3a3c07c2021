"""What a run will need in memory, before it starts: weights by their headers, activations by a run without numbers.

The denoiser's step and the decoding are run on tensors that have shapes and no content (`torch._subclasses.FakeTensorMode`),
and what is alive at a time is added up. Text encoders are asked for their shapes only. Left out is what Python and the
libraries take by themselves, and what kernels use inside.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from gen.models.decoding import SMALLEST
from gen.models.folder import Opened
from gen.models.offload import KINDS
from gen.models.options import ModelOptions
from gen.models.pretrained import find_model, load_model
from gen.nn.backbones.extra_scalars import ExtraScalars
from gen.nn.backbones.fused import packed_bytes
from gen.nn.initialisation import sizes_only
from gen.nn.quantized import QuantizedWeight, stored_bytes
from samplers.denoiser import Condition, Context

STEP, TEXT, DECODING = "step", "text", "decoding"


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run holds.

    weights: by part. working: what a stage holds beside weights (step, decoding). largest_block: of the denoiser's weights,
        with all that is in no block. bridged: its network is diffusers', so that it may be offloaded in pieces.
    """

    name: str
    height: int
    width: int
    rows: int
    weights: Mapping[str, int]
    working: Mapping[str, int]
    largest_block: int
    bridged: bool

    def peak(self, offload: str | None = None) -> tuple[int, str]:
        """(bytes on the device at the most, the stage of it) under a kind of offloading, None for none."""
        texts = sum(size for part, size in self.weights.items() if part.startswith("text"))
        denoiser = sum(size for part, size in self.weights.items() if part.startswith("denoiser"))
        decoder = self.weights.get("autoencoder", 0)
        held = {TEXT: texts, STEP: denoiser, DECODING: decoder}
        if offload in ("group", "disk", "sequential"):
            held[STEP] = self.largest_block
            if offload == "sequential":
                held[TEXT] = 0
        if offload is None:
            held = dict.fromkeys(held, texts + denoiser + decoder)
        stages = {stage: size + self.working.get(stage, 0) for stage, size in held.items()}
        stage = max(stages, key=lambda name: stages[name])
        return stages[stage], stage

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        rows = [f"{part}: {_size(size)} of weights" for part, size in self.weights.items()]
        what = f"{self.rows} {'row' if self.rows == 1 else 'rows'} of {self.height} x {self.width} pixels"
        rows += [f"{stage}: {_size(size)} beside weights, {what}" for stage, size in self.working.items()]
        size, stage = self.peak()
        rows.append(f"at the most: {_size(size)}, in the {stage}")
        kinds = [kind for kind in KINDS if kind != "disk"] if self.bridged else ["model"]
        return rows + [f"with offload {kind}: {_size(self.peak(kind)[0])} on the device" for kind in kinds]


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def plan(
    model: str | Path = "default",
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    batch: int = 1,
    guided: bool | None = None,
    vae_tile: int | None = None,
    options: ModelOptions | None = None,
) -> MemoryPlan:
    """What a run of a model will need. No weights are read.

    model, options: as of `Model.from_pretrained`.
    device: where it runs; None: the CPU.
    height, width: of the pictures; None: the model's own.
    batch: pictures at a time.
    vae_tile: pixels on the side of the tiles that pictures are decoded in; None: they are decoded whole, all at once.
    guided: whether each has a second row without the prompt; None: as the model's default guidance is.
    """
    name, folder = find_model(model, None, None if options is None else options.variant, dtype)
    with sizes_only():
        opened = load_model(folder, dtype, options)
    whole: Any = opened.parts["denoiser"]
    if getattr(whole, "whole", False):
        sizes = [stored_bytes(part) for part in whole.pipe.components.values() if isinstance(part, nn.Module)]
        raise ValueError(
            f"{name} is a {whole.call.name}, which runs as a whole, so what it holds beside its {_size(sum(sizes))} of weights "
            "is not known before."
        )
    side = opened.config.sample_size
    height, width = height or side, width or side
    network: Any = nn.Module.to(opened.parts["denoiser"], dtype)
    weights = _weights(opened)
    if packed := packed_bytes(network, dtype, device or torch.device("cpu")):
        weights["denoiser's packed copy"] = packed
    scale = opened.config.defaults.guidance_scale
    embedded = opened.config.defaults.guidance == "embedded"
    rows = batch * (2 if (scale not in (0.0, 1.0) and not embedded if guided is None else guided) else 1)
    condition = _condition(opened, rows)
    if scalars := getattr(network.config, "scalars", ()):  # a distilled network is told its guidance, or where a step ends
        told = {one: torch.ones(ExtraScalars.shape(one, rows)) for one in scalars}
        condition = replace(condition, extra={**condition.extra, **told})
    decoder: Any = opened.parts.get("autoencoder")
    factor = 1 if decoder is None else decoder.factor
    latents = (network.config.channels, height // factor, width // factor)
    if hasattr(network.config, "enlarging") and network.config.factor > 1:  # the enlarged picture is read beside the noise
        seen = getattr(network.config, "beside", network.config.channels)
        condition = replace(condition, image=torch.zeros(rows, seen, *latents[1:], dtype=dtype))
    working = {}
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        _fake(network)
        x, time = torch.empty(rows, *latents, dtype=dtype), torch.full((rows,), 0.5)
        with Alive() as alive:
            network(x, time, condition, Context())
        working[STEP] = alive.peak + x.nbytes
        if decoder is not None:
            _fake(decoder)
            cells = max(latents) if vae_tile is None else max(SMALLEST, vae_tile // factor)
            z = torch.empty(batch if vae_tile is None else 1, latents[0], *(min(side, cells) for side in latents[1:]))
            with Alive() as alive:
                decoder.decode(z)
            pictures = 0 if vae_tile is None else 2 * 4 * 3 * height * width * batch  # those that are done, and their sum
            working[DECODING] = alive.peak + z.nbytes + pictures
    bridged = getattr(network, "bridged", False)
    largest = _largest_block(network.network if bridged else network)
    return MemoryPlan(name, height, width, rows, weights, working, largest, bridged)


def _weights(opened: Opened) -> dict[str, int]:
    weights = {"denoiser": stored_bytes(opened.parts["denoiser"])}
    for part, network in (getattr(opened.parts.get("text_encoder"), "encoders", None) or {}).items():
        weights[part] = stored_bytes(network)
    if "text_encoder" in opened.parts and len(weights) == 1:
        weights["text_encoder"] = stored_bytes(opened.parts["text_encoder"])
    if "autoencoder" in opened.parts:
        weights["autoencoder"] = stored_bytes(opened.parts["autoencoder"])
    return weights


def _largest_block(network: nn.Module) -> int:
    """Bytes of the largest member of a list of blocks, and of all that is in none."""
    blocks = [block for module in network.modules() if isinstance(module, nn.ModuleList) for block in module]
    outer = [block for block in blocks if not any(block in list(other.modules())[1:] for other in blocks)]
    sizes = [stored_bytes(block) for block in outer]
    return max(sizes, default=0) + stored_bytes(network) - sum(sizes)


class _StandIn(nn.Module):
    """A text encoder of transformers that gives zeros of its shapes."""

    def __init__(self, encoder: Any):
        super().__init__()
        self.config, self.anchor = encoder.config, nn.Parameter(torch.zeros(1), requires_grad=False)
        text = getattr(self.config, "text_config", None) or self.config
        self.width = getattr(text, "hidden_size", None) or text.d_model
        self.layers = getattr(text, "num_hidden_layers", None) or text.num_layers
        projected = type(encoder).__name__ == "CLIPTextModelWithProjection"
        self.pooled = self.config.projection_dim if projected else None

    def forward(self, input_ids: Tensor, *_: Any, **__: Any) -> Any:
        states = torch.zeros(*input_ids.shape, self.width)
        out: dict[Any, Any] = {"last_hidden_state": states, "hidden_states": (states,) * (self.layers + 1)}
        out["pooler_output"] = states[:, 0]
        if self.pooled is not None:
            out["text_embeds"] = torch.zeros(len(input_ids), self.pooled)
        return _Output(**out)


class _Output(SimpleNamespace):
    """Outputs by name, and the first by number."""

    def __getitem__(self, index: int) -> Any:
        return [self.last_hidden_state][index]


def _condition(opened: Opened, rows: int) -> Condition:
    """What the text encoder gives of a short prompt, for each row."""
    reader: Any = opened.parts.get("text_encoder")
    if reader is None:
        classes = getattr(opened.parts["denoiser"].config, "num_classes", 0)
        return Condition(label=torch.zeros(rows, dtype=torch.long)) if classes else Condition()
    for module in reader.modules():
        encoder = getattr(module, "encoder", None)
        if isinstance(encoder, nn.Module) and type(encoder).__module__.startswith("transformers."):
            module.encoder = _StandIn(encoder)
    with torch.no_grad():
        one: Condition = reader.condition("a cat")
    return one.map(lambda value: value.expand(rows, *value.shape[1:]).contiguous())


def _fake(network: nn.Module) -> None:
    """Give a network's parameters shapes without content, in the mode that is in force."""
    for module in network.modules():
        for name, value in module._parameters.items():
            if value is None:
                continue
            made: Tensor
            if isinstance(value, QuantizedWeight):
                made = value.map(lambda part: torch.empty(part.shape, dtype=part.dtype))
            else:
                made = torch.empty(value.shape, dtype=value.dtype)
            module._parameters[name] = nn.Parameter(made, requires_grad=False)


class Alive(TorchDispatchMode):
    """Adds up the memory of tensors that operations made and that are still held. peak: bytes at the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(value) for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)}
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        if tensors and not any(isinstance(value, FakeTensor | QuantizedWeight) for value in tensors):
            with unset_fake_temporarily():  # lengths and masks of the prompt, which decide what is computed
                return func(*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, Tensor) and not isinstance(value, QuantizedWeight):
                self._hold(value, before)
        self.peak = max(self.peak, self.now)
        return out

    def _hold(self, value: Tensor, before: set[int]) -> None:
        key = _storage(value)
        if key not in self.seen:
            if key in before:
                return  # a view of what was there
            self.seen[key] = 0
            self.now += value.untyped_storage().nbytes()
        self.seen[key] += 1
        weakref.finalize(value, self._release, key, value.untyped_storage().nbytes())

    def _release(self, key: int, size: int) -> None:
        self.seen[key] -= 1
        if not self.seen[key]:
            del self.seen[key]
            self.now -= size


def _storage(value: Tensor) -> int:
    return 0 if isinstance(value, QuantizedWeight) else value.untyped_storage()._cdata
