"""`fewstep scaling RUN RUN RUN [--metric loss] [--budget 1e18 | 12h] [-o plot.png]`: laws of runs, and what to train next."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

from distill.scaling.report import draw, lines
from distill.scaling.runs import read_runs
from distill.scaling.study import NEXT, Study, study
from gen.cli.parser import Parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="fewstep scaling", description="Scaling laws of training runs, and what to train next.")
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="the output folder of a training run; three or more")
    add("--metric", default="loss", help="a number of their logs, as validation/loss or evaluation/4/top1 (default: loss)")
    add("--budget", help=f"operations, as 1e18, or hours, as 12h (default: {NEXT} times the largest run's operations)")
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    add("-o", "--output", type=Path, help="a plot, PNG; replaced where it exists")
    given = parser.parse_args(arguments)
    try:
        found = study(read_runs(given.runs, given.metric), given.metric, seed=given.seed)
        budget = None if given.budget is None else read_budget(given.budget, found)
        print("\n".join(lines(found, budget)))
        if given.output is not None:
            draw(found, budget or NEXT * found.largest, given.output)
            print(f"Written: {given.output}")
    except (ValueError, OSError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    return 0


def read_budget(text: str, found: Study) -> float:
    """Operations. ValueError for what is neither these nor hours, or hours where no run says how fast it was."""
    number = text.strip().lower()
    in_hours = number.endswith("h")
    try:
        value = float(number.removesuffix("h"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"--budget is {text!r:.40}; give operations, as 1e18, or hours, as 12h.")
    if not in_hours:
        return value
    if found.rate is None:
        raise ValueError(
            "--budget in hours needs samples_per_second in a log, which none of these has; give operations (1e18)."
        )
    return value * 3600 * found.rate


if __name__ == "__main__":
    sys.exit(main())
