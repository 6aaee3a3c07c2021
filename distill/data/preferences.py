"""Pairs of pictures of which people liked one better, from a file of JSON lines: prompt, chosen and rejected.

    {"prompt": "a red heart", "chosen": "hearts/3.png", "rejected": "hearts/5.png"}

Pictures are named by their paths below the file's folder, and no others are read. Counters 2 k and 2 k + 1 are the chosen and
the rejected picture of a pair, with one caption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pydantic import model_validator

from distill.data.decode import MAX_BYTES, probe
from distill.data.errors import DataError
from distill.data.files import read_below, sha256_of
from distill.data.images import clean_caption, parse_json
from distill.data.order import Order
from distill.data.pictures import PictureConfig, PictureItem, PictureSource, split_by
from distill.data.report import Report, Unusable
from samplers.noise import fold

FILE_LIMIT = 1 << 30


class PreferencePairsConfig(PictureConfig):
    """file: one JSON object a line, with prompt, chosen and rejected; other keys are left alone."""

    file: Path
    drop_caption: float = 0.0

    @model_validator(mode="after")
    def _one_shape(self) -> PreferencePairsConfig:
        if self.buckets is not None:
            raise ValueError("pairs are of one shape: leave buckets out, and give size")
        return self


@dataclass(frozen=True)
class Unfit:
    """A picture that cannot be half of a pair, and why."""

    name: str
    reason: str


class PreferencePairs(PictureSource):
    """See the module."""

    config: PreferencePairsConfig

    def __init__(self, config: PreferencePairsConfig, seed: int):
        report, root = Report(str(config.file), config.on_error), config.file.parent
        try:
            lines = read_below(root, config.file.name, FILE_LIMIT).split(b"\n")
        except Unusable as error:
            raise DataError(f"{config.file} {error}; give a file with a pair a line.") from None
        rows: list[tuple[int, str, str, str]] = []
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    rows.append((number, *parse_pair(line)))
                except Unusable as error:
                    report.drop(f"line {number}", str(error))
        with ThreadPoolExecutor(config.threads) as pool:
            made = list(pool.map(lambda row: _pair(config, root, *row[1:]), rows))
        items: list[PictureItem] = []
        for row, pair in zip(rows, made, strict=True):
            if isinstance(pair, Unfit):
                report.drop(f"line {row[0]}, {pair.name}", pair.reason)
            else:
                items += pair
        super().__init__(items, lambda item: read_below(root, item.name, MAX_BYTES), config, seed, report)

    def _arrange(self, items: Sequence[PictureItem]) -> None:
        super()._arrange(items)
        self.order = Order([range(len(items) // 2)], self.seed)

    def grouped(self, batch_size: int) -> PreferencePairs:
        if batch_size % 2:
            raise ValueError(f"A batch of {batch_size} does not split into pairs; use an even one.")
        return self

    def split(self, share: float) -> tuple[PictureSource, PictureSource]:
        """(the rest, a share of the pairs), a function of each pair's pictures."""
        digests = [f"{a.digest} {b.digest}" for a, b in zip(self.items[::2], self.items[1::2], strict=True)]
        taken, left = (self._part([2 * pair + k for pair in pairs for k in (0, 1)]) for pairs in split_by(share, digests))
        return left, taken

    def choose(self, counters: Sequence[int]) -> list[tuple[int, int]]:
        limit = self.config.variants or 1 << 31  # both of a pair are cut alike
        return [(2 * self.order.locate(c // 2)[1] + c % 2, fold(self.seed, "variant", c // 2) % limit) for c in counters]

    def caption(self, index: int, counter: int) -> str:
        return super().caption(index, counter // 2)

    def _from(self, index: int) -> Iterator[int]:
        yield index  # no other takes the place of half a pair


def parse_pair(line: bytes) -> tuple[str, str, str]:
    """(prompt, chosen, rejected) of a line; Unusable says what is wrong with it."""
    row = parse_json(line)
    given = [row.get(key) for key in ("prompt", "chosen", "rejected")] if isinstance(row, dict) else []
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < 3:
        raise Unusable("is not an object with prompt, chosen and rejected, three texts")
    prompt, *names = texts
    chosen, rejected = (PurePosixPath(name).as_posix() for name in names)
    if chosen == rejected:
        raise Unusable("names one picture twice")
    return prompt, chosen, rejected


def _pair(config: PreferencePairsConfig, root: Path, prompt: str, chosen: str, rejected: str) -> list[PictureItem] | Unfit:
    """The two items, or what of them cannot be used."""
    items = []
    for name in (chosen, rejected):
        try:
            caption, data = clean_caption(prompt), read_below(root, name, MAX_BYTES)
            width, height = probe(data, config.min_side)
        except Unusable as error:
            return Unfit(name, str(error))
        items.append(PictureItem(name, caption, -1, width, height, digest=sha256_of(data)))
    return items
