"""What a run folder says of size, operations, samples and a number of merit: its log, and the config in its checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from distill.checkpointing.folder import folders
from distill.scaling.budget import TRAINING
from gen.io.errors import read_text
from gen.io.weights import read_json
from samplers.lookup import nearest

LARGEST_LOG = 1 << 28  # bytes
POINTS = 32  # of a run, at most
RISING = ("precision", "recall", "top1", "top5", "prompt_alignment")  # numbers that are 1 at best; all others fall
NO_NUMBERS = ("time", "step", "samples_per_second")  # of a log that say nothing of how good a network is


@dataclass(frozen=True)
class ScalingRun:
    """size: parameters of the network. operations: of one sample in training. batch: samples of a step. samples, values: the
    points of its curve. rate: samples per second, the median; None where the log has none."""

    name: str
    objective: str
    size: int
    operations: int
    batch: int
    samples: tuple[int, ...]
    values: tuple[float, ...]
    rate: float | None


def rises(metric: str) -> bool:
    return metric.rpartition("/")[2] in RISING


def read_runs(paths: Sequence[Path], metric: str) -> list[ScalingRun]:
    """The runs in these folders. ValueError, as a sentence, for what cannot be read or cannot be compared."""
    unique = list({path.resolve(): path for path in paths}.values())
    logs = {path: list(_rows(path / "log.jsonl")) for path in unique}
    known = sorted({name for rows in logs.values() for row in rows for name in row} - set(NO_NUMBERS))
    if metric not in known:
        near = nearest(metric, known)
        hint = f"did you mean {near!r}? " if near else ""
        raise ValueError(f"No run logs {metric!r}: {hint}They log {', '.join(known) or 'nothing'}.")
    runs = [_read(path, rows, metric) for path, rows in logs.items()]
    objectives = sorted({run.objective for run in runs})
    if len(objectives) > 1 and metric.rpartition("/")[2].endswith("loss"):
        raise ValueError(
            f"{metric} is another number in each of {', '.join(objectives)}; give runs of one objective, or as --metric a "
            "number of what they draw (evaluation/4/frechet_distance)."
        )
    if len(runs) < 3:
        raise ValueError(f"{len(runs)} {'run is' if len(runs) == 1 else 'runs are'} too few for a law; give three or more.")
    if len({run.size for run in runs}) == 1:
        raise ValueError(
            f"All {len(runs)} runs have one size, {runs[0].size:,} parameters, which says nothing of other sizes; train one or "
            "more of another dim or depth as well."
        )
    return runs


def cost_of(network: Mapping[str, Any]) -> tuple[int, int]:
    """(parameters, operations of one evaluation) of a network from its config. ValueError for one whose cost is in no table."""
    from gen.nn.backbones.cost import COSTS, cost
    from gen.nn.backbones.joint_cost import JOINT_COSTS
    from gen.nn.registry import COMPONENTS, from_registry

    config = from_registry(COMPONENTS, "network type", network)[1]
    if type(config).__name__ not in (tables := {**COSTS, **JOINT_COSTS}):
        known = [name for name, row in COMPONENTS.items() if row[1] in tables]
        raise ValueError(f"operations of a {network['type']} are in no table; known are {', '.join(known)}")
    counted = cost(config)
    return counted.parameters, counted.flops


def _read(path: Path, rows: list[dict[str, Any]], metric: str) -> ScalingRun:
    config = _config(path)
    batch, warmup = config.get("batch_size"), (config.get("schedule") or {}).get("warmup", 0)
    if not isinstance(batch, int) or batch < 1 or not isinstance(warmup, int):
        raise ValueError(f"{path}: the config in its checkpoint has no batch_size; it is of no training run.")
    points = {}
    for row in rows:
        step, value = row.get("step"), row.get(metric)
        if _number(step) and _number(value) and step >= 1 and 0 < value < math.inf:
            points[int(step)] = float(value)
    if not points:
        raise ValueError(f"{path}: no row of its log has {metric!r} above 0, which a law of powers needs.")
    points = {step: value for step, value in points.items() if step > warmup} or points  # a warm-up is of no law
    steps = _spread(sorted(points))
    try:
        size, operations = cost_of(_network(path, config))
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removesuffix('.')}.") from None
    rates = [row["samples_per_second"] for row in rows if _number(row.get("samples_per_second"))]
    rate = float(np.median(rates)) if rates and np.median(rates) > 0 else None
    objective = str((config.get("objective") or {}).get("type"))
    samples, values = tuple(step * batch for step in steps), tuple(points[step] for step in steps)
    return ScalingRun(path.name or str(path), objective, size, TRAINING * operations, batch, samples, values, rate)


def _number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _spread(steps: list[int]) -> list[int]:
    """At most POINTS of them, in steps of an equal factor, the last among them: the early ones are many and say little."""
    if len(steps) <= POINTS:
        return steps
    wanted = np.geomspace(steps[0], steps[-1], POINTS)
    return sorted({min(steps, key=lambda step: abs(math.log(step / one))) for one in wanted})


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    """The rows of a log; a last one that is half written is left out."""
    if not log.parent.is_dir():
        raise ValueError(f"{log.parent} is no folder; give the `output` of training runs.")
    lines = read_text(log, LARGEST_LOG).splitlines()
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                return
            row = None
        if not isinstance(row, dict):
            raise ValueError(f"{log}: line {number} is no row of a log.")
        yield row


def _config(path: Path) -> dict[str, Any]:
    """The config of a run, which its newest checkpoint holds."""
    for folder in folders(path):
        if (folder / "state.json").is_file():
            config = read_json(folder / "state.json").get("config")
            if isinstance(config, dict):
                return config
    raise ValueError(f"{path} has no checkpoint (step-*/state.json), which holds the config; let it run up to its first.")


def _network(path: Path, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the trained network: the run's own, or, where its objective makes it, that of what it exported."""
    network = config.get("network")
    if isinstance(network, dict) and network:
        return network
    for export in (path / "export", *sorted(path.glob("exports/step-*"), reverse=True)):
        if (export / "denoiser" / "config.json").is_file():
            return read_json(export / "denoiser" / "config.json")
    raise ValueError("its objective makes its network, and no export says of what size; let it end, or set export_every")
