"""`python -m tests.benchmarks.guidance`: DPS, LGD, MPGD, FreeDoM, universal guidance and searched TFG on the default model.

Seven tasks: two inverse problems, a label, a colour, two rewards and a style. Every method makes the same number of network
evaluations: FreeDoM, which makes each step twice, has half the steps. Each method's strength is searched with the same number
of trials, on other subjects and seeds than those of the table; TFG, whose space holds all the others, has twice as many. Every
picture is kept under --out, so a run that was stopped goes on where it was. Writes table.json, table.md and a sheet per task.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from distill.data.emoji.captions import read_common
from distill.data.emoji.data import SHIPPED
from distill.eval.model_scores import ScoreSettings, load_text_encoder
from distill.networks.evaluator.network import load_evaluator
from distill.networks.evaluator.pictures import read_pictures
from gen.generator import Generator
from gen.io.weights import read_weights, write_bytes, write_json, write_weights
from tests.benchmarks.guidance.measure import Bench, Cell
from tests.benchmarks.guidance.report import markdown, result, write_sheet
from tests.benchmarks.guidance.search import METHODS, Found, rows, search
from tests.benchmarks.guidance.tasks import TASKS, Task, World, all_tasks


def make_world(judge: str | None, data: str | None) -> World:
    held_out = Path(data) / "emoji-test.zip" if data else None
    evaluator = load_evaluator()
    return World(
        evaluator.requires_grad_(False),
        load_evaluator(judge).requires_grad_(False) if judge else evaluator,
        load_text_encoder(ScoreSettings()),
        SHIPPED,
        held_out if held_out is not None and held_out.is_file() else SHIPPED,
    )


def real_features(world: World, out: Path) -> Tensor:
    """Of the everyday drawings that the default model was trained on (N, D); computed once and kept."""
    path = out / "cells" / "real.safetensors"
    if not path.is_file():
        images, _ = read_pictures(world.shipped, 128, set(read_common()))
        with torch.no_grad():
            features = torch.cat([world.evaluator.features(part) for part in images.split(64)])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_weights(path, {"features": features})
    return read_weights(path)["features"]


def run(bench: Bench, task: Task, given: argparse.Namespace, real: Tensor) -> tuple[list[dict], dict[str, Cell], Found]:
    found = search(
        bench, task, given.trials, given.tfg_trials, given.search_samples, given.finals, lambda text: print(text, flush=True)
    )
    table, cells = [], {}
    for name, setting in rows(task, found, given.methods):
        cells[name] = bench.measure(task, setting, "table", given.samples)
        table.append(result(task, name, setting, cells[name], bench.world, real))
        print(f"{task.name}: {name}: {table[-1]['score']:.4g}, FD {table[-1]['frechet_distance']:.1f}", flush=True)
    return table, cells, found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.guidance", description=__doc__)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="rows of the table; all are searched")
    parser.add_argument("--samples", type=int, default=16, help="pictures per cell of the table")
    parser.add_argument("--nfe", type=int, default=20, help="steps of methods that make each once; FreeDoM's are half as many")
    parser.add_argument("--steps", type=int, dest="nfe", help="the same as --nfe")
    parser.add_argument("--trials", type=int, default=5, help="settings that each method's search may try")
    parser.add_argument("--tfg-trials", type=int, default=10, help="the same of TFG, which has all their options")
    parser.add_argument("--search-samples", type=int, default=8, help="pictures per trial")
    parser.add_argument("--finals", type=int, default=16, help="pictures of the last choices; three times as many of the last")
    parser.add_argument("--columns", type=int, default=6, help="columns of the sheets")
    parser.add_argument("--dtype", default="bfloat16", help="of the network; bfloat16: of decoder and energies too")
    parser.add_argument("--judge", help="folder of another evaluation network, to score what this one guided")
    parser.add_argument("--data", help="folder with emoji-test.zip: restore drawings of a vendor never trained on")
    parser.add_argument("--out", type=Path, default=Path("outputs/guidance"))
    given = parser.parse_args()
    world = make_world(given.judge, given.data)
    tasks = all_tasks(world)
    chosen = [tasks[name] for name in given.tasks]
    bench = Bench(Generator.from_pretrained(dtype=given.dtype), world, given.out, given.nfe, given.dtype == "bfloat16")
    real = real_features(world, given.out)
    path, table, searches = given.out / "table.json", [], {}
    for task in chosen:
        part, cells, found = run(bench, task, given, real)
        table += part
        searches[task.name] = {
            "note": found.note,
            "chosen": {m: asdict(s) for m, s in found.settings.items()},
            "tried": {m: {str(s): value for s, value in tried.items()} for m, tried in found.tried.items()},
        }
        write_sheet(task, cells, given.out / f"guidance_{task.name}.png", given.columns)
        write_json(path, {"nfe": given.nfe, "samples": given.samples, "real": len(real), "rows": table, "searches": searches})
        write_bytes(given.out / "table.md", markdown(chosen, table).encode())
    print(f"{bench.made} pictures made. Written: {path}, {given.out / 'table.md'} and sheets beside them.")


if __name__ == "__main__":
    main()
