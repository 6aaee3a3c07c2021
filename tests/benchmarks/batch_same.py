"""One batch made in every way: by one process, by shares, by torchrun, on Ray, and killed again and again. The same files?

    python -m tests.benchmarks.batch_same                        2,000 pictures by the shipped student, in one step
    python -m tests.benchmarks.batch_same --rows 200 --kills 3   fewer
    python -m tests.benchmarks.batch_same --model default --rows 10 --kills 2    by the default model
    python -m tests.benchmarks.batch_same --without ray          where Ray is not installed

Prints a line for each way. Exit code 1 where a way made other bytes than one process did.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gen.batch.ledger import STATE

ROOT = Path(__file__).parents[2]
PROMPTS = ROOT / "docs" / "prompts.txt"


@dataclass(frozen=True)
class SameBatch:
    """rows: a file of them. options: of `fewstep batch`, -o left out. kills: of a process, one after the other."""

    rows: Path
    options: Sequence[str]
    kills: int = 10

    def command(self, out: Path, *more: str, launcher: Sequence[str] = ()) -> list[str]:
        return [sys.executable, *launcher, "-m", "gen", "batch", str(self.rows), "-o", str(out), *self.options, *more]

    def one_process(self, out: Path) -> None:
        finish(start(self.command(out)))

    def shares(self, out: Path) -> None:
        """Two processes at once, that know nothing of one another."""
        running = [start(self.command(out, "--shard", f"{i}/2")) for i in range(2)]
        for process in running:
            finish(process)

    def torchrun(self, out: Path) -> None:
        finish(start(self.command(out, launcher=["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"])))

    def ray(self, out: Path) -> None:
        finish(start(self.command(out, "--ray", "local", "--actors", "2")))

    def killed(self, out: Path) -> None:
        """SIGKILL at random moments, each after some pictures more; then to the end."""
        kill_at_random(lambda: start(self.command(out)), out / STATE / "ledger-0-of-1.jsonl", self.kills)
        finish(start(self.command(out)))


WAYS = ("one_process", "shares", "torchrun", "ray", "killed")


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """With one thread, as Ray and torchrun have it: the pictures are promised for one number of threads."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": "/tmp",
    }  # paths of its sockets are short
    return subprocess.Popen(command, env=environment, cwd=ROOT)


def finish(process: subprocess.Popen[bytes]) -> None:
    """RuntimeError where it did not end well; 1 is rows that failed."""
    if process.wait() not in (0, 1):
        raise RuntimeError(f"{process.args} ended with {process.returncode}.")


def kill_at_random(start: Callable[[], subprocess.Popen[bytes]], ledger: Path, times: int, within: float = 0.5) -> int:
    """Kill a process once its ledger has grown and up to so many seconds have gone by; how many were killed, not done."""
    draw, killed = random.Random(0), 0
    for _ in range(times):
        begun = ledger.stat().st_size if ledger.exists() else 0
        process = start()
        while process.poll() is None and (not ledger.exists() or ledger.stat().st_size == begun):
            time.sleep(0.002)
        time.sleep(draw.random() * within)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    return killed


def digests(folder: Path) -> dict[str, str]:
    """name -> sha256 of every file that a batch leaves beside its state and its lists of failed rows."""
    files = (path for path in folder.rglob("*") if path.is_file() and STATE not in path.parts)
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if not path.name.startswith("errors")
    }


def compare(batch: SameBatch, folder: Path, ways: Sequence[str]) -> bool:
    """Make it in every way, and say whether the files are those of one process."""
    wanted: dict[str, str] | None = None
    same = True
    for way in ways:
        begun = time.perf_counter()
        getattr(batch, way)(folder / way)
        made = digests(folder / way)
        wanted = made if wanted is None else wanted
        differ = [name for name in {*wanted, *made} if wanted.get(name) != made.get(name)]
        same = same and not differ
        said = "the same files" if not differ else f"{len(differ)} files differ, {sorted(differ)[0]} among them"
        print(f"{way:12} {len(made):6} files, {time.perf_counter() - begun:7.1f} s: {said}", flush=True)
    return same


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--model", default="fast")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--without", nargs="*", choices=WAYS[1:], default=[])
    given = parser.parse_args(arguments)
    prompts = PROMPTS.read_text().splitlines()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        lines = ({"prompt": f"{prompts[i % len(prompts)]}", "steps": given.steps + i % 2} for i in range(given.rows))
        rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
        options = ["--seed", "5", "--model", given.model, "--device", given.device, "--dtype", "float32", "--quiet"]
        ways = [way for way in WAYS if way not in given.without]
        return 0 if compare(SameBatch(rows, options, given.kills), Path(folder), ways) else 1


if __name__ == "__main__":
    sys.exit(main())
