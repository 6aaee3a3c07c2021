"""`python -m distill.evaluate`: how well a model draws what it is asked for, in numbers and on a sheet to look at.

One picture per label is made through `gen.Generator` and shown to the evaluation network. That network never saw a generated
picture; it was trained on the generator's drawings, changed strongly, and those of one vendor more. Is the label its first
answer, among its first five, how well does the picture fit the prompt, how far is the set from real ones, how many nearly
copy a training picture? `--composition` asks for colours of things that training left out instead. Writes report.json and
sheet.png.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from distill import metrics
from distill.emoji.archive import read_archive
from distill.emoji.captions import HELD_OUT, read_common
from distill.emoji.data import SHIPPED as SHIPPED_DATA
from distill.evaluator.colours import object_colours
from distill.evaluator.network import Evaluator, load_evaluator
from distill.evaluator.pictures import read_pictures
from distill.evaluator.report import print_table, write_sheet
from gen.checkpoints import write_json
from gen.components import load_component
from samplers.noise import fold

if TYPE_CHECKING:
    from gen.generator import Generator
    from gen.text import TextEncoder

Report = dict[str, Any]

HELD_OUT_ARCHIVE = "emoji-test.zip"


@dataclass(frozen=True)
class Settings:
    """What is generated and what it is compared with."""

    model: str = "default"
    labels: str = "common"  # common, all, or how many of the common ones
    steps: int | None = None  # None: the model's own
    guidance_scale: float | None = None
    sampler: str | None = None
    seed: int = 0
    repeats: int = 4  # pictures per held-out pair
    batch_size: int = 8
    data: str | None = None  # a folder of archives; None: the shipped one
    evaluator: str | None = None  # a component folder; None: the shipped one
    text_encoder: str | None = None  # the one that the evaluation network was trained with; None: the default model's


@dataclass(frozen=True)
class Made:
    """Generated pictures (N, 3, H, W) in [-1, 1], and the seconds that each took."""

    images: Tensor
    seconds: float
    nfe: float


def training_archive(data: str | None) -> Path:
    """The archive of training pictures in a folder, or the shipped one."""
    path = SHIPPED_DATA if data is None else Path(data) / "emoji-train.zip"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; build it with python -m distill.emoji.build, or give another --data.")
    return path


def choose_labels(which: str, known: Sequence[str], common: Sequence[str]) -> list[str]:
    """The labels to draw: "common", "all", or a number: that many of the common ones, evenly spread over their list."""
    everyday = [label for label in common if label in set(known)]
    if which == "all":
        return list(known)
    if which == "common":
        return everyday
    if not which.isascii() or not which.isdigit() or not 0 < int(which) <= len(everyday):
        raise ValueError(f"--labels is {which!r}; give common, all, or a number from 1 to {len(everyday)}.")
    return [everyday[i * len(everyday) // int(which)] for i in range(int(which))]


def generate(generator: Generator, prompts: Sequence[str], seeds: Sequence[int], settings: Settings) -> Made:
    """One picture per prompt, with a progress bar."""
    from tqdm import tqdm

    parts, evaluations, start = [], 0.0, time.perf_counter()
    with tqdm(total=len(prompts), unit="picture", desc="drawing") as bar:
        for first in range(0, len(prompts), settings.batch_size):
            chosen = slice(first, first + settings.batch_size)
            output = generator(
                prompt=list(prompts[chosen]),
                seeds=list(seeds[chosen]),
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance_scale,
                sampler=settings.sampler,
                batch_size=settings.batch_size,
                output_type="pt",
                progress=False,
            )
            parts.append(output.images.float().cpu() * 2 - 1)
            evaluations += output.nfe * len(parts[-1])
            bar.update(len(parts[-1]))
    return Made(torch.cat(parts), (time.perf_counter() - start) / len(prompts), evaluations / len(prompts))


def load_text_encoder(settings: Settings) -> TextEncoder:
    """The text encoder whose sentence embeddings the evaluation network reads."""
    import gen

    folder = settings.text_encoder or Path(gen.__file__).parent / "default" / "text_encoder"
    return load_component(folder, "text_encoder")


def _by_parts(function, images: Tensor) -> Tensor:
    return torch.cat([function(part).float() for part in images.split(128)])


def _targets(evaluator: Evaluator, labels: Sequence[str]) -> Tensor:
    position = {label: index for index, label in enumerate(evaluator.labels)}
    if unknown := sorted({label for label in labels if label not in position}):
        raise ValueError(f"The evaluation network does not know the labels {', '.join(unknown[:5])}; train it on this data.")
    return torch.tensor([position[label] for label in labels])


@torch.no_grad()
def recognition(
    evaluator: Evaluator, text_encoder: TextEncoder, images: Tensor, labels: Sequence[str], prompts: Sequence[str]
) -> Report:
    """Top-1 and top-5 accuracy among all labels, and the mean cosine with each prompt beside that with the others'."""
    targets = _targets(evaluator, labels)
    embedded = _by_parts(evaluator.embed, images)
    scores = embedded @ evaluator.embed_texts(evaluator.label_sentences).T
    texts = evaluator.embed_texts(text_encoder.pooled(list(prompts)))
    cosines = embedded @ texts.T
    own = cosines.diagonal().mean()
    others = (cosines.sum() - cosines.trace()) / max(cosines.numel() - len(cosines), 1)
    return {
        "top1": metrics.top_k(scores, targets, 1),
        "top5": metrics.top_k(scores, targets, 5),
        "prompt_alignment": float(own),
        "alignment_with_other_prompts": float(others),
    }


@torch.no_grad()
def evaluate(
    generator: Generator, evaluator: Evaluator, text_encoder: TextEncoder, settings: Settings
) -> tuple[Report, Made, list[str]]:
    """(report, pictures, their labels) for one picture per label."""
    archive = training_archive(settings.data)
    records, _, concepts = read_archive(archive)
    drawn = {record.label for record in records}
    labels = choose_labels(settings.labels, [c for c in concepts if c in drawn], list(read_common()))
    _targets(evaluator, labels)
    made = generate(generator, labels, [fold(settings.seed, label) % 2**53 for label in labels], settings)

    real, real_labels = read_pictures(archive, made.images.shape[-1], set(labels))
    packs = [record.pack for record in records if record.label in set(labels)]
    report: Report = {"labels": len(labels), **recognition(evaluator, text_encoder, made.images, labels, labels)}
    if len(labels) > 1:
        features = [_by_parts(evaluator.features, images) for images in (made.images, real)]
        report["frechet_distance"] = metrics.frechet_distance(*features)
        report["kernel_distance"] = metrics.kernel_distance(*features)
    if len(labels) > 3:
        report["precision"], report["recall"] = metrics.precision_recall(features[1], features[0])
    copies = metrics.near_copies(made.images, real, [pack.split("-")[0] for pack in packs])
    report["near_copies"] = {"share": copies.share, "expected_of_independent_drawings": copies.expected,
                             "threshold": copies.threshold, "median_distance": float(copies.distance.median())}  # fmt: skip
    report["real_training_pictures"] = recognition(evaluator, text_encoder, real, real_labels, real_labels)
    held_out = Path(settings.data) / HELD_OUT_ARCHIVE if settings.data else None
    if held_out is not None and held_out.is_file():
        other, other_labels = read_pictures(held_out, made.images.shape[-1], set(labels))
        control = metrics.near_copies(other, real, [pack.split("-")[0] for pack in packs])
        report["real_held_out_pictures"] = {
            **recognition(evaluator, text_encoder, other, other_labels, other_labels), "near_copies": control.share
        }  # fmt: skip
    report |= {"seconds_per_image": made.seconds, "evaluations_per_image": made.nfe}
    return report, made, labels


@torch.no_grad()
def composition(
    generator: Generator, evaluator: Evaluator, text_encoder: TextEncoder, settings: Settings
) -> tuple[Report, Made, list[str]]:
    """(report, pictures, their prompts) for coloured things that training never shows in that colour."""
    pairs = [pair for pair in HELD_OUT for _ in range(settings.repeats)]
    targets = _targets(evaluator, [pair.label for pair in pairs])
    prompts = [pair.prompt for pair in pairs]
    seeds = [fold(settings.seed, pair.prompt, i % settings.repeats) % 2**53 for i, pair in enumerate(pairs)]
    made = generate(generator, prompts, seeds, settings)
    colours = object_colours(made.images)
    top5 = (_by_parts(evaluator.classify, made.images).topk(5).indices == targets[:, None]).any(1).tolist()
    coloured = [colour == pair.colour for colour, pair in zip(colours, pairs, strict=True)]
    both = [a and b for a, b in zip(coloured, top5, strict=True)]

    def shares(part: slice) -> Report:
        found = {"colour": coloured[part], "object_top5": top5[part], "both": both[part]}
        return {name: sum(values) / len(values) for name, values in found.items()}

    rows = {}
    for start in range(0, len(pairs), settings.repeats):
        part = slice(start, start + settings.repeats)
        rows[prompts[start]] = {**shares(part), "colours_found": colours[part]}
    report = {"pictures": len(pairs), **shares(slice(None)), "seconds_per_image": made.seconds, "by_pair": rows}
    return report, made, prompts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m distill.evaluate", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="default", help="default, a model folder, or a hub id")
    parser.add_argument("--labels", default="common", help="common, all, or how many of the common ones (default: common)")
    parser.add_argument("--composition", action="store_true", help="ask for colours of things that training left out")
    parser.add_argument("--repeats", type=int, default=4, help="pictures per pair with --composition (default: 4)")
    parser.add_argument("--steps", type=int, help="sampling steps (default: the model's)")
    parser.add_argument("--guidance-scale", type=float, help="default: the model's")
    parser.add_argument("--sampler", help="default: the model's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--data", help="folder with emoji-train.zip, and emoji-test.zip for comparison (default: shipped)")
    parser.add_argument("--evaluator", help="folder of another evaluation network")
    parser.add_argument("--text-encoder", help="folder of the text encoder that the evaluation network was trained with")
    parser.add_argument("--out", type=Path, default=Path("outputs/evaluation"), help="folder of report.json and sheet.png")
    given = vars(parser.parse_args(arguments))
    out, wants_composition = given.pop("out"), given.pop("composition")
    try:
        if given["repeats"] < 1 or given["batch_size"] < 1:
            raise ValueError("--repeats and --batch-size must be at least 1.")
        settings = Settings(**given)
        from gen.generator import Generator

        evaluator, text_encoder = load_evaluator(settings.evaluator), load_text_encoder(settings)
        generator = Generator.from_pretrained(settings.model)
        run = composition if wants_composition else evaluate
        report, made, captions = run(generator, evaluator, text_encoder, settings)
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "report.json", {"settings": asdict(settings), **report})
        write_sheet(made.images, captions, out / "sheet.png")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print_table(report, f"{settings.model}: {'composition' if wants_composition else settings.labels + ' labels'}")
    print(f"Written: {out / 'report.json'}, {out / 'sheet.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
