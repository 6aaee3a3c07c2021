"""What a run asks of its folder and of the system: one owner at a time, and a last chance to save."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says what happened, where, and what to do."""


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """One owner per run folder: of all threads, processes and containers that see it, one holds the system's lock on the file
    `lock`. The system lets go of it when its process ends, however that happens; what the file says is for people."""
    lock = run / "lock"
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = _acquire(lock)
    except OSError as error:
        raise TrainingError(f"{run} cannot be written ({error.strerror}); give another output.") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held, so that nobody takes a file that is about to go
        os.close(descriptor)


def _acquire(lock: Path) -> int:
    """The descriptor of the locked file; TrainingError where another holds it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        kept = False
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = os.read(descriptor, 200).decode("utf-8", "replace").strip()
                who = f" by {owner}" if owner.startswith("process ") and owner.isprintable() else ""
                raise TrainingError(f"{lock.parent} is in use{who}; stop it, or give another output.") from None
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                    raise
                tqdm.write(
                    f"{lock.parent} is on a file system that cannot lock files: see to it that one run uses it at a time."
                )
            if not _is(lock, descriptor):  # its owner has deleted it between our opening and locking it
                continue
            try:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {platform.node()}\n".encode())
            except OSError:  # a full disk: nothing is left that would be in the way
                lock.unlink(missing_ok=True)
                raise
            kept = True
            return descriptor
        finally:
            if not kept:
                os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    """Does a path still name an open file?"""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


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
