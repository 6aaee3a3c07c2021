"""`python -m tests.benchmarks.guidance_cost`: what a step costs when a gradient guides it.

Of the default model (or another), one step each: plain, guided by TFG through denoiser and decoder, the same with
`checkpoint`, and MPGD, whose gradient stops at x0. Time is the median of steps taken in turns. Memory is what a step holds at
its most beyond the weights: on CUDA the allocator's peak, elsewhere the bytes of the tensors that autograd saves, counted once
for each storage, weights left out.

Prints a table; writes guidance_cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.cli.show import table
from gen.generator import Generator
from gen.tasks.energies.simple import Brightness
from gen.tasks.energy_guidance.task import on_latents
from samplers.denoiser import Context
from samplers.guidance.cfg import ClassifierFree
from samplers.guidance.energy_methods import guide
from samplers.noise import normal
from samplers.registry import get_grid, get_solver
from tests.benchmarks.models import new_file

MIB = 1 << 20


class Saved:
    """Counts what autograd keeps for the backward pass inside: `peak` bytes at once, storages of `known` left out."""

    def __init__(self, known: Iterable[Tensor] = ()):
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.live: dict[int, list[int]] = {}  # storage -> [how many keep it, bytes]
        self.total = self.peak = 0
        self._hooks: AbstractContextManager[Any] | None = None

    def __enter__(self) -> Saved:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        assert self._hooks is not None
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key not in self.known:
            entry = self.live.setdefault(key, [0, storage.nbytes()])
            entry[0] += 1
            self.total += entry[1] if entry[0] == 1 else 0
            self.peak = max(self.peak, self.total)
        return _Kept(self, key, tensor)

    def let_go(self, key: int) -> None:
        if (entry := self.live.get(key)) is not None:
            entry[0] -= 1
            if not entry[0]:
                self.total -= entry[1]
                del self.live[key]


class _Kept:
    """A saved tensor, which tells when it is forgotten."""

    def __init__(self, owner: Saved, key: int, tensor: Tensor):
        self.owner, self.key, self.tensor = owner, key, tensor

    def __del__(self) -> None:
        self.owner.let_go(self.key)


def contestants(generator: Generator, prompt: str, size: int, steps: int) -> dict[str, Callable[[], Any]]:
    """kind of step -> one step from the middle of a run."""
    side = size // generator.factor
    x = normal([0], (generator.channels, side, side), "latents", device=generator.device)
    levels = get_grid("uniform", generator.denoiser.path, steps)
    s, t = levels[steps // 2], levels[steps // 2 + 1]
    condition = generator.encode_prompt([prompt])
    plain, solver = ClassifierFree(generator.denoiser, 5.0), get_solver("euler")
    energy = on_latents(generator, Brightness(0.5), [prompt])

    def step(field: Any) -> Callable[[], Any]:
        return lambda: solver.step(field, solver.init(x), s, t, condition, Context())

    def guided(method: str, **options: Any) -> Callable[[], Any]:
        return step(guide(method, plain, solver, energy, levels, 0.5, **options)[0])

    return {
        "plain": step(plain),
        "tfg": guided("tfg"),
        "tfg, checkpoint": guided("tfg", checkpoint=True),
        "mpgd (no gradient through the network)": guided("mpgd"),
    }


def measure(generator: Generator, prompt: str, size: int, steps: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each kind of step: median seconds in turns, peak bytes."""
    runs = contestants(generator, prompt, size, steps)
    parts = [part for part in (generator.network, generator.autoencoder) if part is not None]
    weights = [value for part in parts for value in part.state_dict().values()]
    times: dict[str, list[float]] = {name: [] for name in runs}
    memory: dict[str, int] = {}
    cuda = generator.device.type == "cuda"
    with torch.no_grad():
        for repeat in range(repeats + 1):  # the first round warms up, and is measured for memory
            for name, run in runs.items():
                if cuda:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                    base = torch.cuda.memory_allocated()
                start = time.perf_counter()
                if repeat:
                    run()
                else:
                    with Saved(weights) as saved:
                        run()
                    memory[name] = saved.peak
                if cuda:
                    torch.cuda.synchronize()
                    memory[name] = torch.cuda.max_memory_allocated() - base
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return [
        {
            "step": name,
            "time (ms)": round(medians[name] * 1e3, 1),
            "of plain": round(medians[name] / medians["plain"], 2),
            "memory (MiB)": round(memory[name] / MIB, 1),
        }
        for name in runs
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--prompt", default="a red heart")
    parser.add_argument("--size", type=int, help="pixels [default: the model's]")
    parser.add_argument("--device", help="[default: the best present]")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output", type=new_file, default=Path("guidance_cost.json"))
    given = parser.parse_args()
    generator = Generator.from_pretrained(given.model, given.device)
    rows = measure(generator, given.prompt, given.size or generator.config.sample_size, given.steps, given.repeats)
    print(table(tuple(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    where = {
        "model": generator.name,
        "device": str(generator.device),
        "dtype": str(generator.dtype),
        "torch": torch.__version__,
    }
    given.output.write_text(json.dumps({**where, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
