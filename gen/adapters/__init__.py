"""LoRA and its relatives: read and written in every common format, applied to a network without changing it."""

from __future__ import annotations

from gen.adapters.adapter import Adapter
from gen.adapters.apply import Adapters
from gen.adapters.delta import AdapterError, Delta
from gen.adapters.files import FORMATS, from_tensors, read_adapter, to_tensors, write_adapter
from gen.adapters.report import LoadReport
from gen.adapters.resolve import renamed

__all__ = [
    "FORMATS",
    "Adapter",
    "AdapterError",
    "Adapters",
    "Delta",
    "LoadReport",
    "from_tensors",
    "read_adapter",
    "renamed",
    "to_tensors",
    "write_adapter",
]
