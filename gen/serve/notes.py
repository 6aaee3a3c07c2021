"""What is said of a call while it runs, kept for the one who asked: warnings of a run go to its job and to no log."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from gen.serve.jobs import ServeJob

MOST = 20  # notes of a job
_jobs = threading.local()


@contextmanager
def noted_by(job: ServeJob) -> Iterator[None]:
    """Inside, what is warned of in this thread is a note of a job."""
    _jobs.one = job
    try:
        yield
    finally:
        _jobs.one = None


@contextmanager
def notes_kept() -> Iterator[None]:
    """Inside, in all threads, warnings of runs are notes of their jobs, every time; others are shown as ever."""
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def note(message: Warning | str, category: type[Warning], *where: object, **more: object) -> None:
            job: ServeJob | None = getattr(_jobs, "one", None)
            if job is None:
                shown(message, category, *where, **more)  # type: ignore[arg-type]
            elif issubclass(category, UserWarning) and str(message) not in job.notes and len(job.notes) < MOST:
                job.notes.append(str(message))

        warnings.showwarning = note  # type: ignore[assignment]
        warnings.simplefilter("always", UserWarning)
        yield
