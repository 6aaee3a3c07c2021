"""What a batch is asked for, as plain data: the same for every process that works on it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gen.calls.call import AdapterUse
from gen.io.validators import SEED_END, check_int

KINDS = ("files", "webdataset", "parquet")


@dataclass(frozen=True)
class Share:
    """Part `index` of `count` of a batch."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count <= 100_000:
            raise ValueError(f"The share is {self.index}/{self.count}; give i/n with i from 0 to n - 1, for example 0/4.")

    def takes(self, block: int) -> bool:
        return block % self.count == self.index

    @classmethod
    def of(cls, text: str | None) -> Self:
        """From "i/n"; None: from RANK and WORLD_SIZE, as torchrun sets them; else everything."""
        if text is None:
            rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
            return cls(int(rank), int(world)) if rank.isdecimal() and world.isdecimal() else cls()
        first, slash, second = text.partition("/")
        if not (slash and first.isdecimal() and second.isdecimal()):
            raise ValueError(f"--shard is {text!r}; give i/n with i from 0 to n - 1, for example 0/4.")
        return cls(int(first), int(second))

    @staticmethod
    def device(device: str | None) -> str | None:
        """The device that is named; under torchrun, where each process of a machine has its own GPU, that one."""
        import torch

        local = os.environ.get("LOCAL_RANK", "")
        if device not in (None, "auto", "cuda") or not local.isdecimal() or not torch.cuda.is_available():
            return device
        return f"cuda:{int(local) % torch.cuda.device_count()}"

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


@dataclass(frozen=True)
class BatchSettings:
    """A batch.

    source: a file of rows (`gen.batch.readers`), "-" for standard input, or "hf:NAME" for a data set of Hugging Face.
    output: the batch's own folder.
    defaults: keywords of a call for rows that do not say them.
    columns: keyword -> the source's column that has it.
    extra: columns that are no keywords are carried along, for names and records, instead of refused.
    templates: prompts are read as `gen.calls.wildcards` does. combinatorial: every prompt of a template instead of one.
    number: pictures of each prompt.
    seed: the first picture's, for rows that have none; None: drawn once, and kept in the folder.
    model, model_arguments, device, dtype: as `Generator.from_pretrained` takes them; model None: the few-step student where it
        serves every row.
    adapters: in force in every row that has no column `lora`, which names files of `lora_dir`.
    kind: "files", "webdataset" or "parquet". name: of files, a template (`gen.batch.names`).
    per_file: pictures in each file of the two others.
    quality: of files in a format that loses some, 1 to 100; None for the usual.
    existing: where the folder holds another batch: "refuse" it, "skip" files that are there, or "overwrite" them.
    retry_errors: rows that failed before are tried again. strict: the first row that fails ends it.
    batch_size: pictures per network call. batch_invariant: no bit of a picture depends on the others.
    """

    source: str
    output: Path
    defaults: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    extra: bool = False
    templates: bool = True
    combinatorial: bool = False
    wildcards: Path | None = None
    number: int = 1
    seed: int | None = None
    model: str | None = None
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    adapters: tuple[AdapterUse, ...] = ()
    lora_dir: Path | None = None
    kind: str = "files"
    name: str = "{index:06d}-{slug}-{seed}.png"
    per_file: int = 1000
    quality: int | None = None
    share: Share = Share()
    existing: str = "refuse"
    retry_errors: bool = False
    strict: bool = False
    batch_size: int = 8
    batch_invariant: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"The kind of output is {self.kind!r}; choose one of {', '.join(KINDS)}.")
        for name, value, high in (("number", self.number, 10_000), ("per_file", self.per_file, 1_000_000)):
            if not 1 <= value <= high:
                raise ValueError(f"{name} is {value}; give a whole number from 1 to {high}.")
        if self.seed is not None:
            check_int("seed", self.seed, 0, SEED_END - 1)
        if not 1 <= self.batch_size <= 1024:
            raise ValueError(f"batch_size is {self.batch_size}; give a whole number from 1 to 1024.")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; give a number from 1 to 100.")
        if self.quality is not None and (self.kind != "files" or self.name.lower().endswith(".png")):
            raise ValueError("quality says nothing of a PNG, which keeps every pixel; let name end in .jpg, .webp or .avif.")
        if self.kind != "files" and (self.existing != "refuse" or self.retry_errors):
            raise ValueError(
                "Files of many pictures are written once: --skip-existing, --overwrite and --retry-errors go with single "
                "pictures; choose another folder with -o."
            )

    @property
    def block(self) -> int:
        """Pictures that belong to one share in a piece: those of one file."""
        return 1 if self.kind == "files" else self.per_file
