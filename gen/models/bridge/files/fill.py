"""Networks built without memory and filled from a file in one pass: each tensor is read once, in the file's order, and written
in the dtype and to the device where it will be used. Several networks may be filled by one file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gen.io.weights import CheckpointError, listed
from gen.models.bridge.files.gguf_file import TYPES, codec
from gen.models.bridge.files.rows import Piece, Plan
from gen.models.bridge.load import CLASSES, check_config, library_class, quietly
from gen.models.bridge.positions import check_positions
from gen.models.bridge.reasons import first_line
from gen.nn.initialisation import TooLarge, no_larger_than, opening_device, wants_sizes_only
from gen.nn.quantized import CODECS, QuantizedWeight, join, quantizable, quantize


class TensorSource(Protocol):
    """A file of weights: `StoredFile` or `GGUFFile`. codes: tensors in fewer bits, and how."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    codes: dict[str, str]

    def tensors(self) -> Iterator[tuple[str, Tensor]]: ...


@dataclass
class Filling:
    """A network to be filled.

    plan: where its tensors come from (`rows.py`).
    scheme: of `gen.nn.quantized`, in which linear layers are quantised as they come; None: as the file has them.
    """

    network: nn.Module
    plan: Plan
    dtype: torch.dtype
    device: torch.device = field(default_factory=opening_device)
    scheme: str | None = None
    _waiting: dict[str, dict[int, QuantizedWeight | Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.values = self.network.state_dict()
        self.linear = {
            f"{name}.weight": module for name, module in self.network.named_modules() if isinstance(module, nn.Linear)
        }
        self.convolutions = {f"{name}.weight" for name, module in self.network.named_modules() if isinstance(module, nn.Conv2d)}

    def only_size(self, source: TensorSource) -> None:
        """Have tensors of the right kind and dtype on the meta device, and none of the file's values."""
        for target, value in list(self.values.items()):
            codes = {source.codes.get(piece.source) for piece in self.plan.get(target, ())}
            if target in self.linear and len(codes) == 1 and (code := codes.pop()) is not None:
                self._put(target, unread(code, tuple(value.shape), self.dtype))
            elif value.is_floating_point() and value.is_meta:
                self._put(target, value.to(self.dtype))
            held = self.values[target]
            if self._quantised(target, held) and self.scheme:
                self._put(target, quantize(held, self.scheme))

    def accept(self, target: str, index: int, piece: Piece, value: Tensor) -> None:
        """One piece of a tensor, cut out of the file's."""
        module = self.linear.get(target)
        if isinstance(value, QuantizedWeight) and (piece.transposed or module is None):
            value = value.dense()
        coded = isinstance(value, QuantizedWeight)
        if (module is not None and coded) or (value.ndim in (2, 4) and self._quantised(target, value)):
            self._collect(target, index, value)
            return
        self._write(target, index, piece, value)

    def _quantised(self, target: str, value: Tensor) -> bool:
        """Is a layer's weight quantised as it comes?"""
        layer = target in self.linear or (target in self.convolutions and value.ndim == 4)
        return layer and self.scheme is not None and quantizable(target.removesuffix(".weight"), value, self.scheme)

    def _collect(self, target: str, index: int, value: Tensor) -> None:
        """Keep a piece of a linear layer's weight until the whole is there, in codes."""
        kept = value.map(lambda part: part.clone()) if isinstance(value, QuantizedWeight) else value.clone()
        pieces = self._waiting.setdefault(target, {})
        pieces[index] = kept
        if len(pieces) < len(self.plan[target]):
            return
        del self._waiting[target]
        ordered = [pieces[i] for i in sorted(pieces)]
        codes = [piece for piece in ordered if isinstance(piece, QuantizedWeight)]
        if len(codes) == len(ordered) and len({piece.codec.key for piece in codes}) == 1:
            weight = join(codes)
        else:
            whole = torch.cat([piece.dense() if isinstance(piece, QuantizedWeight) else piece for piece in ordered])
            if self.scheme is None:
                self._put(target, whole.to(self.device, self.dtype))
                return
            weight = quantize(whole, self.scheme)
        self._put(target, weight.map(lambda part: part.to(self.device), self.dtype))

    def _write(self, target: str, index: int, piece: Piece, value: Tensor) -> None:
        held = self.values[target]
        if held.device.type == "meta":
            dtype = self.dtype if held.is_floating_point() else held.dtype
            held = torch.empty(held.shape, dtype=dtype, device=self.device)
            self._put(target, held)
        if piece.transposed:
            held.copy_(value.T)
            return
        begin = sum(piece.stop - piece.start for piece in self.plan[target][:index])
        rows = held[begin : begin + len(value)] if held.ndim else held
        rows.copy_(value.reshape(rows.shape))

    def _put(self, target: str, value: Tensor) -> None:
        owner, _, name = target.rpartition(".")
        module = self.network.get_submodule(owner)
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(value, requires_grad=False)
        else:
            module._buffers[name] = value
        self.values[target] = value


def unread(code: str, shape: tuple[int, ...], dtype: torch.dtype) -> QuantizedWeight:
    """A weight of the size that codes of a file's kind have, on the meta device."""
    rows, columns = shape
    if code == "nf4":
        return quantize(torch.empty(shape, dtype=dtype, device="meta"), code)
    if code in CODECS:
        parts = {"data": torch.empty(shape, dtype=torch.int8, device="meta"), "scale": torch.empty(rows, 1, device="meta")}
        return QuantizedWeight(CODECS[code], parts, columns, dtype)
    number, (_, block, width, _) = next((number, row) for number, row in TYPES.items() if row[0] == code)
    data = torch.empty(rows, columns // block * width, dtype=torch.uint8, device="meta")
    return QuantizedWeight(codec(number), {"data": data}, columns, dtype)


def build(path: Path, name: str, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A network of `load.CLASSES` without memory for its weights; CheckpointError where its config is not possible, or asks for
    more than the file's shapes.

    path: of the file, for errors.
    """
    check_config(path, config)
    check_positions(path, config)
    with quietly():
        from accelerate import init_empty_weights

        kind = library_class(name)

        def made() -> nn.Module:
            if CLASSES[name] == "diffusers":
                return kind.from_config(dict(config))
            return kind(kind.config_class(**config))

        try:
            if not (sized := wants_sizes_only()):
                with no_larger_than(shapes, 4), torch.device("meta"):
                    network = made()
            if sized or _computes(network):
                with no_larger_than(shapes, 4), init_empty_weights():  # tables that no file has are computed
                    network = made()
        except TooLarge as error:
            raise CheckpointError(path, f"is not a {name} of its shapes: {error}.") from None
        except Exception as error:  # whatever a library makes of odd sizes
            raise CheckpointError(path, f"cannot be opened as a {name}: {first_line(error)}") from None
    return network.eval().requires_grad_(False)


def _computes(network: nn.Module) -> bool:
    """Does a network hold tables that it computed and that no file has, as buffers or as plain tensors?"""
    named = {*dict(network.named_parameters(remove_duplicate=False)), *dict(network.named_buffers(remove_duplicate=False))}
    if network.state_dict().keys() != named:
        return True
    plain = [value for module in network.modules() for value in vars(module).values()]
    nested = [value for values in plain if isinstance(values, list | tuple) for value in values]
    return any(isinstance(value, Tensor) for value in (*plain, *nested))


def check_plan(path: Path, name: str, filling: Filling, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """CheckpointError where the file does not fill the network exactly."""
    tied = set(getattr(filling.network, "_tied_weights_keys", None) or ())
    missing = sorted(filling.values.keys() - filling.plan.keys() - tied)
    unknown = sorted(filling.plan.keys() - filling.values.keys())
    wrong = []
    for target in sorted(filling.plan.keys() & filling.values.keys()):
        want, pieces = tuple(filling.values[target].shape), filling.plan[target]
        rows = sum(piece.stop - piece.start for piece in pieces)
        first = shapes[pieces[0].source]
        wide = {math.prod(shapes[piece.source][1:]) for piece in pieces}
        found = (first[1], first[0]) if pieces[0].transposed and len(first) == 2 else (rows, *first[1:]) if first else ()
        folded = len(first) == 1 and len(pieces) == 1  # one row after another in a vector
        if len(wide) > 1 or math.prod(found) != math.prod(want) or (found[:1] != want[:1] and not folded):
            wrong.append(f"{target} is {found}, {name} needs {want}")
    problems = [f"lacks {listed(missing)}"] * bool(missing) + [f"has unknown {listed(unknown)}"] * bool(unknown)
    problems += [listed(wrong)] * bool(wrong)
    if problems:
        raise CheckpointError(path, f"does not fit {name}: {'; '.join(problems)}.")


def fill(source: TensorSource, fillings: Iterable[Filling]) -> None:
    """Fill networks from one file, in one pass over it."""
    fillings = list(fillings)
    if wants_sizes_only():
        for filling in fillings:
            filling.only_size(source)
        return
    wanted: dict[str, list[tuple[Filling, str, int, Piece]]] = {}
    for filling in fillings:
        for target, pieces in filling.plan.items():
            for index, piece in enumerate(pieces):
                wanted.setdefault(piece.source, []).append((filling, target, index, piece))
    with torch.no_grad():
        for name, value in source.tensors():
            for filling, target, index, piece in wanted.get(name, ()):
                part = value
                if not piece.transposed and value.ndim and len(value) != piece.stop - piece.start:
                    part = (
                        value.rows(piece.start, piece.stop)
                        if isinstance(value, QuantizedWeight)
                        else value[piece.start : piece.stop]
                    )
                filling.accept(target, index, piece, part)
            del value
    for filling in fillings:
        if callable(tie := getattr(filling.network, "tie_weights", None)):
            tie()
