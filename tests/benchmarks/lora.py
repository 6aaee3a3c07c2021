"""`python -m tests.benchmarks.lora`: lowering the rank of a LoRA, by its factors against the decomposition of the whole matrix.

Both in one process, in turns, so that a slow moment of the machine hits both; the LoRA's singular values fall by a factor of
1000 over its rank. The error is relative to the whole change; truncation (keeping the first rows and columns of the factors)
is what some tools do.

Prints a table; writes lora.json. `--smoke` runs the smallest size once, to see that everything works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from customization.algebra import Keep, core_svd, resize, sketch_svd
from gen.adapters import Adapter, Delta
from gen.cli.show import table

SIZES = ((320, 64, 16), (640, 64, 16), (1280, 64, 16), (1280, 128, 32))


def made(side: int, rank: int) -> tuple[Tensor, Tensor]:
    """Float32 factors (side, rank), (rank, side), mixed so that no row of them is a singular vector."""
    random = torch.Generator().manual_seed(side + rank)
    up, down = (torch.linalg.qr(torch.randn(side, rank, generator=random)).Q for _ in "ab")
    values = torch.logspace(0, -3, rank)
    mix = torch.randn(rank, rank, generator=random)
    return (up * values) @ mix, torch.linalg.solve(mix, down.T)


def whole(up: Tensor, down: Tensor, k: int) -> Tensor:
    p, s, wt = torch.linalg.svd(up @ down, full_matrices=False)
    return (p[:, :k] * s[:k]) @ wt[:k]


def factors(up: Tensor, down: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `resize` computes it: in float64, the result as factors."""
    p, s, wt = core_svd(up.double(), down.double())
    return (p[:, :k] * s[:k]).float(), wt[:k].float()


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(side: int, rank: int, k: int, repeats: int) -> dict[str, float]:
    up, down = made(side, rank)
    change = up.double() @ down.double()
    adapter = Adapter("a", {"denoiser.x": Delta({"up": up, "down": down})})
    calls = {
        "whole": lambda: whole(up, down, k),
        "factors": lambda: factors(up, down, k),
        "resize": lambda: resize(adapter, Keep(rank=k)),
        "sketch": lambda: sketch_svd(up @ down, k),
    }
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(seconds(call))
    own = resize(adapter, Keep(rank=k))[0].layers["denoiser.x"].delta(change)
    size = float(change.norm())
    row = {f"{name} s": statistics.median(values) for name, values in times.items()}
    ratios = [a / b for a, b in zip(times["whole"], times["factors"], strict=True)]
    return row | {
        "speed-up": statistics.median(ratios),
        "optimum": float(torch.linalg.svdvals(change)[k:].norm()) / size,
        "error": float((own - change).norm()) / size,
        "truncation": float((up[:, :k].double() @ down[:k].double() - change).norm()) / size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.lora", description=__doc__.split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="the smallest size, once")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    sizes, repeats = (SIZES[:1], 1) if given.smoke else (SIZES, given.repeats)
    rows = [{"matrix": side, "rank": f"{rank} -> {k}", **measure(side, rank, k, repeats)} for side, rank, k in sizes]
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    print(table(list(rows[0]), cells))
    (given.out / "lora.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
