"""One setting of one method on one task: pictures, scores and what they cost, each picture made once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gen.generator import Generator
from gen.io.weights import read_weights, write_json, write_weights
from samplers.noise import fold
from tests.benchmarks.guidance.tasks import Subject, Task, World

BATCH = 8
PASSES = {"freedom": 2}  # of each step, where a setting says nothing


@dataclass(frozen=True)
class Setting:
    """A method by name with its strength and options, as a `Generator` takes them. Also "unguided", "best of 3" and
    "posterior", which take neither."""

    method: str
    strength: float = 0.0
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def passes(self) -> int:
        return dict(self.options).get("recurrence", PASSES.get(self.method, 1))

    def but(self, strength: float | None = None, **options: Any) -> Setting:
        changed = {**dict(self.options), **options}
        return Setting(self.method, self.strength if strength is None else strength, tuple(sorted(changed.items())))

    def __str__(self) -> str:
        parts = [f"{self.strength:.3g}"] if self.method not in ("unguided", "best of 3", "posterior", "tfg") else []
        parts += [f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in self.options]
        return ", ".join(parts)


@dataclass
class Cell:
    """Results of a setting on the first `n` requests of a split. images (n, 3, H, W) in [0, 1] as saved in 8 bits; values: each
    measure's n numbers; cost: evaluations, backward passes through the network, and energy gradients, per picture."""

    images: Tensor
    values: dict[str, list[float]]
    cost: dict[str, float]

    def mean(self, name: str = "score") -> float:
        return sum(self.values[name]) / len(self.values[name])


@dataclass
class Bench:
    """Where pictures come from and where they are kept."""

    generator: Generator
    world: World
    out: Path
    nfe: int
    fast: bool = True
    made: int = field(default=0)

    def measure(self, task: Task, setting: Setting, split: str, count: int) -> Cell:
        """Of the first `count` requests; those that were made before are read."""
        what = json.dumps([task.name, split, self.nfe, setting.method, setting.strength, setting.options])
        base = self.out / "cells" / task.name / hashlib.sha256(what.encode()).hexdigest()[:16]
        images, cost = torch.empty(0, 3, 128, 128, dtype=torch.uint8), {"evaluations": 0.0, "backward": 0.0, "energy": 0.0}
        if base.with_suffix(".json").is_file():
            images = read_weights(base.with_suffix(".safetensors"))["images"]
            cost = json.loads(base.with_suffix(".json").read_text())["cost"]
        while len(images) < count:
            rows = range(len(images), min(count, len(images) + BATCH))
            pool, seeds = task.subjects[split], [fold(0, split, i) % 2**31 for i in rows]
            new, spent = self.make(task, setting, [pool[i % len(pool)] for i in rows], seeds)
            images = torch.cat([images, new])
            cost = {n: (v * (len(images) - len(new)) + spent[n] * len(new)) / len(images) for n, v in cost.items()}
            self.made += len(new)
            base.parent.mkdir(parents=True, exist_ok=True)
            write_weights(base.with_suffix(".safetensors"), {"images": images})
            write_json(base.with_suffix(".json"), {"what": what, "cost": cost})
        shown = images[:count].float() / 255
        chosen = [task.subjects[split][i % len(task.subjects[split])] for i in range(count)]
        with torch.no_grad():
            values = {name: found.tolist() for name, found in task.score(self.world, shown, chosen).items()}
        return Cell(shown, values, cost)

    def make(
        self, task: Task, setting: Setting, subjects: Sequence[Subject], seeds: Sequence[int]
    ) -> tuple[Tensor, dict[str, float]]:
        """(8-bit pictures (B, 3, H, W), cost per picture)."""
        call: dict[str, Any] = {
            "num_inference_steps": max(1, self.nfe // setting.passes),
            "batch_size": BATCH,
            "output_type": "pt",
            "progress": False,
        }
        prompts, count = [s.prompt for s in subjects], {"evaluations": 0.0, "backward": 0.0, "energy": 0.0}
        energy = task.energy(self.world, subjects)

        def counted(images: Tensor, condition: Any) -> Tensor:
            count["energy"] += 1
            return energy(images, condition)

        with counting(self.generator, count, len(subjects)), torch.autocast("cpu", torch.bfloat16, enabled=self.fast):
            if setting.method == "unguided":
                images = self._plain(prompts, seeds, call, count)
            elif setting.method == "best of 3":
                images = self._best(prompts, seeds, call, count, counted)
            elif setting.method == "posterior":
                images = self._posterior(task, subjects, seeds, call, count)
            else:
                output = self.generator(
                    prompts, seeds=list(seeds), guide=counted, guide_method=setting.method, guide_strength=setting.strength,
                    guide_options=dict(setting.options), **call,
                )  # fmt: skip
                images, count["evaluations"] = output.images, output.nfe
        return (images.float().clamp(0, 1) * 255).round().byte(), count

    def _plain(self, prompts: Sequence[str], seeds: Sequence[int], call: dict, count: dict[str, float]) -> Tensor:
        output = self.generator(list(prompts), seeds=list(seeds), **call)
        count["evaluations"] += output.nfe
        return output.images

    def _best(self, prompts: Sequence[str], seeds: Sequence[int], call: dict, count: dict[str, float], energy: Any) -> Tensor:
        tries = [self._plain(prompts, [fold(s, k) % 2**31 for s in seeds], call, count) for k in range(3)]
        with torch.no_grad():
            best = torch.stack([energy(images, None) for images in tries]).argmax(0)
        return torch.stack(tries)[best, torch.arange(len(prompts))]

    def _posterior(self, task: Task, subjects: Sequence[Subject], seeds: Sequence[int], call: dict, count: dict) -> Tensor:
        found = []
        for subject, seed in zip(subjects, seeds, strict=True):
            given: dict[str, Any] = {"simulate": True}
            if task.name == "inpaint":
                kept = task.operator(torch.ones_like(subject.target)) if task.operator else torch.ones_like(subject.target)
                given = {"mask": 1 - kept[:, 0]}
            output = self.generator.restore(subject.target, task.name, "", seeds=[seed], **given, **call)
            count["evaluations"] += output.nfe / len(subjects)
            found.append(output.images)
        return torch.cat(found)


@contextmanager
def counting(generator: Generator, count: dict[str, float], rows: int) -> Iterator[None]:
    """Backward passes through the network, per picture."""

    def passed(module: Any, inputs: Any, outputs: Any) -> None:
        if outputs.requires_grad:
            outputs.register_hook(lambda gradient: count.update(backward=count["backward"] + len(gradient) / rows))

    handle = generator.network.register_forward_hook(passed)
    try:
        yield
    finally:
        handle.remove()
