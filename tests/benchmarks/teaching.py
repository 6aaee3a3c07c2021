"""`python -m tests.benchmarks.teaching FOLDER`: what a LoRA learns and what the model forgets, by the settings of its training.

Each setting trains the default model on the same few pictures of a thing that it has never seen, and is measured at several
steps: likeness of the new thing (`concepts.fidelity`: 1 is what held-out pictures of it have on average, 0 its look-alikes) in
pictures of eight prompts, and how many of 50 other labels the shipped evaluation network still recognises, among all of its
labels, beside the model as it is. Seeds are the same throughout. Results are kept in --out, a file for each setting and step,
so that a stopped run goes on and several may run side by side; table.md has them all. Run it at a low priority:

    python -m tests.benchmarks.concepts.mascot data/zib
    OMP_NUM_THREADS=1 nice -n 5 python -m tests.benchmarks.teaching data/zib --pictures 5
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from customization.train import TOKEN_RATE, make_trainer
from distill.checkpointing import folder as checkpoint
from distill.config import parse_config
from distill.eval.model_scores import ScoreSettings, drawn_labels, generate, load_text_encoder, recognition, subjects
from distill.networks.evaluator.network import load_evaluator
from gen.generator import Generator
from gen.io.weights import read_weights, write_bytes, write_json
from tests.benchmarks.concepts.__main__ import decoded, kept
from tests.benchmarks.concepts.fidelity import Likeness, fit, read_folder, subject_features
from tests.benchmarks.sheet import sheet

WORD = "<zib>"
PROMPTS = (
    f"a {WORD}", f"a {WORD} on a green background", f"a {WORD} on a red background", f"a {WORD} on a yellow background",
)  # fmt: skip
SEEDS = 2  # pictures of each prompt
SHOWN = 6  # other labels on the sheet

CROSS = ("cross.q", "cross.kv", "cross.proj")  # the layers of the shipped model that read the text
# name -> (steps that are measured, rank, learning rate, layers)
GRID: dict[str, tuple[tuple[int, ...], int, float, tuple[str, ...]]] = {
    "rank 16, 1e-3": ((50, 100, 200, 300, 500), 16, 1e-3, ()),
    "rank 8, 5e-4": ((50, 100, 200, 300), 8, 5e-4, ()),
    "rank 8, 5e-4, cross-attention": ((100, 200, 300), 8, 5e-4, CROSS),
    "rank 8, 1e-3, cross-attention": ((100, 200), 8, 1e-3, CROSS),
    "rank 8, 5e-4, prior": ((100, 200, 300), 8, 5e-4, ()),
}
PRIOR = {"prompt": "a cartoon monster", "count": 16}  # of the settings that end in "prior"


def config_of(name: str, pictures: Path, run: Path) -> dict[str, Any]:
    """The training config of a setting."""
    steps, rank, rate, targets = GRID[name]
    return {
        "output": str(run),
        "max_steps": steps[-1],
        "batch_size": 4,
        "objective": {
            "type": "lora",
            "name": "zib",
            "tokens": {WORD: {"init": "alien monster"}},
            "token_rate": TOKEN_RATE,
            "adapter": {"type": "lora", "rank": rank, "targets": targets},
        },
        "network": {},
        "data": {"type": "concept", "images": str(pictures), "prompt": f"a {WORD}", "captions": "none"}
        | ({"prior": PRIOR} if name.endswith("prior") else {}),
        "optimizer": {"lr": rate, "betas": [0.9, 0.99]},
        "schedule": {"warmup": 20},
        "log_every": 50,
        "checkpoint_every": 50,
        "keep_every": 50,
        "preview_every": 0,
    }


class Bench:
    """What measures an adapter. steps: of sampling."""

    def __init__(self, folder: Path, out: Path, labels: int, steps: int):
        self.generator = Generator.from_pretrained("default")
        self.judge = load_evaluator(None).eval().requires_grad_(False)
        self.settings = ScoreSettings(labels=str(labels), steps=steps, batch_size=10)
        self.texts = load_text_encoder(self.settings)
        size = self.generator.config.sample_size
        folders = [folder / name for name in ("held_out", "look_alikes")]

        def real() -> dict[str, torch.Tensor]:
            return {path.name: decoded(self.generator, read_folder(path, size)) for path in folders}

        listed = [(str(path), len(list(path.iterdir()))) for path in folders]
        found = kept(out / "real", [size, listed, sorted(self.generator.weights.items())], real)
        self.likeness: Likeness = fit(subject_features, self.judge, found["held_out"], found["look_alikes"])
        self.labels, self.seeds = subjects(self.settings, drawn_labels(self.settings, self.judge))

    def measure(self, word: bool) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """(numbers, pictures for a sheet) of the generator as it is now. word: can it draw the new thing?"""
        made = generate(self.generator, self.labels, self.seeds, self.settings).images
        found = recognition(self.judge, self.texts, made, self.labels, self.labels)
        numbers = {"top1": float(found["top1"]), "top5": float(found["top5"])}
        shown = {"others": made[:: len(made) // SHOWN][:SHOWN]}
        if word:
            prompts = [prompt for prompt in PROMPTS for _ in range(SEEDS)]
            new = generate(self.generator, prompts, list(range(len(prompts))), self.settings).images
            like = self.likeness(new)
            numbers |= {"likeness": float(like.mean()), "recognised": float((like > 0.5).double().mean())}
            shown["new"] = new[::SEEDS]
        return numbers, shown


def run_setting(name: str, given: argparse.Namespace, bench: Bench) -> None:
    slug = name.replace(", ", "_").replace(" ", "-")
    steps = GRID[name][0]
    if all((given.out / f"{slug}_{step}.json").is_file() for step in steps):
        return
    pictures = given.out / f"train-{given.pictures}"
    if not pictures.is_dir():
        pictures.mkdir(parents=True)
        for path in sorted((given.folder / "train").glob("*.png"))[: given.pictures]:
            shutil.copy(path, pictures / path.name)
    run = given.out / "runs" / slug
    trainer = make_trainer(parse_config(config_of(name, pictures, run), name))
    trainer.train()
    for step in steps:
        saved = read_weights(checkpoint.folder_of(run, step) / "adapter.safetensors")
        values = {key.removeprefix("values.").replace("/", "."): value for key, value in saved.items()}
        bench.generator.load_adapter(trainer.objective.to_adapter(values), name="taught")
        numbers, shown = bench.measure(True)
        bench.generator.unload_adapter("taught")
        row = [(image + 1) / 2 for image in (*shown["new"], *shown["others"])]
        columns = [*PROMPTS, *bench.labels[:: len(bench.labels) // SHOWN][:SHOWN]]
        sheet({f"{name}, {step}": row}, columns, given.out / f"{slug}_{step}.png")
        write_json(given.out / f"{slug}_{step}.json", {"setting": name, "step": step, **numbers})
        print(name, step, {key: round(value, 3) for key, value in numbers.items()}, flush=True)
    shutil.rmtree(run)


def table(out: Path) -> str:
    """All that is in a folder, as Markdown."""
    rows = [json.loads(path.read_text()) for path in sorted(out.glob("*.json"))]
    order = {name: i for i, name in enumerate(["the model as it is", *GRID])}
    rows.sort(key=lambda row: (order.get(row["setting"], len(order)), row["step"]))
    lines = ["| setting | steps | likeness | recognised | top-1 of others | top-5 of others |", "|---|---|---|---|---|---|"]
    for row in rows:
        new = (f"{row['likeness']:.2f}", f"{row['recognised']:.2f}") if "likeness" in row else ("", "")
        lines.append(f"| {row['setting']} | {row['step']} | {new[0]} | {new[1]} | {row['top1']:.2f} | {row['top5']:.2f} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.teaching", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("folder", type=Path, help="what `tests.benchmarks.concepts.mascot` writes")
    made.add_argument("--settings", nargs="+", choices=GRID, help="rows of the table; all if left out")
    made.add_argument("--pictures", type=int, default=5, help="how many are taught")
    made.add_argument("--labels", type=int, default=50, help="how many others are drawn")
    made.add_argument("--steps", type=int, default=10, help="of sampling")
    made.add_argument("--out", type=Path, default=Path("outputs/teaching"))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(given.folder, given.out, given.labels, given.steps)
    base = given.out / "base.json"
    if not base.is_file():
        write_json(base, {"setting": "the model as it is", "step": 0, **bench.measure(False)[0]})
    for name in given.settings or GRID:
        run_setting(name, given, bench)
    write_bytes(given.out / "table.md", table(given.out).encode())
    print(table(given.out))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
