"""Search results on disk: JSON that is written in one piece and checked when read, for files come from anywhere."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path as FilePath
from typing import Any

from samplers.atomic import written
from samplers.grids import Grid, from_table
from samplers.path import NoiseLevel, Path
from samplers.search.evolution import Candidate, Search, Space

_LARGEST_FILE = 16 << 20
_MOST_LEVELS = 10_000
_RATIOS = (1e-9, 1e9)  # sigma / alpha that a table may hold


@dataclass(frozen=True)
class GridTable:
    """A grid as numbers: sigma / alpha of its levels, falling, without clean data; whether pure noise comes before them."""

    sigmas: tuple[float, ...]
    pure_noise: bool = False
    note: Mapping[str, str] = field(default_factory=dict)

    def levels(self, path: Path) -> Grid:
        """The grid on a path. Raises ValueError if it starts at pure noise and the path has none."""
        return from_table(path, ([math.inf] if self.pure_noise else []) + list(self.sigmas), "sigma")


def save_table(file: str | os.PathLike, levels: Sequence[NoiseLevel], note: Mapping[str, str] | None = None) -> None:
    """Write a grid that ends in clean data. `note`: what it is for (model, solver, loss), as strings."""
    if levels[-1].sigma != 0:
        raise ValueError("A table holds a whole grid: its last level must be clean data (sigma = 0).")
    pure_noise = levels[0].alpha == 0
    sigmas = [level.sigma / level.alpha for level in levels[1 if pure_noise else 0 : -1]]
    content = {"format": "fewstep-grid", "version": 1, "sigmas": sigmas, "pure_noise": pure_noise, "note": dict(note or {})}
    _grid_table(content, FilePath(file))
    _write(file, content)


def read_table(file: str | os.PathLike) -> GridTable:
    """Read what `save_table` wrote. Raises ValueError, naming the file and the fault, for anything else."""
    return _grid_table(_read(file), FilePath(file))


def save_search(file: str | os.PathLike, search: Search) -> None:
    """Write an evolutionary search between two generations."""
    scores = [
        [list(c.steps), [list(s) for s in c.skips], None if math.isinf(score) else score]  # JSON has no infinity
        for c, score in search.scores.items()
    ]
    space = asdict(search.space) | {"always": list(search.space.always)}
    kind = {"format": "fewstep-search", "version": 1}
    _write(file, kind | {"space": space, "seed": search.seed, "generation": search.generation, "scores": scores})


def read_search(file: str | os.PathLike) -> Search:
    """Read what `save_search` wrote. Raises ValueError, naming the file and the fault, for anything else."""
    content, name = _read(file), FilePath(file)
    _expect(content, name, "fewstep-search", {"space", "seed", "generation", "scores"})
    space, scores = content["space"], content["scores"]
    numbers = {"size", "steps", "layers", "max_skips"}
    if not isinstance(space, dict) or space.keys() != numbers | {"always"} or not all(_whole(space[k]) for k in numbers):
        raise ValueError(f"{name}: the search space must hold whole numbers {', '.join(sorted(numbers))} and a list always.")
    if not _wholes(space["always"]) or not _whole(content["seed"]) or not _whole(content["generation"]):
        raise ValueError(f"{name}: always, seed and generation must be whole numbers.")
    found = Space(**{k: space[k] for k in numbers}, always=tuple(space["always"]))
    read: dict[Candidate, float] = {}
    for entry in scores if isinstance(scores, list) else [None]:
        if not (isinstance(entry, list) and len(entry) == 3 and _wholes(entry[0]) and isinstance(entry[1], list)):
            raise ValueError(f"{name}: every score must be [steps, skips, number].")
        steps, skips, score = entry
        if not all(map(_wholes, skips)) or not (score is None or (_number(score) and math.isfinite(score))):
            raise ValueError(f"{name}: every score must be [steps, skips, number].")
        candidate = Candidate(tuple(steps), tuple(map(tuple, skips)))
        if not found.holds(candidate) or candidate in read:
            raise ValueError(f"{name}: the candidate {steps} does not belong to this search space, or stands there twice.")
        read[candidate] = math.inf if score is None else float(score)
    return Search(found, content["seed"], content["generation"], read)


def _grid_table(content: Any, name: FilePath) -> GridTable:
    _expect(content, name, "fewstep-grid", {"sigmas", "pure_noise", "note"})
    sigmas, note = content["sigmas"], content["note"]
    if not isinstance(sigmas, list) or len(sigmas) > _MOST_LEVELS or not all(map(_number, sigmas)):
        raise ValueError(f"{name}: sigmas must be a list of at most {_MOST_LEVELS} numbers.")
    if not isinstance(content["pure_noise"], bool) or not (sigmas or content["pure_noise"]):
        raise ValueError(f"{name}: pure_noise must be true or false, and a grid holds at least one level.")
    low, high = _RATIOS
    for value in sigmas:
        if not low <= value <= high:
            raise ValueError(f"{name}: every sigma must be a finite number from {low:g} to {high:g}, one is {value}.")
    for a, b in pairwise(sigmas):
        if not a > b:
            raise ValueError(f"{name}: sigmas must fall strictly, {a} is followed by {b}.")
    if not isinstance(note, dict) or not all(isinstance(v, str) for v in note.values()):
        raise ValueError(f"{name}: the note must hold strings.")
    return GridTable(tuple(map(float, sigmas)), content["pure_noise"], note)


def _expect(content: Any, name: FilePath, kind: str, keys: set[str]) -> None:
    if not isinstance(content, dict) or content.get("format") != kind or content.get("version") != 1:
        raise ValueError(f"{name} is not a {kind} file of version 1.")
    if wrong := content.keys() ^ (keys | {"format", "version"}):
        raise ValueError(f"{name}: missing or unknown keys {', '.join(sorted(wrong))}.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _wholes(value: Any) -> bool:
    return isinstance(value, list) and all(map(_whole, value))


def _read(file: str | os.PathLike) -> Any:
    name = FilePath(file)
    if not name.is_file():
        raise ValueError(f"{name} is not a file.")
    if name.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{name} is larger than {_LARGEST_FILE >> 20} MiB.")
    try:
        return json.loads(name.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON: {error}.") from None


def _write(file: str | os.PathLike, content: Any) -> None:
    """All or nothing: a file beside the final one, renamed when it is on the disk."""
    name = FilePath(file)
    text = json.dumps(content, allow_nan=False, indent=1)
    with written(name) as temporary:
        temporary.write_text(text, encoding="utf-8")
