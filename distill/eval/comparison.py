"""Models beside one another and beside the one that taught them, at several numbers of steps: a row of numbers for each.

Every model draws the same labels from the same seeds. Their noise is then the same too, so a student's picture can be held
against its teacher's, pixel by pixel, as well as all pictures against real ones. The reference's pictures are made once and
kept (distill/eval/references.py); when none had to be made, one batch is drawn again, for its time and to see that it still
agrees."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.checkpointing.digests import digest, weights_digest
from distill.eval.model_scores import (
    Made,
    Report,
    ScoreSettings,
    draw,
    drawn_labels,
    generate,
    recognition,
    set_distances,
    subjects,
    training_archive,
)
from distill.eval.references import ReferencePictures, in_8_bits
from distill.networks.evaluator.network import Evaluator
from distill.networks.evaluator.pictures import read_pictures
from distill.networks.features import Features

if TYPE_CHECKING:
    from gen.generator import Generator
    from gen.nn.text_encoder import TextEncoder

AGREES = 0.05  # root-mean-square difference, over [-1, 1], between a kept picture and one drawn again


@dataclass(frozen=True)
class ComparisonPlan:
    """Models by name, each at these numbers of steps (none: its own), and the model that they are held against."""

    models: tuple[str, ...]
    steps: tuple[int, ...] = ()
    reference: str | None = None
    reference_steps: int = 50
    reference_guidance_scale: float | None = None
    reference_sampler: str | None = None

    def runs(self, settings: ScoreSettings) -> Iterator[tuple[str, ScoreSettings]]:
        """(model, how it draws) of every row but the reference's."""
        for model in self.models:
            for steps in self.steps or (settings.steps,):
                yield model, replace(settings, model=model, steps=steps)

    def of_reference(self, settings: ScoreSettings) -> ScoreSettings:
        return replace(
            settings,
            model=self.reference or "",
            steps=self.reference_steps,
            guidance_scale=self.reference_guidance_scale,
            sampler=self.reference_sampler,
        )


@dataclass(frozen=True)
class Row:
    """One line of the table, and the pictures (N, 3, H, W) that it is about."""

    model: str
    numbers: Report
    images: Tensor


@torch.no_grad()
def compare(
    plan: ComparisonPlan,
    settings: ScoreSettings,
    open_model: Callable[[str], Generator],
    evaluator: Evaluator,
    text_encoder: TextEncoder,
    features: Features,
    references: ReferencePictures,
) -> tuple[list[Row], Report, list[str]]:
    """(rows, the reference's first; the scores of real pictures; the labels drawn)."""
    once = drawn_labels(settings, evaluator)
    labels, seeds = subjects(settings, once)
    if len(labels) < 2:
        raise ValueError("A comparison needs at least two pictures; ask for more labels, or more with --per-label.")
    real: dict[int, tuple[Tensor, Report]] = {}
    taught: tuple[Tensor, Tensor, tuple[int, ...]] | None = None
    rows: list[Row] = []
    opened: tuple[str, Generator] | None = None

    def score(model: str, how: ScoreSettings, made: Made, shape: tuple[int, ...]) -> Row:
        size = made.images.shape[-1]
        if size not in real:
            pictures, real_labels = read_pictures(training_archive(settings.data), size, set(once))
            real[size] = features(pictures), recognition(evaluator, text_encoder, pictures, real_labels, real_labels)
        feature_rows = features(made.images)
        numbers: Report = {"steps": how.steps, **recognition(evaluator, text_encoder, made.images, labels, labels)}
        numbers |= set_distances(feature_rows, real[size][0])
        if taught is not None:
            numbers |= {f"reference_{name}": value for name, value in set_distances(feature_rows, taught[1]).items()}
            if shape == taught[2]:  # else the same seeds are other noise
                numbers["distance_to_reference"] = float((made.images - taught[0]).square().mean((1, 2, 3)).sqrt().mean())
        numbers |= {"seconds_per_image": made.seconds, "evaluations_per_image": made.nfe}
        return Row(model, numbers, made.images)

    if plan.reference is not None:
        how, generator = plan.of_reference(settings), open_model(plan.reference)
        read_texts(generator, labels)
        made = kept_pictures(generator, labels, seeds, how, references)
        rows.append(score(plan.reference, how, made, noise_shape(generator)))
        taught = made.images, features(made.images), noise_shape(generator)
        opened = plan.reference, generator
    for model, how in plan.runs(settings):
        if opened is None or opened[0] != model:
            opened = None  # before the next is read: one model at a time in memory
            opened = model, open_model(model)
            read_texts(opened[1], labels)
        how = replace(how, steps=how.steps or opened[1].config.defaults.num_inference_steps)
        made = generate(opened[1], labels, seeds, how)
        rows.append(score(model, how, replace(made, images=in_8_bits(made.images)), noise_shape(opened[1])))
    [(_, scores), *_] = real.values()
    return rows, {"pictures_per_row": len(labels), "features": features.name, "real_training_pictures": scores}, labels


def read_texts(generator: Generator, labels: Sequence[str]) -> None:
    """Read all prompts, which a generator remembers: else the first of a model's rows alone would take the time for it."""
    if generator.text_encoder is not None:
        generator.encode_prompt(list(dict.fromkeys(labels)))


def noise_shape(generator: Generator) -> tuple[int, ...]:
    """What decides the noise that a seed gives: channels, pixels per latent pixel, pixels."""
    return generator.channels, generator.factor, generator.config.sample_size


def picture_keys(generator: Generator, labels: Sequence[str], seeds: Sequence[int], settings: ScoreSettings) -> list[str]:
    """A key for each picture: a hash of the weights, the model's config, how it is sampled, the prompt and the seed."""
    networks = {"denoiser": generator.network, "autoencoder": generator.autoencoder, "text_encoder": generator.text_encoder}
    model = generator.weights or weights_digest(networks)
    how = (settings.steps, settings.guidance_scale, settings.sampler, str(generator.dtype), generator.device.type)
    config = generator.config.model_dump_json()
    return [digest(1, model, config, how, label, seed) for label, seed in zip(labels, seeds, strict=True)]


def kept_pictures(
    generator: Generator, labels: Sequence[str], seeds: Sequence[int], settings: ScoreSettings, references: ReferencePictures
) -> Made:
    """The reference's pictures, from disk where they are there."""
    seconds, evaluations = [], []

    def make(missing: list[int]) -> Iterator[tuple[int, Tensor]]:
        done = 0
        for images, time, nfe in draw(generator, [labels[i] for i in missing], [seeds[i] for i in missing], settings):
            seconds.append(time / len(images))
            evaluations.append(nfe / len(images))
            for image in images:
                yield missing[done], image
                done += 1

    keys = picture_keys(generator, labels, seeds, settings)
    images, made = references.all(keys, make)
    if not made:
        for i, image in make(list(range(min(settings.batch_size, len(labels))))):
            apart = float((image - images[i]).square().mean().sqrt())
            if apart > AGREES:
                warnings.warn(
                    f"The kept picture of {labels[i]!r} ({references.path(keys[i])}) is not the one that the reference draws "
                    "now; delete the folder to have them made again.",
                    stacklevel=2,
                )
    return Made(images, sorted(seconds)[len(seconds) // 2], sum(evaluations) / len(evaluations))


COLUMNS = {
    "steps": "steps", "evaluations_per_image": "evaluations", "seconds_per_image": "seconds", "top1": "top-1", "top5": "top-5",
    "prompt_alignment": "alignment", "frechet_distance": "FD", "kernel_distance": "KID", "precision": "precision",
    "recall": "recall", "reference_frechet_distance": "FD to ref.", "reference_kernel_distance": "KID to ref.",
    "distance_to_reference": "RMSE to ref.",
}  # fmt: skip


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table that a terminal and a page both show."""
    named = {name: title for name, title in COLUMNS.items() if any(name in row.numbers for row in rows)}
    lines = [["model", *named.values()]]
    for row in rows:
        cells = [row.numbers.get(name) for name in named]
        lines.append(
            [
                row.model.replace("|", "\\|"),
                *("" if v is None else f"{v:.3g}" if isinstance(v, float) else str(v) for v in cells),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, [f"{'-' * (width - 1)}{'-' if i == 0 else ':'}" for i, width in enumerate(widths)])
    aligned = [[cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
               for line in lines]  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def sheet(rows: Sequence[Row], labels: Sequence[str], most: int = 10) -> tuple[Tensor, list[str], int]:
    """(pictures, captions, columns): a line of the same labels for every row."""
    count = min(most, len(labels))
    chosen = [i * len(labels) // count for i in range(count)]
    captions = [f"{row.model} {row.numbers['steps']}: {labels[i]}" for row in rows for i in chosen]
    return torch.cat([row.images[chosen] for row in rows]), captions, count
