"""Pictures into their places: encoded and written by threads, so that the device waits for no disk, then into the ledger."""

from __future__ import annotations

import hashlib
import io
import json
import os
import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from gen.batch.ledger import STATE, Ledger
from gen.batch.rows import PictureJob
from gen.io.errors import RecipeError
from gen.pipeline.exif import encoded
from gen.pipeline.png import PLACE, RUNS, png_chunks, read_chunks
from gen.pipeline.recipe import BatchRecord, Recipe
from samplers.atomic import beside, sync

THREADS = 2
WAITING = 64  # pictures, before the device is held up
TOGETHER = 16  # pictures that one flush of a folder and one of the ledger are for
STAGED = "staged"


def encode_picture(
    image: Image.Image, recipe: Recipe, job: PictureJob, batch: str, suffix: str = ".png", quality: int | None = None
) -> bytes:
    """A file with its recipe, and with its place in a batch of this hash, as JSON.

    suffix: of a format that holds a recipe (`gen.pipeline.exif.FORMATS`). quality: of those that lose some.

    Where no bit depends on the pictures beside it, the recipe is that of the picture alone: which ones they were depends on
    where the batch was stopped.
    """
    if recipe.batch_invariant:
        recipe = recipe.model_copy(update={"batch": BatchRecord()})
    columns = {"batch": batch, "index": job.index, "line": job.line, "columns": dict(job.extra)}
    place = json.dumps(columns, default=str)
    if suffix != ".png":
        return encoded(image, suffix, recipe, quality, place)
    chunks = png_chunks(recipe)
    chunks.add_text(PLACE, place)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks, **RUNS)
    return buffer.getvalue()


def is_of_batch(path: Path, index: int, batch: str) -> bool:
    """Whether a file is the picture of this number of this batch."""
    try:
        place = json.loads(read_chunks(path).get(PLACE, "{}"))
    except ValueError:
        return False
    return isinstance(place, dict) and place.get("batch") == batch and place.get("index") == index


@dataclass(frozen=True)
class Painted:
    """A picture that is made. data: its file, or what gives it; RecipeError where it cannot be that."""

    job: PictureJob
    data: bytes | Callable[[], bytes]


def write_picture(path: Path, data: bytes) -> None:
    """The file in one piece under its name; whoever calls flushes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class PictureStore:
    """Where finished pictures go.

    folder: of single files, by their names.
    batch: the hash that the batch has.
    staged: pictures wait by number in the batch's own folder, to be packed into files of many.
    overwrite: files of others are replaced.
    threads: that encode and write; 0: it is done at once, by whoever calls.
    failed: told of a picture that its format cannot hold, and why.
    Errors of the threads are raised by the next `put`, or by `close`.
    """

    def __init__(
        self,
        output: Path,
        ledger: Ledger,
        batch: str,
        staged: bool = False,
        overwrite: bool = False,
        threads: int | None = None,
    ):
        threads = THREADS if threads is None else threads
        self.failed: Callable[[PictureJob, str], None] = _cannot_be
        self.output, self.ledger, self.batch, self.staged, self.overwrite = output, ledger, batch, staged, overwrite
        self.written = 0
        self._queue: queue.Queue[Painted | None] = queue.Queue(WAITING)
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._threads = [threading.Thread(target=self._work, name=f"writer-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def place(self, job: PictureJob) -> Path:
        """The file of a picture."""
        return staged_file(self.output, job.index) if self.staged else self.output / job.name

    def put(self, painted: Painted) -> None:
        """Hand a picture over; waits while too many are on their way."""
        if not self._threads:
            self._finish([painted])
            return
        while True:
            self._raise()
            try:
                return self._queue.put(painted, timeout=0.5)
            except queue.Full:
                continue

    def flush(self) -> None:
        """Wait until all that was put is in place and in the ledger."""
        if self._threads:
            self._queue.join()
        self._raise()

    def close(self) -> None:
        """Finish what was put, and end the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        ended = False
        while not ended:
            some, taken = [self._queue.get()], 1
            while len(some) < TOGETHER and some[-1] is not None:
                try:
                    some.append(self._queue.get_nowait())
                    taken += 1
                except queue.Empty:
                    break
            ended = some[-1] is None
            try:
                if self._error is None:
                    self._finish([one for one in some if one is not None])
            except BaseException as error:
                self._error = error
            finally:
                for _ in range(taken):
                    self._queue.task_done()

    def _finish(self, pictures: list[Painted]) -> None:
        lines: list[Mapping[str, Any]] = []
        folders: set[Path] = set()
        for painted in pictures:
            path = self.place(painted.job)
            try:
                data = painted.data if isinstance(painted.data, bytes) else painted.data()
            except RecipeError as error:
                self.failed(painted.job, str(error))
                continue
            if not self.overwrite and path.exists() and not is_of_batch(path, painted.job.index, self.batch):
                raise ValueError(
                    f"{path} exists, and is of no picture of this batch; move it, or add --skip-existing or --overwrite."
                )
            write_picture(path, data)
            folders.add(path.parent)
            digest = hashlib.sha256(data).hexdigest()
            lines.append({"index": painted.job.index, "file": painted.job.name, "sha256": digest})
        for folder in folders:
            sync(folder)
        if lines:
            self.ledger.add(lines)
            with self._lock:
                self.written += len(lines)


def _cannot_be(job: PictureJob, reason: str) -> None:
    raise ValueError(f"Line {job.line}: {reason}")


def staged_file(output: Path, index: int) -> Path:
    """Where a picture waits until its file of many is written."""
    return output / STATE / STAGED / f"{index // 1000:06d}" / f"{index:09d}.png"
