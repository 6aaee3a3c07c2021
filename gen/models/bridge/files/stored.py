"""Weights that a safetensors file stores in fewer bits: which tensors are codes, which are scales, and what they make together.

    fp8            `X.weight` as F8_E4M3 or F8_E5M2, plain, or with `X.scale_weight` (kohya, ComfyUI until 2025) or
                   `X.weight_scale` (ComfyUI), one number, one per row, or one per block of a row
    int8           `X.weight` as I8 with `X.weight_scale`, one number or one per row
    bitsandbytes   NF4: `X.weight` packed, with `absmax`, `quant_map` and `quant_state`, nested or not; int8 with `X.SCB`

Codes stay codes where they land in a linear layer (`gen.nn.quantized`). Other forms are refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.io.weights import CheckpointError, TensorFile, read_metadata
from gen.nn.quantized import CODECS, GROUP, NF4, QuantizedWeight

SCALES = (".weight_scale", ".scale_weight", ".SCB")
IGNORED = (".input_scale", ".scale_input", ".comfy_quant", ".weight_format", "scaled_fp8")  # of the layer's inputs, and marks
FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")
FP8 = {"F8_E4M3": "fp8", "F8_E5M2": "fp8_e5m2"}
LARGEST = 1 << 14  # bytes of a description in JSON

NUNCHAKU = (".qweight", ".wscales", ".smooth_factor")
OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (NUNCHAKU, "Nunchaku's (SVDQuant), for its own kernels: pip install nunchaku opens it in a diffusers pipeline on CUDA"),
    ((".weight_scale_2", ".weight_scalar"), "NVFP4 or a hybrid MXFP8"),
    ((".pre_quant_scale",), "AWQ's"),
    ((".quant_state.bitsandbytes__fp4",), "bitsandbytes' FP4"),
)


class StoredFile:
    """A safetensors file by what its weights are: `shapes` of what codes stand for, `tensors` as a GGUFFile has."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.file = TensorFile(path)
        names = self.file.shapes.keys()
        for endings, what in OTHERS:
            if found := next((name for name in names if name.endswith(endings)), None):
                raise CheckpointError(
                    self.path, f"is quantised in a form that is not read ({found}), {what}; take its GGUF, fp8 or bf16 file."
                )
        self.beside = {name for name in names if name.endswith((*SCALES, *IGNORED)) or ".weight." in name}
        self._describe()
        self.shapes = {name: shape for name, shape in self.file.shapes.items() if name not in self.beside}
        self.dtypes = {name: dtype for name, dtype in self.file.dtypes.items() if name not in self.beside}
        self.metadata = read_metadata(path)
        self._check_formats()
        self._small: dict[str, Tensor] = {}
        self._find()

    def _describe(self) -> None:
        """Names of what belongs to NF4 weights, and their shapes."""
        self.nf4: dict[str, dict[str, Any]] = {}
        states = [name for name in self.file.shapes if name.endswith(".quant_state.bitsandbytes__nf4")]
        for name, tensor in self._read(states, LARGEST).items():
            described = self._json(name, tensor)
            weight = name.removesuffix(".quant_state.bitsandbytes__nf4")
            shape, block = described.get("shape"), described.get("blocksize")
            sides = shape if isinstance(shape, list) and len(shape) == 2 and all(_whole(side) for side in shape) else None
            packed = self.file.shapes.get(weight, ())
            if sides is None or block != GROUP or sides[1] % GROUP or len(packed) != 2 or sides[0] * sides[1] != 2 * packed[0]:
                raise CheckpointError(
                    self.path, f"has {weight!r} as NF4 of {shape!r} in blocks of {block!r}; whole rows of blocks of 64 fit."
                )
            self.nf4[weight] = described

    def _json(self, name: str, tensor: Tensor) -> dict[str, Any]:
        try:
            value = json.loads(bytes(tensor.flatten().view(torch.uint8).tolist()).decode())
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise CheckpointError(self.path, f"has {name!r}, which is meant to be JSON and is not.")
        return value

    def _check_formats(self) -> None:
        """CheckpointError for a form that the file's marks name and that is not read."""
        described = self._read([name for name in self.beside if name.endswith(".comfy_quant")], LARGEST)
        marks = {name: self._json(name, value) for name, value in described.items()}
        try:
            listed = json.loads(self.metadata.get("_quantization_metadata") or "{}")
        except (ValueError, RecursionError):
            raise CheckpointError(self.path, "has quantization metadata that is not JSON.") from None
        layers = listed.get("layers") if isinstance(listed, dict) else None
        if isinstance(layers, dict):
            marks |= {str(name): value if isinstance(value, dict) else {} for name, value in layers.items()}
        for name, mark in marks.items():
            rotated = next((key for key, value in mark.items() if key.startswith("convrot") and value), None)
            if mark.get("format") not in FORMATS or rotated:
                form = rotated or mark.get("format")
                raise CheckpointError(
                    self.path, f"has {name!r} quantised as {form!r}; read are {', '.join(FORMATS)}, GGUF, and NF4 and int8."
                )

    def _read(self, names: list[str], largest: int) -> dict[str, Tensor]:
        """Small tensors at once, copied; CheckpointError for one beyond `largest` numbers."""
        for name in names:
            numbers = 1
            for side in self.file.shapes[name]:
                numbers *= side
            if numbers > largest:
                raise CheckpointError(self.path, f"has {name!r} of {numbers} numbers, more than such a description has.")
        wanted = set(names)
        return {name: tensor.clone() for name, tensor in self.file.tensors(names=tuple(wanted))} if wanted else {}

    def _find(self) -> None:
        """Which weights are codes; their scales, read."""
        self.codes: dict[str, str] = {}
        scales: dict[str, str] = {}
        for name, dtype in self.dtypes.items():
            base, ends = name.removesuffix(".weight"), name.endswith(".weight")
            scale = next((base + ending for ending in SCALES if ends and base + ending in self.file.shapes), None)
            if name in self.nf4:
                self.codes[name] = "nf4"
                described = self.nf4[name]["shape"]
                self.shapes[name] = tuple(described)
            elif dtype in FP8:
                self.codes[name] = FP8[dtype]
            elif dtype == "I8" and scale is not None:
                self.codes[name] = "int8"
            elif dtype in ("U8", "I8"):
                raise CheckpointError(self.path, f"has {name!r} as whole numbers without a scale, a form that is not read.")
            elif scale is not None:
                raise CheckpointError(self.path, f"has {scale!r} for {name!r}, which is {dtype} and needs none.")
            if scale is not None:
                scales[name] = scale
        limit = max((max(self.shapes[name], default=1) * 4096 for name in scales), default=0)
        read = self._read(list(scales.values()), limit)
        self.scale = {name: self._scale(name, scale, read[scale]) for name, scale in scales.items()}
        for name in self.nf4:
            self.scale[name] = self._absmax(name)

    def _scale(self, name: str, scale: str, value: Tensor) -> Tensor:
        """(rows, groups) of a weight, from whichever way it is written."""
        rows, columns = self.shapes[name][0], self.shapes[name][-1]
        value = value.float() / (127 if scale.endswith(".SCB") else 1)
        if value.numel() == 1:
            return value.reshape(1, 1).expand(rows, 1)
        if value.numel() == rows:
            return value.reshape(rows, 1)
        if value.shape[0] == rows and len(self.shapes[name]) == 2 and columns % (value.numel() // rows) == 0:
            return value.reshape(rows, -1)
        raise CheckpointError(
            self.path,
            f"has {scale!r} as {tuple(value.shape)} for a weight {self.shapes[name]}; one number or rows of them fit.",
        )

    def _absmax(self, name: str) -> Tensor:
        """(rows, blocks) of an NF4 weight; nested ones are codes themselves, of blocks of 256 (QLoRA, section 3)."""
        rows, columns = self.shapes[name]
        wanted = [f"{name}.{key}" for key in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")]
        read = self._read([key for key in wanted if key in self.file.shapes], max(rows * columns // GROUP, 1024))
        absmax, levels, outer, table = (read.get(key) for key in wanted)
        if absmax is None or absmax.numel() * GROUP != rows * columns:
            raise CheckpointError(self.path, f"has {name!r} as NF4 without a scale for each of its blocks.")
        if levels is None or levels.numel() != 16 or not torch.allclose(levels.float(), torch.tensor(NF4), atol=1e-6):
            raise CheckpointError(self.path, f"has {name!r} as NF4 with levels that are not NF4's.")
        if outer is not None and table is not None:
            described, block = self.nf4[name], self.nf4[name].get("nested_blocksize")
            offset = described.get("nested_offset", 0.0)
            codes = absmax.flatten().long()
            if not _whole(block) or not isinstance(offset, int | float):
                block = 0
            assert block is not None
            if outer.numel() * block < codes.numel() or table.numel() != 256 or absmax.dtype != torch.uint8:
                raise CheckpointError(self.path, f"has {name!r} as NF4 whose nested scales do not fit it.")
            absmax = table.float()[codes] * outer.float().repeat_interleave(block)[: len(codes)] + offset
        return absmax.float().reshape(rows, -1)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor or `QuantizedWeight`) in the order of the file; a tensor is a view of the mapped file."""
        for name, tensor in self.file.tensors(digest=True):
            if name in self.beside:
                continue
            kind = self.codes.get(name)
            if kind is None:
                yield name, tensor
                continue
            shape = self.shapes[name]
            if len(shape) < 2:  # a bias or a norm has no rows to scale
                yield name, tensor.float() * (self.scale[name].flatten() if name in self.scale else 1.0)
                continue
            rows = tensor.reshape(shape[0], -1)
            parts = {"data": rows if kind == "int8" else rows.view(torch.uint8)}
            parts["scale"] = self.scale.get(name, torch.ones(1, 1)).expand(shape[0], -1)
            columns = 2 * rows.shape[1] if kind == "nf4" else rows.shape[1]
            yield name, QuantizedWeight(CODECS[kind], parts, columns, torch.float32)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31
