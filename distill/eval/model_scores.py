"""A finished model in numbers: its pictures of each label, as the evaluation network sees them, and beside real ones.

Pictures of each label are made through `gen.Generator` and shown to the evaluation network, which never saw a generated
picture. Images are (N, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gen
from distill.data.emoji.archive import DrawingRecord, read_archive
from distill.data.emoji.captions import HELD_OUT, read_common
from distill.data.emoji.data import SHIPPED as SHIPPED_DATA
from distill.eval import metrics
from distill.eval.colours import object_colours
from distill.eval.unseen import by_split, split_rows
from distill.networks.evaluator.network import Evaluator
from distill.networks.evaluator.pictures import read_pictures
from gen.generator import Generator
from gen.models.components import load_component
from gen.nn.text_encoder import TextEncoder
from samplers.noise import fold

Report = dict[str, Any]

HELD_OUT_ARCHIVE = "emoji-test.zip"


@dataclass(frozen=True)
class ScoreSettings:
    """What is generated and what it is compared with."""

    model: str = "default"
    labels: str = "common"  # common, all, or how many of the common ones
    steps: int | None = None  # None: the model's own
    guidance_scale: float | None = None
    sampler: str | None = None
    seed: int = 0
    repeats: int = 4  # pictures per held-out pair
    per_label: int = 1  # pictures of each label
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
        raise ValueError(f"{path} does not exist; build it with python -m distill.data.emoji.build, or give another --data.")
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


def draw(
    generator: Generator, prompts: Sequence[str], seeds: Sequence[int], settings: ScoreSettings
) -> Iterator[tuple[Tensor, float, float]]:
    """(pictures (B, 3, H, W) in [-1, 1], seconds, evaluations) of each batch in turn, with a progress bar."""
    from tqdm import tqdm

    with tqdm(total=len(prompts), unit="picture", desc="drawing") as bar:
        for first in range(0, len(prompts), settings.batch_size):
            chosen, start = slice(first, first + settings.batch_size), time.perf_counter()
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
            images = output.images.float().cpu() * 2 - 1
            yield images, time.perf_counter() - start, output.nfe * len(images)
            bar.update(len(images))


def generate(generator: Generator, prompts: Sequence[str], seeds: Sequence[int], settings: ScoreSettings) -> Made:
    """One picture per prompt. The time of each is the median over batches, so that a slow first one does not count."""
    parts, seconds, evaluations = zip(*draw(generator, prompts, seeds, settings), strict=True)
    each = sorted(time / len(part) for time, part in zip(seconds, parts, strict=True))
    return Made(torch.cat(parts), each[len(each) // 2], sum(evaluations) / len(prompts))


def subjects(settings: ScoreSettings, labels: Sequence[str]) -> tuple[list[str], list[int]]:
    """(labels, each `per_label` times; a seed for each, which depends on nothing but the label and which one it is)."""
    jobs = [(label, number) for number in range(settings.per_label) for label in labels]
    seeds = [fold(settings.seed, label, *([number] if number else [])) % 2**53 for label, number in jobs]
    return [label for label, _ in jobs], seeds


def load_text_encoder(settings: ScoreSettings) -> TextEncoder:
    """The text encoder whose sentence embeddings the evaluation network reads."""

    folder = settings.text_encoder or Path(gen.__file__).parent / "weights" / "default" / "text_encoder"
    encoder = load_component(folder, "text_encoder")
    assert isinstance(encoder, TextEncoder)
    return encoder


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


def drawn_labels(settings: ScoreSettings, evaluator: Evaluator) -> list[str]:
    """The labels that the settings ask for, of those that training pictures show and the evaluation network knows."""
    records, _, concepts = read_archive(training_archive(settings.data))
    drawn = {record.label for record in records}
    labels = choose_labels(settings.labels, [c for c in concepts if c in drawn], list(read_common()))
    _targets(evaluator, labels)
    return labels


def set_distances(made: Tensor, real: Tensor) -> Report:
    """How far features of generated pictures (N, D) are from those of real ones (M, D); some numbers need four of each."""
    report = {"frechet_distance": metrics.frechet_distance(made, real), "kernel_distance": metrics.kernel_distance(made, real)}
    if min(len(made), len(real)) > 3:
        report["precision"], report["recall"] = metrics.precision_recall(real, made)
    return report


@torch.no_grad()
def compare_splits(
    evaluator: Evaluator,
    text_encoder: TextEncoder,
    made: Tensor,
    records: Sequence[DrawingRecord],
    real: Tensor,
    labels: Sequence[str],
) -> dict[str, dict[str, float]]:
    """Measure -> its value for each split's drawings, as many of both: how well they are recognised, and how far the generated
    pictures `made` are from them. {} where a split has no drawing. records, real, labels: of the drawings, in one order."""
    report: dict[str, dict[str, float]] = {}
    features = _by_parts(evaluator.features, made)
    for split, rows in split_rows(records).items():
        chosen, pictures = [labels[row] for row in rows], real[rows]
        found = recognition(evaluator, text_encoder, pictures, chosen, chosen)
        values = {"top1 of real drawings": found["top1"], "top5 of real drawings": found["top5"]}
        if min(len(rows), len(made)) > 1:
            values["frechet distance"] = metrics.frechet_distance(features, _by_parts(evaluator.features, pictures))
        for name, value in values.items():
            report.setdefault(name, {})[split] = value
    return report


@torch.no_grad()
def evaluate(
    generator: Generator, evaluator: Evaluator, text_encoder: TextEncoder, settings: ScoreSettings
) -> tuple[Report, Made, list[str]]:
    """(report, pictures, their labels) for one picture per label."""
    archive = training_archive(settings.data)
    records, _, _ = read_archive(archive)
    once = drawn_labels(settings, evaluator)
    labels, seeds = subjects(settings, once)
    made = generate(generator, labels, seeds, settings)

    real, real_labels = read_pictures(archive, made.images.shape[-1], set(labels))
    packs = [record.pack for record in records if record.label in set(labels)]
    report: Report = {
        "labels": len(once),
        "pictures": len(labels),
        **recognition(evaluator, text_encoder, made.images, labels, labels),
        **metrics.edges(made.images),
    }
    if len(labels) > 1 and len(real) > 1:
        report |= set_distances(*(_by_parts(evaluator.features, images) for images in (made.images, real)))
    copies = metrics.near_copies(made.images, real, [pack.split("-")[0] for pack in packs])
    report["near_copies"] = {"share": copies.share, "expected_of_independent_drawings": copies.expected,
                             "threshold": copies.threshold, "median_distance": float(copies.distance.median())}  # fmt: skip
    report["real_training_pictures"] = {
        **recognition(evaluator, text_encoder, real, real_labels, real_labels), **metrics.edges(real)
    }  # fmt: skip
    drawn = [record for record in records if record.label in set(labels)]
    report["by_split"] = compare_splits(evaluator, text_encoder, made.images, drawn, real, real_labels)
    if hasattr(generator, "denoiser"):
        report["by_split"] |= {
            f"x0 error, {level}": row for level, row in by_split(generator, drawn, real, real_labels).items()
        }
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
    generator: Generator, evaluator: Evaluator, text_encoder: TextEncoder, settings: ScoreSettings
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
