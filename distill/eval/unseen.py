"""How much better a model knows the drawings that it was trained on: its error of x0 on these and on held-out ones.

A picture is encoded, noised to a level, and denoised in one evaluation under its own label. A network that has understood
what a cat is makes the same error on a drawing of a cat that it never saw; one that remembers its drawings does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.data.emoji.archive import DrawingRecord
from distill.data.emoji.data import split_of
from samplers.denoiser import Context
from samplers.noise import normal

if TYPE_CHECKING:
    from gen.generator import Generator

TIMES = (0.3, 0.5, 0.7)  # sigma / (alpha + sigma)
MOST = 256  # drawings of each part


@torch.no_grad()
def x0_error(generator: Generator, pictures: Tensor, prompts: Sequence[str], time: float, batch_size: int = 32) -> float:
    """The mean squared error of x0, in what the denoiser works on, of pictures (N, 3, H, W) in [-1, 1] noised to sigma /
    (alpha + sigma) = time. Noise is drawn by the picture's place."""
    level = generator.denoiser.path.at_logsnr(float(torch.tensor((1 - time) / time, dtype=torch.float64).log()))
    total = 0.0
    for start in range(0, len(pictures), batch_size):
        part = pictures[start : start + batch_size].to(generator.device)
        x0 = part if generator.autoencoder is None else generator.autoencoder.encode(part) * generator.config.latent_scale
        eps = normal(range(start, start + len(part)), x0.shape[1:], "x0 error").to(x0)
        condition = generator.encode_prompt(list(prompts[start : start + len(part)]))
        predicted = generator.denoiser(level.mix(x0, eps), level, condition, Context()).x0
        total += float((predicted.float() - x0.float()).square().flatten(1).mean(1).double().sum())
    return total / len(pictures)


def split_rows(records: Sequence[DrawingRecord], most: int | None = None) -> dict[str, list[int]]:
    """The rows of `records` in each split, as many of both and at most `most`, evenly chosen; {} where a split has none."""
    rows: dict[str, list[int]] = {"train": [], "held_out": []}
    for row, record in enumerate(records):
        rows[split_of(record)].append(row)
    count = min(len(records) if most is None else most, *(len(members) for members in rows.values()))
    return {split: [members[i * len(members) // count] for i in range(count)] for split, members in rows.items() if count}


def by_split(
    generator: Generator, records: Sequence[DrawingRecord], pictures: Tensor, labels: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Level -> x0 errors of the drawings of each split, and held-out over train. Empty where a split has no drawing.

    pictures (N, 3, H, W) and labels: of `records`, in their order. As many drawings of each split, evenly chosen.
    """
    rows, report = split_rows(records, MOST), {}
    for time in TIMES if rows else ():
        errors = {
            split: x0_error(generator, pictures[chosen], [labels[row] for row in chosen], time)
            for split, chosen in rows.items()
        }
        report[f"t = {time}"] = {**errors, "held_out_over_train": errors["held_out"] / max(errors["train"], 1e-12)}
    return report
