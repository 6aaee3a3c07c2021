"""What a run asks of its folder and of the system: one owner at a time, and a last chance to save."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says what happened, where, and what to do."""


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """One process tree per run folder. A lock whose owner is gone is taken over."""
    lock = run / "lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        while not _create(lock):
            owner = _owner(lock)
            if owner == os.getpid():
                break
            if owner is not None and _alive(owner):
                raise TrainingError(f"{run} is in use by process {owner}; stop it, or give another output.")
            lock.unlink(missing_ok=True)
    except OSError as error:
        raise TrainingError(f"{run} cannot be written ({error.strerror}); give another output.") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def _create(lock: Path) -> bool:
    """Linked into place with its content, so that of two processes one wins and nobody reads a lock half written."""
    mine = lock.with_name(f".lock.{os.getpid()}.tmp")
    mine.write_text(f"{os.getpid()}\n")
    try:
        os.link(mine, lock)
        return True
    except FileExistsError:
        return False
    finally:
        mine.unlink(missing_ok=True)


def _owner(lock: Path) -> int | None:
    try:
        text = lock.read_text().strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdigit() else None


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return process < 1 << 31
    return True


@contextmanager
def finish_on_signal() -> Iterator[Callable[[], int]]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the step; a second one acts at once."""
    received = 0

    def request(number, frame):
        nonlocal received
        received = number
        signal.signal(number, previous[number])

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread: signals stay with whoever owns it
        previous = {}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
