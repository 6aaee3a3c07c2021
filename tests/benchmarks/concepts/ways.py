"""`python -m tests.benchmarks.concepts.ways FOLDER`: one new thing, brought to the default model in five ways.

    lora               a LoRA and a new word, from five pictures                         (`fewstep lora train`)
    custom diffusion   keys and values of cross-attention, whole, and a new word
    multibooth         a normalised word and a LoRA on keys and values
    reference          the shipped reference encoder sees one picture                    (`--reference`)
    free custom        the picture's keys and values join self-attention, no training    (`--free-custom`)

All draw the same prompts from the same seeds. Measured are likeness (`fidelity.py`: 1 is what held-out pictures of it have on
average, 0 its look-alikes), the judge's cosine of picture and prompt in plain words, whether the background asked for is
there, what is kept of a concept in megabytes, and seconds, as multiples of the time of a picture without any of this: once to
bring the thing in, and for each picture. What was made is kept in --out, so that a stopped run goes on. FOLDER is what
`tests.benchmarks.concepts.mascot` writes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from customization.train import make_trainer
from distill.config import parse_config
from distill.eval.model_scores import ScoreSettings, load_text_encoder
from distill.networks.evaluator.network import load_evaluator
from gen.adapters import read_adapter
from gen.generator import Generator
from gen.io.weights import read_weights, write_bytes, write_json, write_weights
from tests.benchmarks.concepts.__main__ import decoded
from tests.benchmarks.concepts.fidelity import background, fit, read_folder, subject_features
from tests.benchmarks.sheet import sheet

WORD, PLAIN = "<zib>", "alien monster"  # the new word, and what it starts as and is called in plain words
COLOURS = (None, "green", "red", "yellow")  # of backgrounds that are asked for
BATCH = 4
# type of the objective -> (its settings beside model and words, learning rate)
TAUGHT: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"type": "lora", "adapter": {"rank": 8, "targets": ["cross.q", "cross.kv", "cross.proj"]}}, 5e-4),
    "custom diffusion": ({"type": "custom_diffusion"}, 1e-4),
    "multibooth": ({"type": "multibooth", "adapter": {"rank": 8}}, 5e-4),
}
WAYS = ("plain model", *TAUGHT, "reference", "free custom")


def prompt_of(colour: str | None, thing: str) -> str:
    return f"a {thing}" if colour is None else f"a {thing} on a {colour} background"


def config_of(way: str, pictures: Path, run: Path, steps: int) -> dict[str, Any]:
    """The training config of a way that is taught."""
    settings, rate = TAUGHT[way]
    tokens = {WORD: {"init": PLAIN}}
    return {
        "output": str(run), "max_steps": steps, "batch_size": 4, "network": {},
        "objective": {**settings, "name": "zib", "tokens": tokens, "token_rate": 5.0},
        "data": {"type": "concept", "images": str(pictures), "prompt": f"a {WORD}", "captions": "none"},
        "optimizer": {"lr": rate, "betas": [0.9, 0.99]}, "schedule": {"warmup": max(1, min(20, steps // 10))},
        "log_every": 50, "checkpoint_every": max(50, steps // 4), "preview_every": 0,
    }  # fmt: skip


def bring_in(way: str, given: argparse.Namespace) -> tuple[Path | None, float]:
    """(the adapter's file, None for ways without one; seconds of training)."""
    if way not in TAUGHT:
        return None, 0.0
    run = given.out / "runs" / way.replace(" ", "-")
    file, record = run / "export" / "adapter.safetensors", run / "seconds.json"
    if not record.is_file():
        pictures = given.out / "train"
        if not pictures.is_dir():
            pictures.mkdir(parents=True)
            for path in sorted((given.folder / "train").glob("*.png"))[: given.pictures]:
                shutil.copy(path, pictures / path.name)
        trainer = make_trainer(parse_config(config_of(way, pictures, run, given.steps), way))
        start = time.perf_counter()
        trainer.train()
        write_json(record, {"seconds": time.perf_counter() - start})
    return file, json.loads(record.read_text())["seconds"]


def draw(way: str, generator: Generator, file: Path | None, shown: Path, given: argparse.Namespace) -> tuple[Tensor, float]:
    """(pictures (N, 3, H, W) in [0, 1] of every colour and seed in turn, seconds of one)."""
    kept = given.out / "pictures" / f"{way.replace(' ', '-')}.safetensors"
    if not kept.is_file():
        call: dict[str, Any] = {}
        thing = PLAIN
        if file is not None:
            generator.load_adapter(read_adapter(file), name="taught")
            thing = WORD
        elif way == "reference":
            call, thing = {"references": str(shown)}, "<ref>"
        elif way == "free custom":
            call = {"reference": str(shown), "reference_prompt": f"a {PLAIN}"}
        parts, spent = [], 0.0
        for colour in COLOURS:
            for first in range(0, given.seeds, BATCH):
                seeds = list(range(first, min(first + BATCH, given.seeds)))
                start = time.perf_counter()
                made = generator(
                    [prompt_of(colour, thing)] * len(seeds), seeds=seeds, num_inference_steps=given.sampling, batch_size=BATCH,
                    output_type="pt", progress=False, **call,
                )  # fmt: skip
                spent += time.perf_counter() - start
                parts.append(made.images.float().cpu())
        if file is not None:
            generator.unload_adapter("taught")
        images = torch.cat(parts)
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_weights(kept, {"images": images, "seconds": torch.tensor(spent / len(images))})
    found = read_weights(kept)
    return found["images"], float(found["seconds"])


def megabytes(way: str, file: Path | None, shown: Path) -> float:
    """What is kept of the concept: the adapter, or the picture."""
    return 0.0 if way == "plain model" else (file or shown).stat().st_size / 1e6


def run(given: argparse.Namespace) -> list[dict[str, Any]]:
    generator = Generator.from_pretrained("default")
    judge, texts = load_evaluator(None).eval().requires_grad_(False), load_text_encoder(ScoreSettings())
    size = generator.config.sample_size
    own, others = (decoded(generator, read_folder(given.folder / name, size)) for name in ("held_out", "look_alikes"))
    likeness = fit(subject_features, judge, own, others)
    shown = min((given.folder / "train").glob("*.png"))
    rows: list[dict[str, Any]] = []
    pictures: dict[str, Any] = {}
    for way in WAYS:
        file, taught = bring_in(way, given)
        images, seconds = draw(way, generator, file, shown, given)
        seen, asked = images * 2 - 1, [colour for colour in COLOURS for _ in range(given.seeds)]
        with torch.no_grad():
            sentences = judge.embed_texts(texts.pooled([prompt_of(colour, PLAIN) for colour in asked]))
            alignment = (judge.embed(seen) * sentences).sum(1)
        right = [a == b for a, b in zip(asked, background(seen), strict=True) if a is not None]
        rows.append({
            "way": way, "likeness": float(likeness(seen).mean()), "alignment": float(alignment.mean()),
            "background": sum(right) / len(right), "megabytes": megabytes(way, file, shown), "once": taught, "picture": seconds,
        })  # fmt: skip
        pictures[way] = list(images[:: given.seeds])
    unit = rows[0]["picture"]
    for row in rows:
        row["once"], row["picture"] = row["once"] / unit, row["picture"] / unit
    write_json(given.out / "ways.json", {"rows": rows})
    sheet(pictures, [prompt_of(colour, "zib") for colour in COLOURS], given.out / "ways.png")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = ["| way | likeness | alignment | background | megabytes | once | a picture |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        numbers = f"{row['likeness']:.2f} | {row['alignment']:.2f} | {row['background']:.0%} | {row['megabytes']:.2f}"
        lines.append(f"| {row['way']} | {numbers} | {row['once']:.0f} | {row['picture']:.1f} |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.concepts.ways",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folder", type=Path, help="what `tests.benchmarks.concepts.mascot` writes")
    made.add_argument("--pictures", type=int, default=5, help="how many are taught [default: 5]")
    made.add_argument("--steps", type=int, default=200, help="of training [default: 200]")
    made.add_argument("--seeds", type=int, default=4, help="pictures of each prompt [default: 4]")
    made.add_argument("--sampling", type=int, default=10, help="steps of a picture [default: 10]")
    made.add_argument("--out", type=Path, default=Path("outputs/ways"))
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    text = table(run(given))
    write_bytes(given.out / "ways.md", text.encode())
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
