"""A batch from its rows to its last file, in one process or as one share of several."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from gen.batch.ledger import STATE, Ledger, open_batch, remove_leftovers
from gen.batch.packing import Packer
from gen.batch.paint import Painter, check_defaults, model_identity, open_generator
from gen.batch.readers import RowSource, open_source
from gen.batch.rows import BadRow, PictureJob, RowReader, student_serves
from gen.batch.settings import BatchSettings
from gen.batch.store import Painted, PictureStore
from gen.calls.wildcards import WildcardFiles
from gen.io.digests import file_digest

SHOWN = 5  # failed rows that are named on the way
ALIKE = 100  # jobs that fail one after the other for one reason, which is then the batch's and not theirs


@dataclass(frozen=True)
class BatchResult:
    """made: pictures of this process; there: all of the batch that are in place; failed: rows that could not be made."""

    made: int
    there: int
    failed: int


class PictureBar(Protocol):
    """What is told how far it is, as a bar of tqdm."""

    def update(self, pictures: int) -> Any: ...


def chosen_model(settings: BatchSettings, source: RowSource) -> str:
    """The model that is named; else the few-step student where it serves every row."""
    if settings.model is not None:
        return settings.model
    return "fast" if student_serves(settings, source) else "default"


def prepared(settings: BatchSettings) -> tuple[RowSource, str]:
    """(the source, the model's name). ValueError for what is wrong with the whole batch, before anything is opened or made: a
    source without rows, columns that mean nothing, options that no picture can have."""
    source = open_source(settings.source, settings.output / STATE)
    if next(iter(source.rows()), None) is None:
        raise ValueError(f"{source.name} holds no rows; write a prompt a line, or a table with the column prompt.")
    RowReader(settings, source, settings.seed or 0, settings.model or "default")
    return source, chosen_model(settings, source)


def identity_of(settings: BatchSettings, source: RowSource, model: str, opened: Mapping[str, Any]) -> dict[str, Any]:
    """What decides which pictures a batch has: nothing of shares, threads or, where pictures do not depend on it, batch sizes.

    opened: `model_identity`.
    """
    adapters = [[file_digest(use.file), use.weight] for use in settings.adapters]
    identity: dict[str, Any] = {
        "input": source.digest(),
        "options": dict(settings.defaults),
        "columns": dict(settings.columns),
        "extra columns": settings.extra,
        "templates": ("all" if settings.combinatorial else "one") if settings.templates else "none",
        "wildcards": None if settings.wildcards is None else WildcardFiles(settings.wildcards).digest(),
        "number": settings.number,
        "model": model,
        **opened,
        "model options": dict(settings.model_arguments),
        "adapters": adapters,
        "output": settings.kind,
        "name": settings.name,
        "quality": settings.quality,
        "per file": None if settings.kind == "files" else settings.per_file,
        "batch size": None if settings.batch_invariant else settings.batch_size,
    }
    return identity


def check_rows(settings: BatchSettings, on_bad: Callable[[BadRow], None]) -> tuple[int, int]:
    """(pictures, rows that cannot be made) of all rows, without a model and without making any."""
    source, model = prepared(settings)
    pictures = bad = 0
    for job in RowReader(settings, source, settings.seed or 0, model):
        if isinstance(job, BadRow):
            bad += 1
            on_bad(job)
        else:
            pictures += 1
    return pictures, bad


def expected_pictures(settings: BatchSettings, source: RowSource) -> int | None:
    """About how many pictures a batch has, for a bar."""
    rows = None if settings.combinatorial else source.count()
    return None if rows is None else rows * settings.number


@dataclass
class OpenBatch:
    """A batch with its folder open: what is wanted, and where it goes."""

    settings: BatchSettings
    source: RowSource
    reader: RowReader
    ledger: Ledger
    store: PictureStore
    packer: Packer | None
    say: Callable[[str], None]
    named: int = 0
    alike: tuple[str, int] = ("", 0)  # the reason of the last failure, and how many in a row had it

    def wanted(self, index: int) -> bool:
        """A picture of this share that is not there yet."""
        return self.settings.share.takes(index // self.settings.block) and index not in self.ledger.done

    def jobs(self) -> Iterator[PictureJob]:
        """Those to be made now, in order; rows that cannot be are written down on the way."""
        for job in self.reader.jobs(self.wanted):
            if isinstance(job, PictureJob):
                if self.settings.existing == "skip" and self.store.place(job).exists():
                    self.ledger.add([{"index": job.index, "file": job.name, "skipped": True}])
                else:
                    yield job
            elif self.wanted(job.index):
                self.fail(job.index, job.line, job.reason, job.row, job.pictures)
            else:
                self.ledger.settle(job.index, job.pictures)

    def fail(self, index: int, line: int, reason: str, row: Mapping[str, Any], pictures: int = 1) -> None:
        """Write a row down as failed; ValueError if the batch is strict."""
        sentence = f"{self.settings.source}, line {line}: {reason}"
        if self.settings.strict:
            raise ValueError(sentence if sentence.endswith(".") else f"{sentence}.")
        self.ledger.fail(index, line, reason, row, pictures)
        self.named += 1
        if self.named <= SHOWN:
            self.say(sentence + (" (more are in errors.jsonl)" if self.named == SHOWN else ""))

    def failed_job(self, job: PictureJob, reason: str) -> None:
        """Write down a job that could not be made. ValueError where a hundred in a row fail alike."""
        reason = self.reader.in_columns(reason)
        self.alike = (reason, self.alike[1] + 1 if self.alike[0] == reason else 1)
        self.fail(job.index, job.line, reason, {**job.call.arguments, **job.extra})
        if self.alike[1] == ALIKE:
            raise ValueError(
                f"{ALIKE} rows one after the other failed alike: {reason} The batch ends here; when that is mended, "
                "--retry-errors tries them again."
            )

    def put(self, painted: Painted) -> None:
        """Hand a finished picture to the store."""
        self.alike = ("", 0)
        self.store.put(painted)

    def result(self) -> BatchResult:
        return BatchResult(self.store.written, self.ledger.pictures, self.ledger.failed)


@contextlib.contextmanager
def opened_batch(
    settings: BatchSettings, source: RowSource, model: str, opened: Mapping[str, Any], say: Callable[[str], None]
) -> Iterator[OpenBatch]:
    """The batch, its folder checked; at the end all that was made is in place, also where it ends by an error or Ctrl-C.

    opened: `model_identity` of the model that will make it.
    """
    identity = identity_of(settings, source, model, opened)
    digest, seed = open_batch(settings.output, identity, settings.seed, settings.existing)
    ledger = Ledger(settings.output, settings.share, settings.retry_errors)
    try:
        if settings.share.count == 1:
            remove_leftovers(settings.output)
        store = PictureStore(settings.output, ledger, digest, settings.kind != "files", settings.existing == "overwrite")
        packer = None if settings.kind == "files" else Packer(settings, ledger)
        reader = RowReader(settings, source, seed, model)
        batch = OpenBatch(settings, source, reader, ledger, store, packer, say)
        store.failed = batch.failed_job
        try:
            yield batch
        finally:
            store.close()
    finally:
        ledger.close()


def windows(jobs: Iterable[PictureJob], size: int) -> Iterator[list[PictureJob]]:
    """So many jobs at a time."""
    jobs = iter(jobs)
    while some := list(islice(jobs, size)):
        yield some


def run_batch(
    settings: BatchSettings,
    *,
    progress: Callable[[int | None, int], contextlib.AbstractContextManager[PictureBar]],
    say: Callable[[str], None],
    generator: Any = None,
) -> BatchResult:
    """Make what is missing of a batch, or of this process's share of it.

    progress: (pictures of all, those that are there) -> a bar.
    say: told of rows that fail, and of warnings.
    generator: a `Generator` that is open already.
    Raises ValueError in a sentence for what cannot begin, and for the first row that fails if `strict`.
    """
    source, model = prepared(settings)
    generator = open_generator(settings, model) if generator is None else generator
    check_defaults(settings, generator)
    with opened_batch(settings, source, model, model_identity(generator), say) as batch:
        painter = Painter(settings, generator, batch.store.batch, say)
        total = expected_pictures(settings, source)
        with progress(total, len(batch.ledger.done)) as bar:

            def done(painted: Painted) -> None:
                batch.put(painted)
                bar.update(1)

            for some in windows(batch.jobs(), painter.window):
                painter.paint(some, done, batch.failed_job)
                if batch.packer is not None:
                    batch.store.flush()
                    batch.packer.pack_until(some[-1].index)
        batch.store.flush()
        if batch.packer is not None:
            batch.packer.pack_rest()
        return batch.result()
