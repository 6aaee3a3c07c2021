"""Does the memory of a call grow with the number of its pictures? Peak resident memory of `fewstep image`, each in a process.

    python -m tests.benchmarks.memory [--counts 10 100 1000] [--size 64] [--steps 2]

The numbers of docs/recipes.md. Pictures go to a temporary folder, which is removed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile


def peak(count: int, size: int, steps: int) -> int:
    """Bytes that the command held at most while it made this many pictures."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["-n", str(count), "--steps", str(steps), "--width", str(size), "--height", str(size), "--seed", "0"]
        command = [sys.executable, "-m", "gen", "image", "a red heart", *options, "-o", folder, "-q"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        _, status, usage = os.wait4(child.pid, 0)
        made = len(os.listdir(folder))
    if status or made != count:
        raise SystemExit(f"{made} of {count} pictures were made; the command ended with status {status}.")
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2)
    given = parser.parse_args()
    print("| pictures | peak MB |\n|---|---|")
    for count in given.counts:
        print(f"| {count} | {peak(count, given.size, given.steps) / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
