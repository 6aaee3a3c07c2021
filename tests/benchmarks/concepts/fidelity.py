"""How like a concept a picture is: a linear discriminant between its held-out pictures and others, and how well that works.

Style: Gram matrices of the evaluation network's first stage (Gatys et al. 2016), between drawings of the family and those of
other families with the same labels. Subject: means and deviations of every stage and the pooled features, between pictures of
the subject and its look-alikes. Half of the pictures fit the discriminant; the other half says how far it can be believed.
Pictures are (N, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.data.emoji.archive import read_archive
from distill.data.emoji.recolor import BACKGROUNDS
from distill.networks.evaluator.energy import grams
from distill.networks.evaluator.network import Evaluator
from samplers.noise import fold

RIDGE = 0.1  # of the discriminant, for standardised features
PICTURES = (".png", ".webp", ".jpg", ".jpeg")
Features = Callable[[Evaluator, Tensor], Tensor]


def style_features(judge: Evaluator, images: Tensor) -> Tensor:
    """(N, C (C + 1) / 2)"""
    gram = grams(judge, images)[0]
    upper = torch.triu_indices(*gram.shape[1:])
    return gram[:, upper[0], upper[1]].double()


def subject_features(judge: Evaluator, images: Tensor) -> Tensor:
    """(N, D)"""
    stages = judge.stages(images)
    moments = [f(stage) for stage in stages for f in (lambda s: s.mean((2, 3)), lambda s: s.std((2, 3)))]
    return torch.cat([*moments, judge.features(images)], 1).double()


@dataclass(frozen=True)
class Likeness:
    """A picture's likeness to a concept: on held-out pictures 1 on average for the concept's own, 0 for others."""

    features: Features
    judge: Evaluator
    mean: Tensor
    weight: Tensor
    ceiling: dict[str, float]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """(N,)"""
        found = [self.features(self.judge, part) for part in images.split(64)]
        return (torch.cat(found) - self.mean) @ self.weight


@torch.no_grad()
def fit(features: Features, judge: Evaluator, own: Tensor, others: Tensor) -> Likeness:
    """The least-squares discriminant, both sides weighing the same, from the first half of each; the rest is held out."""
    sides = [torch.cat([features(judge, part) for part in images.split(64)]) for images in (own, others)]
    if min(len(side) for side in sides) < 4:
        raise ValueError(f"Likeness needs four pictures of a concept and four of others, not {len(own)} and {len(others)}.")
    taught, held = [s[: len(s) // 2] for s in sides], [s[len(s) // 2 :] for s in sides]
    x = torch.cat(taught)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    target = torch.cat([torch.full((len(s),), sign, dtype=x.dtype) for s, sign in zip(taught, (1.0, -1.0), strict=True)])
    share = torch.cat([torch.full((len(s),), 0.5 / len(s), dtype=x.dtype) for s in taught])
    z = (x - mean) / scale
    middle = share @ z
    z, weighted = z - middle, (z - middle) * share[:, None]
    weight = torch.linalg.solve(weighted.T @ z + RIDGE * torch.eye(z.shape[1], dtype=x.dtype), weighted.T @ target) / scale
    first, second = ((s - mean) @ weight for s in held)
    low, width = second.mean(), first.mean() - second.mean()
    if width <= 0:
        raise ValueError(
            "The evaluation network does not tell the concept's pictures from the others at all; use another judge."
        )
    mean, weight = mean + weight * low / weight.square().sum(), weight / width
    first, second = ((s - mean) @ weight for s in held)
    order = torch.cat([first, second]).argsort().argsort().double() + 1
    auc = (order[: len(first)].sum() - len(first) * (len(first) + 1) / 2) / (len(first) * len(second))
    ceiling = {
        "auc": auc.item(),
        "own recognised": (first > 0.5).double().mean().item(),
        "others taken for it": (second > 0.5).double().mean().item(),
        "own pictures": len(first),
        "other pictures": len(second),
    }
    return Likeness(features, judge, mean, weight, ceiling)


# ---- pictures ----


def on(picture: Image.Image, colour: tuple[int, int, int], size: int) -> Tensor:
    """(3, size, size) in [-1, 1], what is transparent in the colour."""
    rgba = picture.convert("RGBA")
    rgb = Image.alpha_composite(Image.new("RGBA", rgba.size, colour), rgba).convert("RGB")
    if rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BOX if min(rgb.size) >= size else Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(rgb).copy()).permute(2, 0, 1) / 127.5 - 1


def read_folder(folder: Path, size: int) -> Tensor:
    """Its pictures in the order of a shuffled list, so that halves are alike."""
    paths = sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURES), key=lambda p: fold(0, "order", p.name))
    if not paths:
        raise ValueError(f"{folder} has no pictures ({', '.join(PICTURES)}).")
    found = []
    for path in paths:
        with Image.open(path, formats=["PNG", "WEBP", "JPEG"]) as picture:
            found.append(on(picture, (255, 255, 255), size))
    return torch.stack(found)


def read_drawings(archives: Sequence[Path], labels: Sequence[str], size: int, each: int) -> Tensor:
    """Drawings of the labels in their order, up to `each` of a label, on white and on colours in turn."""
    colours, by_label = list(BACKGROUNDS.values()), {label: [] for label in labels}
    for archive in archives:
        records, data, _ = read_archive(archive)
        for record, picture in zip(records, data, strict=True):
            if record.label in by_label:
                by_label[record.label].append((record.file_name, picture))
    found = []
    for label, drawings in by_label.items():
        for name, data in sorted(drawings, key=lambda d: fold(0, "chosen", d[0]))[:each]:
            draw = fold(0, "background", label, name)
            colour = (255, 255, 255) if draw % 2 else colours[draw // 2 % len(colours)]
            found.append(on(Image.open(io.BytesIO(data), formats=["WEBP"]), colour, size))
    if not found:
        raise ValueError(f"{', '.join(map(str, archives))}: none of the {len(labels)} labels is there.")
    return torch.stack(found)


def labels_of(archive: Path, without: Collection[str], count: int) -> list[str]:
    """`count` labels of an archive, drawn at random but always the same; not those that were taught."""
    known = {record.label for record in read_archive(archive)[0]} - set(without)
    return sorted(known, key=lambda label: fold(0, "label", label))[:count]


def background(images: Tensor) -> list[str]:
    """The name of the colour that most of each picture's border has."""
    edge = torch.cat([images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1]], 2).median(2).values
    known = {"white": (255, 255, 255), **BACKGROUNDS}
    colours = torch.tensor(list(known.values())) / 127.5 - 1
    return [list(known)[i] for i in torch.cdist(edge, colours).argmin(1).tolist()]
