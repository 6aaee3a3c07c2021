"""How a run goes on: which checkpoint it begins from, what has changed since, and logs without what happens again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distill.checkpointing import folder as checkpoints
from distill.checkpointing.state import RunState
from distill.config import TrainConfig
from distill.parallel.data_parallel import Parallel
from distill.run_folder import TrainingError
from gen.io.user_code import check_imported
from gen.io.weights import write_bytes


def find(config: TrainConfig, parallel: Parallel) -> Path | None:
    """The checkpoint folder that the config's `resume` means, the same on all processes; None to start anew. An error, on all
    of them, where it cannot be used. Damaged ones that are passed over are set aside."""
    if not parallel.accelerator.is_main_process:
        folder, error = parallel.gather(None)[0]
        if error:
            raise TrainingError(error)
        return folder
    folder, error = None, None
    try:
        folder = _find(Path(config.output), config.resume)
    except (TrainingError, ValueError, OSError) as problem:
        error = str(problem)
        raise
    finally:
        parallel.gather((folder, error))
    return folder


def _find(run: Path, wanted: str) -> Path | None:
    existing = checkpoints.folders(run)
    if wanted == "never":
        if existing:
            raise TrainingError(
                f"{run} already holds {existing[0].name}, and resume is never; give another output, or resume=auto to go on."
            )
        return None
    if wanted != "auto":
        start = Path(wanted)
        if start.resolve().parent != run.resolve():
            if not existing:  # only where another run's step is the start; afterwards the run goes on from its own
                return start
        else:
            later = [f.name for f in existing if checkpoints.step_of(f) > checkpoints.step_of(start)]
            if later:
                raise TrainingError(f"{run} also holds {later[0]}, which is later than {start.name}; move it away first.")
            return start
    folder, _, damaged = checkpoints.newest_good(run)
    for bad in damaged:
        tqdm.write(f"{bad} is damaged, and was moved to {checkpoints.set_aside(bad).name}.")
    return folder


def resume(state: RunState, config: TrainConfig, inputs: Callable[[], Mapping[str, Mapping[str, Any]]]) -> int:
    """Restore what there is to go on from; returns the step to go on at.

    inputs: what the run reads, by name, with a hash of each (`Trainer.inputs`); asked only where there is a checkpoint.
    ValueError where the run was trained with a file of the user's own (`--import`) that is not imported now, or has changed.
    """
    run = Path(config.output)
    folder = find(config, state.parallel)
    if folder is None:
        return 0
    saved = checkpoints.load(folder)
    check_imported(saved.state.get("imported") or {}, f"{folder} was trained")
    changes = differences(saved.state.get("config", {}), config.model_dump(mode="json"))
    if other := [text for name, text in changes.items() if name.startswith("network.")]:
        raise TrainingError(
            f"{folder} is of another network ({'; '.join(other[:5])}). Give another output, or the network section it was "
            "begun with."
        )
    state.restore(saved, folder)
    if state.parallel.accelerator.is_main_process:
        # a key that the checkpoint lacks is one that did not exist when it was written
        of_known_keys = {name: text for name, text in changes.items() if f": {NOT_GIVEN} ->" not in text}
        shown = [
            text for name, text in of_known_keys.items() if name.partition(".")[0] not in ("output", "resume", "max_steps")
        ]
        note = f" with changes: {'; '.join(shown[:8])}" if shown else ""
        tqdm.write(f"Resuming {run} at step {saved.step}{note}.")
        for text in changed_inputs(saved.state.get("inputs") or {}, inputs()):
            tqdm.write(text)
        if folder.parent.resolve() == run.resolve():
            forget_after(run, saved.step)
    return saved.step


def changed_inputs(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for everything that a run reads and that is not what it was when a checkpoint was written."""
    said = []
    for name, was in old.items():
        now = new.get(name)
        if not isinstance(was, dict) or now is None or now.get("digest") == was.get("digest"):
            continue
        if name == "data":
            counts = was.get("count"), now.get("count")
            how = f"{counts[0]} pictures then, {counts[1]} now" if counts[0] != counts[1] else (
                f"{counts[1]} pictures as then, but not the same ones, or with other captions or labels"
            )  # fmt: skip
            said.append(f"The data are not what they were at that step: {how}. Samples from here on are of the new data.")
        else:
            said.append(f"The {name} is not what it was at that step: its weights or settings have changed.")
    return said


def forget_after(run: Path, step: int) -> None:
    """Take out of a run's logs what was written after a step, for it happens again: rows of later steps, and one half written.
    A row of nonfinite.jsonl is of the update after its step."""
    for name, last in (("log.jsonl", step), ("nonfinite.jsonl", step - 1)):
        path = run / name
        if not path.is_file():
            continue
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and _step_in(line) <= last]
        if kept != lines:
            write_bytes(path, b"".join(kept))


def _step_in(line: bytes) -> float:
    """The step that a row of a log is of; rows of another kind are older than every step, and stay."""
    try:
        step = json.loads(line).get("step", -1)
    except (ValueError, RecursionError, AttributeError):
        return math.inf
    return step if isinstance(step, int | float) else -1


NOT_GIVEN = "(not given)"
_MISSING = object()


def differences(old: Any, new: Any, name: str = "") -> dict[str, str]:
    """What changed between two nested settings, by dotted key: "optimizer.lr: 0.001 -> 0.0005"."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, str] = {}
        for key in [*new, *(key for key in old if key not in new)]:
            path = f"{name}.{key}" if name else str(key)
            found |= differences(old.get(key, _MISSING), new.get(key, _MISSING), path)
        return found
    if old == new:
        return {}

    def show(value: Any) -> str:
        return NOT_GIVEN if value is _MISSING else str(value)

    return {name: f"{name}: {show(old)} -> {show(new)}"}
