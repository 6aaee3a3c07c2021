"""Batches of the tiny model for tests: made, and read back."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from gen.batch.ledger import STATE
from gen.batch.run import BatchResult, run_batch
from gen.batch.settings import BatchSettings

PROMPTS = ["a red heart", "a cat", "a dog on the moon", "a blue cat", "red", "the moon", "a heart on a heart", "blue dogs!"]


class Bar:
    """What a bar was told."""

    def __init__(self) -> None:
        self.pictures = 0

    def update(self, pictures: int) -> None:
        self.pictures += pictures


@contextlib.contextmanager
def no_bar(total: int | None, there: int) -> Iterator[Bar]:
    yield Bar()


def make(source: Path, output: Path, generator, said: list[str] | None = None, **settings) -> BatchResult:
    """A batch of a generator that is open, four steps a picture if not said otherwise."""
    settings = {"seed": 5, "model": "tiny", "batch_size": 4, **settings}
    say = (said if said is not None else []).append
    return run_batch(BatchSettings(str(source), output, **settings), progress=no_bar, say=say, generator=generator)


def pixels(folder: Path) -> dict[str, bytes]:
    """name -> pixels of every PNG in a folder."""
    return {
        path.relative_to(folder).as_posix(): np.asarray(Image.open(path)).tobytes()
        for path in sorted(folder.rglob("*.png"))
        if STATE not in path.parts
    }


def contents(folder: Path) -> dict[str, bytes]:
    """name -> bytes of every file that a batch leaves beside its state."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and STATE not in path.parts
    }


def ledger_lines(output: Path, word: str = "index") -> list[int]:
    """The numbers in all ledgers, in the order of their lines."""
    lines = [json.loads(line) for path in sorted((output / STATE).glob("ledger-*")) for line in path.read_text().splitlines()]
    return [line[word] for line in lines if word in line]


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixed_rows() -> list[dict]:
    """Rows of several settings, one of them wrong."""
    rows: list[dict] = [{"prompt": prompt} for prompt in PROMPTS]
    rows[1] |= {"steps": 2, "sampler": "euler"}
    rows[2] |= {"seed": 11, "negative": "blurry"}
    rows[3] |= {"steps": 2, "sampler": "euler", "guidance_scale": 1}
    rows[5] |= {"sampler": "eulr"}
    rows[6] |= {"height": 16, "width": 48}
    return rows
