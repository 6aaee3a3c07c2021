"""Prompts without pictures, one a line of a text file: for methods that learn from a teacher alone."""

from __future__ import annotations

import codecs
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from distill.data.errors import DataError
from distill.data.files import sha256_of
from distill.data.images import clean_caption
from distill.data.order import Order
from distill.data.pictures import split_by
from distill.data.report import Report, Unusable
from distill.types import Batch
from gen.io.errors import CheckpointError, decode_text, read_bytes
from gen.nn.registry import Config
from samplers.noise import fold

FILE_LIMIT = 1 << 30


class PromptsConfig(Config):
    """file: UTF-8 text; empty lines are left out. drop_caption: share of empty prompts."""

    file: Path
    drop_caption: float = Field(default=0.0, ge=0, le=1)
    on_error: Literal["skip", "raise"] = "skip"


class Prompts:
    """A data source (see distill.data.Source) whose batches hold captions only. Every prompt occurs once in a pass."""

    def __init__(self, config: PromptsConfig, seed: int):
        self.config, self.seed = config, seed
        self.report = Report(str(config.file), config.on_error)
        self.prompts: list[str] = []
        try:
            data = read_bytes(config.file, FILE_LIMIT)
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                data = decode_text(data).encode()
            lines = data.removeprefix(codecs.BOM_UTF8).splitlines()
        except (CheckpointError, UnicodeDecodeError) as error:
            raise DataError(f"{error}") from None
        seen: set[str] = set()
        for number, line in enumerate(lines, 1):
            try:
                prompt = clean_caption(line.decode())
            except UnicodeDecodeError:
                self.report.drop(f"line {number}", "is not UTF-8")
            except Unusable as error:
                self.report.drop(f"line {number}", str(error))
            else:
                if prompt in seen:
                    self.report.drop(f"line {number}", "is a prompt that an earlier line has")
                elif prompt:
                    seen.add(prompt)
                    self.prompts.append(prompt)
        self.report.kept = len(self.prompts)
        self.report.require_some()
        self.order = Order([range(len(self.prompts))], seed)

    def __len__(self) -> int:
        return len(self.prompts)

    def _prompt(self, counter: int) -> str:
        dropped = fold(self.seed, "caption", counter) / 2**63 < self.config.drop_caption
        return "" if dropped else self.prompts[self.order.locate(counter)[1]]

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        numbers = [int(counter) for counter in counters]
        return Batch(index=torch.tensor(numbers), captions=[self._prompt(counter) for counter in numbers])

    def split(self, share: float) -> tuple[Prompts, Prompts]:
        """(the rest, a share of the prompts), a function of the prompts alone."""
        parts = []
        taken, left = split_by(share, self.prompts)
        for chosen in (left, taken):
            parts.append(copy.copy(self))
            parts[-1].prompts = [self.prompts[index] for index in chosen]
            parts[-1].order = Order([range(len(chosen))], self.seed)
        return parts[0], parts[1]

    def digest(self) -> str:
        """A hash of all prompts in their order."""
        return sha256_of(repr(self.prompts).encode())

    def check(self) -> Report:
        return self.report
