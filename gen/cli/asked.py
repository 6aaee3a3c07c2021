"""What `fewstep image` is asked for: prompts from the line, from a file or with wildcards, and the seeds of their pictures."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gen.calls.ranges import numbers

LARGEST = 16 << 20  # bytes of a file of prompts


@dataclass(frozen=True)
class Asked:
    """prompts: in order. call: the keywords that say how many pictures of each, and their seeds."""

    prompts: list[str]
    call: dict[str, Any]

    @property
    def count(self) -> int:
        """Of pictures, for each number of steps."""
        return max(len(self.prompts), 1) * self.call["num_images_per_prompt"]


def read_prompts(file: Path) -> list[str]:
    """The lines of a file, or of stdin where it is "-"; empty ones and those that begin with # left out."""
    from gen.io.errors import CheckpointError, decode_text, read_text

    name = "stdin" if str(file) == "-" else str(file)
    if name == "stdin":
        data = sys.stdin.buffer.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise ValueError(f"stdin holds more than {LARGEST >> 20} MiB, the most that is read of prompts.")
        try:
            text = decode_text(data)
        except UnicodeDecodeError:
            raise ValueError("stdin is not UTF-8 text; give prompts as such.") from None
    else:
        try:
            text = read_text(file, LARGEST)
        except CheckpointError as error:
            raise ValueError(f"--prompts: {error}") from None
    prompts = [line.strip() for line in text.splitlines()]
    prompts = [line for line in prompts if line and not line.startswith("#")]
    if not prompts:
        raise ValueError(f"{name} holds no prompt; write one a line.")
    return prompts


def asked(
    prompts: Sequence[str], file: Path | None, number: int, seed: str | None, wildcards: Path | None, again: bool = False
) -> Asked:
    """The prompts and seeds of a command.

    number: of pictures for each prompt.
    seed: "7", or several, as in "1-16": each prompt with each of them.
    wildcards: a folder; prompts are then templates (`gen.calls.wildcards`), drawn by the seed of each picture.
    again: the same pictures are made more than once, so that a seed drawn at random must be known.
    """
    texts = [*prompts, *(read_prompts(file) if file is not None else [])]
    seeds = None if seed is None else numbers("--seed", seed)
    if seeds is not None and len(seeds) > 1 and number != 1:
        raise ValueError(f"--seed {seed} says how many pictures each prompt gets, and so does -n {number}; give one of them.")
    if seeds is None and again:
        seeds = [secrets.randbelow(1 << 32)]
    if wildcards is not None:
        return _expanded(texts, number, seeds, wildcards)
    if seeds is None or len(seeds) == 1:
        return Asked(texts, {"num_images_per_prompt": number, "seed": seeds and seeds[0]})
    return Asked(texts, {"num_images_per_prompt": len(seeds), "seeds": seeds * max(len(texts), 1)})


def _expanded(templates: list[str], number: int, seeds: list[int] | None, folder: Path) -> Asked:
    from gen.calls.wildcards import WildcardFiles, expand
    from gen.io.validators import MAX_IMAGES, check_int
    from gen.pipeline.subjects import draw_seeds

    files = WildcardFiles(folder)
    each = check_int("num_images_per_prompt", number, 1, MAX_IMAGES) if seeds is None or len(seeds) == 1 else len(seeds)
    rows = [template for template in templates for _ in range(each)]
    check_int("the number of pictures", len(rows), 0, MAX_IMAGES)
    if seeds is None or len(seeds) == 1:
        of_rows = draw_seeds(len(rows), seeds and seeds[0], None, None)
    else:
        of_rows = seeds * len(templates)
    prompts = [expand(template, own, files=files) for template, own in zip(rows, of_rows, strict=True)]
    return Asked(prompts, {"num_images_per_prompt": 1, "seeds": of_rows})
