"""What the sources of pictures share: a list of items, read when needed, as batches that are functions of the counters."""

from __future__ import annotations

import copy
import hashlib
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor

from distill.data.decode import decode
from distill.data.errors import DataError
from distill.data.order import Order, bucket_sizes, nearest_bucket
from distill.data.report import Report, Unusable, shown
from distill.data.transform import Resize, choose_view, render
from distill.types import Batch
from gen.nn.registry import Config
from samplers.noise import fold


class BucketConfig(Config):
    """Pictures of several shapes: every batch has one (height, width), multiples of `step` with an area of about size^2."""

    step: int = Field(default=64, ge=8)
    max_ratio: float = Field(default=2.0, ge=1, le=8)


class PictureConfig(Config):
    """size: side of the square pictures, or the root of a bucket's area. resize: crop to the shape, pad, or stretch.
    random_crop, flip: how variants differ, in place and in the share that is mirrored. variants: how many occur (none: any).
    drop_caption: share of empty captions, which guidance needs (a tenth, as published). min_side: smaller pictures are dropped.
    on_error: skip and count what cannot be used, or raise. threads: that decode."""

    size: int = Field(default=256, ge=8, le=4096)
    buckets: BucketConfig | None = None
    resize: Resize = "crop"
    random_crop: bool = False
    flip: float = Field(default=0.0, ge=0, le=1)
    variants: int | None = Field(default=None, ge=1)
    drop_caption: float = Field(default=0.1, ge=0, le=1)
    background: tuple[int, int, int] = (255, 255, 255)
    min_side: int = Field(default=16, ge=1)
    on_error: Literal["skip", "raise"] = "skip"
    threads: int = Field(default=4, ge=1, le=64)


@dataclass(frozen=True, slots=True)
class PictureItem:
    """One picture: its name, caption, class (-1: none), size as shown, where the source finds it, and a hash of its bytes."""

    name: str
    caption: str
    label: int
    width: int
    height: int
    place: Any = None
    digest: str = ""


def split_by(share: float, names: Sequence[str]) -> tuple[list[int], list[int]]:
    """(the places of about `share` of the names, of the others), each a function of the name alone, but for at least one place
    on either side. DataError for fewer than two different names."""
    ranks = [fold(0, "held out", name) for name in names]
    if len(set(ranks)) < 2:
        raise DataError("There are fewer than two different pictures, of which none can be held out; give validation.data.")
    limit = min(max(share * 2**63, min(ranks) + 1), max(ranks))
    return [i for i, rank in enumerate(ranks) if rank < limit], [i for i, rank in enumerate(ranks) if rank >= limit]


class PictureSource:
    """A data source (see distill.data.Source) over items; `read` gives an item's bytes, or raises Unusable."""

    def __init__(
        self,
        items: Sequence[PictureItem],
        read: Callable[[PictureItem], bytes],
        config: PictureConfig,
        seed: int,
        report: Report,
    ):
        report.kept = len(items)
        report.require_some()
        self.read, self.config, self.seed, self.report, self.group = read, config, seed, report, 1
        self._arrange(items)

    def _arrange(self, items: Sequence[PictureItem]) -> None:
        """Sort the items into buckets, and make an order of them."""
        config = self.config
        self.items = items
        self.labels = torch.tensor([item.label for item in items])
        size = config.size
        buckets = config.buckets
        sizes = [(size, size)] if buckets is None else bucket_sizes(size, buckets.step, buckets.max_ratio)
        if buckets is not None and not sizes:
            raise DataError(f"size {size} is smaller than a bucket's step; use a smaller step than {buckets.step}.")
        members: list[list[int]] = [[] for _ in sizes]
        for index, item in enumerate(items):
            members[nearest_bucket(item.width, item.height, sizes)].append(index)
        self.sizes = [s for s, m in zip(sizes, members, strict=True) if m]
        self.members = [m for m in members if m]
        self.bucket_of = {index: b for b, m in enumerate(self.members) for index in m}
        self.order = Order(self.members, self.seed, self.group)
        self._bad: dict[int, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.items)

    def grouped(self, batch_size: int) -> PictureSource:
        """Tell buckets how many counters in a row are one batch; returns the source."""
        self.group, self.order = batch_size, Order(self.members, self.seed, batch_size)
        return self

    def split(self, share: float) -> tuple[PictureSource, PictureSource]:
        """(the rest, a share of the pictures) as sources of their own. Which picture is where depends on its bytes alone, so
        two files of one picture are on one side, and others that come and go change nothing."""
        taken, left = split_by(share, [item.digest or item.name for item in self.items])
        return self._part(left), self._part(taken)

    def _part(self, indices: Sequence[int]) -> PictureSource:
        part = copy.copy(self)
        part._arrange([self.items[index] for index in indices])
        return part

    # ---- one picture ----

    def choose(self, counters: Sequence[int]) -> list[tuple[int, int]]:
        """(picture, variant number) of each sample."""
        limit = self.config.variants or 1 << 31
        return [(self.order.locate(c)[1], fold(self.seed, "variant", c) % limit) for c in counters]

    def load(self, index: int) -> tuple[int, Image.Image]:
        """The decoded picture; in place of one that turns out to be unusable, the next of its bucket. (its index, RGB)."""
        for actual in self._from(index):
            if actual in self._bad:
                continue
            try:
                return actual, decode(self.read(self.items[actual]), self.config.background, self.config.min_side)
            except Unusable as error:
                with self._lock:  # several threads may find the same one
                    if actual not in self._bad:
                        self._bad[actual] = str(error)
                        self._say(actual, str(error))
        raise DataError(f"{self.report.where}: no picture of a bucket can be read any more.")

    def _from(self, index: int) -> Iterator[int]:
        """The picture, then the others of its bucket in a circle."""
        yield index
        mine = self.members[self.bucket_of[index]]
        at = mine.index(index)
        yield from mine[at + 1 :] + mine[:at]

    def _say(self, index: int, reason: str) -> None:
        name = self.items[index].name
        self.report.kept -= 1
        self.report.drop(name, reason)
        warnings.warn(f"{self.report.where}: {shown(name)} {reason}; another picture takes its place.", stacklevel=2)

    def variant(self, index: int, k: int) -> tuple[int, Tensor]:
        """Variant k of a picture as (its index, (3, height, width) in [-1, 1]). Variant 0 is the plain one. It depends on which
        picture it is, not on the seed or on what else is loaded."""
        config = self.config
        index, image = self.load(index)
        item, target = self.items[index], self.sizes[self.bucket_of[index]]
        rng = random.Random(fold(0, "variant", item.name, k)) if k else None
        view = choose_view(image.size, target, config.resize, rng, config.random_crop, config.flip)
        return index, render(image, view, target, config.resize, config.background)

    def caption(self, index: int, counter: int) -> str:
        """What sample `counter` calls a picture; empty with probability `drop_caption`."""
        dropped = random.Random(fold(self.seed, "caption", counter)).random() < self.config.drop_caption
        return "" if dropped else self.items[index].caption

    def digest(self) -> str:
        """A hash of all pictures, captions and classes, as they were when the source was opened."""
        key = hashlib.sha256()
        for item in self.items:
            key.update(repr((item.name, item.caption, item.label, item.digest)).encode())
        return key.hexdigest()

    def name_of(self, index: int) -> str:
        """What a picture is called where it came from."""
        return self.items[index].name

    def fingerprint(self, index: int) -> str:
        """A hash of all that the pictures of `variant` depend on."""
        config, item = self.config, self.items[index]
        views = (
            self.sizes[self.bucket_of[index]],
            config.resize,
            config.random_crop,
            config.flip,
            config.background,
            item.name,
        )
        try:
            data = self.read(item)
        except Unusable:
            data = b""
        return hashlib.sha256(hashlib.sha256(data).digest() + repr(views).encode()).hexdigest()

    # ---- batches ----

    def describe(self, chosen: Sequence[tuple[int, int]], counters: Sequence[int], **tensors: Tensor) -> Batch:
        """A batch of these (picture, variant), with images or latents as given."""
        indices = [index for index, _ in chosen]
        return Batch(
            index=torch.tensor(list(counters)),
            captions=[self.caption(index, counter) for index, counter in zip(indices, counters, strict=True)],
            labels=self.labels[indices] if bool((self.labels >= 0).any()) else None,
            images=tensors.get("images"),
            latents=tensors.get("latents"),
        )

    def batch(self, counters: Sequence[int] | Tensor) -> Batch:
        """Images, captions and classes of the samples with these counters, which must be of one bucket."""
        numbers = [int(counter) for counter in counters]
        chosen = self.choose(numbers)
        if self.config.threads > 1 and len(chosen) > 1:
            with ThreadPoolExecutor(min(self.config.threads, len(chosen))) as pool:
                made = list(pool.map(lambda pair: self.variant(*pair), chosen))
        else:
            made = [self.variant(index, k) for index, k in chosen]
        return self.describe([(index, 0) for index, _ in made], numbers, images=stack([image for _, image in made]))

    def check(self) -> Report:
        """Decode every picture, and say what there is."""
        for index, item in enumerate(self.items):
            try:
                decode(self.read(item), self.config.background, self.config.min_side)
            except Unusable as error:
                self.report.kept -= 1
                self.report.drop(item.name, str(error))
                self._bad[index] = str(error)
        for size, members in zip(self.sizes, self.members, strict=True):
            if len(self.sizes) > 1:
                self.report.notes[f"in the bucket {size[1]}x{size[0]}"] = len(members)
        self.report.require_some()
        return self.report


def stack(tensors: Sequence[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise DataError("These samples are of several buckets; ask for counters of one batch, from k B to (k + 1) B - 1.")
    return torch.stack(list(tensors))
