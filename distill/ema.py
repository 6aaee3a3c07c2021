"""`python -m distill.ema reconstruct RUN --width 0.1 [--step N] [--output FOLDER]`: averages of other widths after training.

Combines the snapshots of a run with `ema: {type: power, snapshot_every: ...}` into the average of any width, and writes what
the run would have exported had it kept that one.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from distill.checkpointing.folder import load_latest
from distill.config import parse_config
from distill.imports import add_imports, run_imports
from distill.objectives import make_objective
from distill.optim.ema import find_snapshots, reconstruct
from gen.cli.parser import Parser
from gen.io.errors import CheckpointError
from gen.io.folders import written_folder
from gen.nn.registry import build


def export_reconstructed(run: Path, width: float, step: int | None, output: Path) -> int:
    """Write a run's export with its averages replaced by those of another width; returns the step they stand for."""
    files = find_snapshots(run, step)
    saved = load_latest(run)
    if saved is None:
        raise CheckpointError(run, "has no checkpoint, so what its snapshots are of is not known.")
    config = parse_config(dict(saved.state["config"]), str(run))
    objective = make_objective(config.objective, build(config.network), None)
    models = {}
    for name, role in objective.roles.items():
        models[name] = role.network.eval()
        if name in files:
            role.network.load_state_dict(reconstruct(files[name], width, step))
    with written_folder(output) as folder:
        objective.export(models, folder)
    return step or max(int(p[0]) for profiles in files.values() for p in profiles)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m distill.ema", description="Averages of any width after training.")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("reconstruct", help="export a run with an average of another width")
    command.add_argument("run", type=Path, help="the run's output folder")
    command.add_argument("--width", type=float, required=True, help="relative standard deviation, for example 0.1")
    command.add_argument("--step", type=int, help="as of this step (default: the last snapshot)")
    command.add_argument("--output", type=Path, help="default: RUN/export-WIDTH")
    add_imports(command)
    given = parser.parse_args(arguments)
    output = given.output or given.run / f"export-{given.width:.3f}"
    try:
        run_imports(given)
        step = export_reconstructed(given.run, given.width, given.step, output)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    print(f"{output}: the average of width {given.width:g} at step {step}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
