"""`python -m tests.benchmarks.few_step`: every method of few steps on the shipped data, with as much computing for each.

Each config of configs/distill is trained as it stands, but for its number of steps: a short run first says how many seconds of
one processor core a step takes, and `--minutes` of them are spent. Processor time is counted, not the clock, so that other work
on the machine takes steps from no method. What comes out is drawn at 1, 2 and 4 steps and scored by the shipped evaluation
network, and by each that `--judges` names (such as runs/evaluator_rival/export, whose training no method reads).

A method that is done is kept in --out, as NAME.json; a run that was stopped goes on where it was. table.md is written after
each. At a low priority it serves as background work:

    OMP_NUM_THREADS=1 nice -n 5 python -m tests.benchmarks.few_step --minutes 20
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from gen.io.weights import write_bytes, write_json

CONFIGS = Path("configs/distill")
NOT_FEW_STEP = {
    "classifier": "a classifier of noisy latents, for guidance",
    "collaborate": "joins two models, at any number of steps",
    "upsampler": "pictures from smaller ones, at any number of steps",
    "multimarginal": "kinds of pictures to one another, in pixels, at any number of steps",
    "positional_query": "paints around a picture, at any number of steps",
    "guidance": "one evaluation instead of two, at any number of steps",
}
STEPS = (1, 2, 4)
FIRST, LAST = 4, 14  # steps of the two short runs whose difference is the time of LAST - FIRST steps
# settings that count steps of training; they keep their share of the run
COUNTS = (
    *("objective.stage_steps", "objective.anneal", "objective.total_steps", "objective.warmup", "objective.critic_warmup"),
    *("objective.adversarial_start", "objective.regularize_from", "objective.segment_steps", "objective.milestones_from"),
    *("objective.dynamic_steps", "objective.reward_from", "objective.reward_steps", "schedule.warmup"),
    *("objective.adversarial_from", "objective.mixing_steps"),
)


def methods() -> list[str]:
    """Names of the configs that make students of few steps."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in NOT_FEW_STEP)


def scaled(config: dict[str, Any], steps: int) -> list[str]:
    """Overrides KEY=VALUE that train `config` for `steps`, with settings that count steps in the same share of the run."""
    overrides = [f"max_steps={steps}"]
    for key in COUNTS:
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            numbers = [max(round(v * steps / config["max_steps"]), 0) for v in (value if isinstance(value, list) else [value])]
            text = f"[{','.join(map(str, numbers))}]" if isinstance(value, list) else str(max(numbers[0], 1))
            overrides.append(f"{key}={text}")
    return overrides


def spend(command: Sequence[str]) -> float:
    """Run a command on one thread. Seconds of processor time that it took; RuntimeError with its last words if it failed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def train(name: str, steps: int, folder: Path) -> float:
    """Train a method's config for `steps` in `folder`. Seconds of processor time."""
    path = CONFIGS / f"{name}.yaml"
    config = yaml.safe_load(path.read_text())
    overrides = [f"output={folder}", "device=cpu", "threads=1", "preview_every=0", *scaled(config, steps)]
    if config["objective"].get("lora"):
        overrides.append("objective.merge=true")  # a model folder, which needs no sampler named beside it
    return spend([sys.executable, "-m", "distill.train", str(path), *overrides])


def steps_within(name: str, seconds: float, scratch: Path) -> tuple[int, float]:
    """(steps of a method that take `seconds` of one core, seconds of one step)."""
    taken = []
    for steps in (FIRST, FIRST, LAST):  # the first run of all makes latents, which are kept
        shutil.rmtree(scratch, ignore_errors=True)
        taken.append(train(name, steps, scratch))
    shutil.rmtree(scratch, ignore_errors=True)
    each = max(taken[2] - taken[1], 1e-3) / (LAST - FIRST)
    return max(round(seconds / each), 1), each


def score(model: str, judge: str | None, options: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    """A row of numbers for each of STEPS, by the shipped evaluation network or by the one in folder `judge`."""
    command = [sys.executable, "-m", "distill.evaluate", "--model", model, "--steps", ",".join(map(str, STEPS)),
               "--labels", options.labels, "--per-label", str(options.per_label), "--out", str(out)]  # fmt: skip
    spend([*command, *(["--evaluator", judge] if judge else [])])
    return json.loads((out / "report.json").read_text())["rows"]


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one method, or read what is kept of it."""
    kept, run = options.out / f"{name}.json", options.out / name
    if kept.is_file():
        return json.loads(kept.read_text())
    plan = options.out / f"{name}.plan.json"
    if not plan.is_file():
        steps, each = steps_within(name, options.minutes * 60, options.out / f"{name}.short")
        write_json(plan, {"steps": steps, "seconds_per_step": each})
    planned = json.loads(plan.read_text())
    seconds = train(name, planned["steps"], run)
    judged = {judge or "shipped": score(str(run / "export"), judge, options, run / "evaluation")
              for judge in (None, *options.judges)}  # fmt: skip
    result = {**planned, "seconds": seconds, "minutes": options.minutes, "judged": judged}
    write_json(kept, result)
    return result


def markdown(results: dict[str, dict[str, Any]]) -> str:
    """A table with a row per method, the best at four steps first."""
    judges = list(dict.fromkeys(judge for result in results.values() for judge in result["judged"]))
    head = ["method", "steps", "s/step"]
    for judge in judges:
        head += [f"FD at {steps} ({Path(judge).parent.name or judge})" for steps in STEPS]
    head += [f"top-5 at {steps}" for steps in STEPS] + ["recall at 4", "s/picture at 4"]
    lines = [head, ["---"] * len(head)]
    for name, result in sorted(results.items(), key=lambda item: item[1]["judged"]["shipped"][-1]["frechet_distance"]):
        row = [f"`{name}`", str(result["steps"]), f"{result['seconds_per_step']:.2f}"]
        for judge in judges:
            rows = result["judged"].get(judge)
            row += [f"{r['frechet_distance']:.1f}" for r in rows] if rows else [""] * len(STEPS)
        shipped = result["judged"]["shipped"]
        row += [f"{r['top5']:.3f}" for r in shipped]
        lines.append([*row, f"{shipped[-1]['recall']:.2f}", f"{shipped[-1]['seconds_per_image']:.3f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.few_step", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--minutes", type=float, default=20.0, help="of one core, for each method (default: 20)")
    add("--methods", nargs="+", choices=methods(), metavar="NAME", help="configs of configs/distill (default: all)")
    add("--judges", nargs="*", default=[], metavar="FOLDER", help="further evaluation networks")
    add("--labels", default="common", help="as of fewstep evaluate (default: common)")
    add("--per-label", type=int, default=2)
    add("--out", type=Path, default=Path("runs/few_step"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    results, failed = {}, []
    for name in options.methods or methods():
        try:
            results[name] = measure(name, options)
        except RuntimeError as error:  # one method's fault leaves the others their turn
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        write_bytes(options.out / "table.md", markdown(results).encode())
        print(f"{name}: {results[name]['steps']} steps, FD {results[name]['judged']['shipped'][-1]['frechet_distance']:.1f}")
    if results:
        print(markdown(results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
