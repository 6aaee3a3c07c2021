"""What a batch is, and what of it is done, in its folder: nothing is made twice or forgotten, whenever a process dies.

`.batch/run.json` says what the batch is: a hash of its input and settings, and its seed. `.batch/ledger-i-of-n.jsonl` has a
line for every picture that is in place, written after it is on disk; `errors.jsonl` one for every row that failed. A line that
a crash left half-written is cut off. A picture that is in place without its line is made again, and replaced by the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from gen.batch.settings import Share
from gen.calls.command import OPTIONS
from gen.io.errors import read_text
from gen.pipeline.exif import FORMATS
from samplers.atomic import sync, written

try:
    import fcntl
except ImportError:  # Windows, where nothing keeps two processes apart
    fcntl = None  # type: ignore[assignment]

STATE = ".batch"
PLURAL = tuple(f"its {name}" for name in ("columns", "extra columns", "templates", "wildcards", "weights", "adapters"))
_LEFTOVER = re.compile(r"\..+\.\d+-[0-9a-f]{8}\.tmp")  # as `samplers.atomic.beside` names them


class NumberSet:
    """A set of whole numbers from 0, a bit each."""

    def __init__(self) -> None:
        self._bits, self.size = bytearray(), 0

    def __contains__(self, number: int) -> bool:
        place, bit = divmod(number, 8)
        return place < len(self._bits) and bool(self._bits[place] >> bit & 1)

    def __len__(self) -> int:
        return self.size

    @property
    def end(self) -> int:
        """A number above all of them."""
        return 8 * len(self._bits)

    def add(self, number: int) -> None:
        place, bit = divmod(number, 8)
        if place >= len(self._bits):
            self._bits.extend(bytes(max(place + 1 - len(self._bits), len(self._bits))))
        if not self._bits[place] >> bit & 1:
            self._bits[place] |= 1 << bit
            self.size += 1


def identity_hash(identity: Mapping[str, Any]) -> str:
    """sha256 of plain values."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process after the other."""
    with open(path, "ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_batch(output: Path, identity: Mapping[str, Any], seed: int | None, existing: str) -> tuple[str, int]:
    """Make the folder this batch's, or find that it is; returns its hash and its seed.

    identity: plain values that decide which pictures are made.
    seed: None: drawn, if the folder has none yet.
    existing: as of `BatchSettings`.
    Raises ValueError, with what differs, where the folder is another batch's or holds pictures already.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is not a folder; give the batch one of its own with -o.")
    state = output / STATE
    state.mkdir(parents=True, exist_ok=True)
    with _alone(state / "lock-run"):
        return _open_batch(output, state / "run.json", identity, seed, existing)


def _open_batch(output: Path, file: Path, identity: Mapping[str, Any], seed: int | None, existing: str) -> tuple[str, int]:
    state = file.parent
    wanted = {"identity": dict(identity), "hash": identity_hash({**identity, "asked seed": seed})}
    if not file.exists():
        _check_empty(output, existing)
        drawn = secrets.randbelow(1 << 32) if seed is None else seed
        with written(file) as temporary:
            temporary.write_text(json.dumps({**wanted, "seed": drawn, "asked seed": seed}, indent=1))
    try:
        kept = json.loads(read_text(file))
        kept_hash, kept_seed = kept["hash"], int(kept["seed"])
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is damaged; choose another folder with -o, or remove {state}.") from None
    if kept_hash == wanted["hash"]:
        return kept_hash, kept_seed
    if existing == "refuse":
        raise ValueError(
            f"{output} holds another batch: {_difference(kept, wanted, seed)}. Choose another folder with -o; or "
            "--skip-existing keeps the pictures that are there and makes those that are missing, and --overwrite replaces them."
        )
    for old in (*state.glob("ledger-*.jsonl"), *output.glob("errors*.jsonl")):
        old.unlink()
    file.unlink()
    return _open_batch(output, file, identity, seed, existing)


def _check_empty(output: Path, existing: str) -> None:
    """A batch begins in a folder without pictures of others."""
    other = next((path for path in output.iterdir() if path.suffix.lower() in (*FORMATS, ".tar", ".parquet")), None)
    if other is not None and existing == "refuse":
        raise ValueError(
            f"{output} holds {other.name}, which is of no batch; choose another folder with -o, or add --skip-existing or "
            "--overwrite."
        )


def _difference(kept: Mapping[str, Any], wanted: Mapping[str, Any], seed: int | None) -> str:
    """What two batches differ by, in words."""
    before = _plain_settings(kept.get("identity", {}), kept.get("asked seed"))
    now = _plain_settings(wanted["identity"], seed)
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if "its model" in names:
        names = [name for name in names if name not in ("its weights", "its dtype")]  # which go with it
    return "; ".join(_change(name, before.get(name), now.get(name)) for name in names) or "its settings are others"


def _plain_settings(identity: Mapping[str, Any], seed: int | None) -> dict[str, Any]:
    """What a batch is, by the names that people know: options by themselves, the rest as "its ..."."""
    values: dict[str, Any] = json.loads(json.dumps({**identity, "seed": seed}, default=str))
    options = {**values.pop("options", {}), **values.pop("model options", {})}
    known = {OPTIONS.get(name, f"--{name.replace('_', '-')}"): value for name, value in options.items()}
    return {**{f"its {name}": value for name, value in values.items()}, **known}


def _change(name: str, before: Any, now: Any) -> str:
    were, are = ("were", "are") if name in PLURAL else ("was", "is")
    if any(isinstance(one, dict | list) or len(repr(one)) > 60 for one in (before, now)):  # hashes, above all
        return f"{name} {are} {'others' if name in PLURAL else 'another'}"
    first, second = ("not given" if one is None else repr(one) for one in (before, now))
    return f"{name} {were} {first}, and {are} {second}"


def remove_leftovers(folder: Path) -> None:
    """Half-written files of processes that were killed; for a process that works in the folder alone."""
    for where, _, files in os.walk(folder):
        for name in files:
            if _LEFTOVER.fullmatch(name):
                Path(where, name).unlink(missing_ok=True)


class Ledger:
    """What is done of a batch, and where one process writes down what it did. done: pictures, and rows that failed, by number.

    Raises ValueError if another process works on the same share.
    """

    def __init__(self, output: Path, share: Share, retry_errors: bool = False):
        self.output, self.share = output, share
        self.done, self.packed = NumberSet(), NumberSet()
        self.pictures = self.failed = 0
        state = output / STATE
        self._lock = _locked(state / f"lock-{share}", share)
        own_errors = output / ("errors.jsonl" if share.count == 1 else f"errors-{share}.jsonl")
        self._ledger, self._errors = state / f"ledger-{share}.jsonl", own_errors
        for path in (self._ledger, self._errors):
            _cut_torn_line(path)
        for path in sorted(state.glob("ledger-*.jsonl")):
            for line in _lines(path):
                if "packed" in line:
                    self.packed.add(line["packed"])
                else:
                    self.pictures += line["index"] not in self.done
                    self.done.add(line["index"])
        for path in sorted(output.glob("errors*.jsonl")):
            if retry_errors and (path == own_errors or share.count == 1):
                path.unlink()
                continue
            for line in _lines(path):
                self.failed += 1
                self._settle(line)
        self._open: dict[Path, IO[bytes]] = {}
        self._adding = threading.Lock()

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Write down pictures that are on disk: index, and what else is to be kept of them."""
        lines = list(lines)
        with self._adding:
            self._append(self._ledger, lines)
            for line in lines:
                if "packed" in line:
                    self.packed.add(line["packed"])
                else:
                    self.done.add(line["index"])
                    self.pictures += 1

    def fail(self, index: int, line: int, reason: str, row: Mapping[str, Any], pictures: int = 1) -> None:
        """Write down a row that cannot be made."""
        entry = {"index": index, "pictures": pictures, "line": line, "error": reason, "row": dict(row)}
        with self._adding:
            self._append(self._errors, [entry])
            self.failed += 1
            self._settle(entry)

    def settle(self, index: int, pictures: int) -> None:
        """A row that another share writes down as failed."""
        with self._adding:
            self._settle({"index": index, "pictures": pictures})

    def _settle(self, entry: Mapping[str, Any]) -> None:
        for index in range(entry["index"], entry["index"] + entry.get("pictures", 1)):
            self.done.add(index)

    def _append(self, path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
        if path not in self._open:
            self._open[path] = open(path, "ab")  # noqa: SIM115, closed by `close`
            sync(path.parent)
        file = self._open[path]
        file.write(b"".join(json.dumps(line, default=str).encode() + b"\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())

    def close(self) -> None:
        for file in (*self._open.values(), self._lock):
            file.close()


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Those that are whole: a crash may have torn the last one."""
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                value = json.loads(line)
            except ValueError:
                continue
            if isinstance(value, dict) and isinstance(value.get("packed", value.get("index")), int):
                yield value


def _cut_torn_line(path: Path) -> None:
    """Take away what follows the last whole line."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            file.seek(max(end - 65_536, 0))
            tail = file.read(min(end, 65_536))
            place = tail.rfind(b"\n")
            end = end - len(tail) + place + 1 if place >= 0 else end - len(tail)
            if place >= 0:
                break
        file.truncate(end)


def _locked(path: Path, share: Share) -> IO[bytes]:
    """A file that this process alone holds, as long as it lives."""
    file = open(path, "ab")  # noqa: SIM115, closed with the ledger
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise ValueError(
                f"Another process works on share {share} of the batch in {path.parent.parent}; wait for it, or give each "
                "process its own --shard i/n."
            ) from None
    return file
