"""CP-CLIP and TI-CLIP: are all concepts in a picture and like themselves, and does it show the rest of its text? The two
measures of Gen4Gen (arXiv 2402.15504), by what its abstract says that they are; these formulas are ours.

    CP-CLIP = mean over the concepts of max over the crops where one is found of cos(crop, its pictures), 0 where none is
    TI-CLIP = cos(picture, text), the text of what is around the concepts

The first is about composition and personalisation together: a concept that is missing, or that is another's, counts for
nothing. The second falls where a model has learned its pictures by heart and draws their background whatever it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from customization.scenes.placing import Box

EmbedPictures = Callable[[Tensor], Tensor]  # (N, 3, H, W) in [0, 1] -> unit rows (N, E)
EmbedTexts = Callable[[Sequence[str]], Tensor]  # N texts -> unit rows (N, E)
Detect = Callable[[Tensor, str], Sequence[Box]]  # (a picture (1, 3, H, W), a concept's name) -> boxes where it is, as shares


@dataclass(frozen=True)
class Judge:
    """What embeds pictures and texts in one space."""

    pictures: EmbedPictures
    texts: EmbedTexts


def shipped_judge() -> Judge:
    """The evaluation network, with the default model's text encoder."""
    from distill.eval.model_scores import ScoreSettings, load_text_encoder
    from distill.networks.evaluator.network import load_evaluator

    network, encoder = load_evaluator(None).eval().requires_grad_(False), load_text_encoder(ScoreSettings())
    return Judge(lambda images: network.embed(images * 2 - 1), lambda texts: network.embed_texts(encoder.pooled(list(texts))))


def clip_judge(model: Any) -> Judge:
    """A CLIP of the user's, as (model, tokenizer), or where it is."""
    from gen.rewards.clip import embed_images, embed_texts, load_clip

    network, tokenizer = load_clip(model) if isinstance(model, str) else model
    return Judge(lambda images: embed_images(network, images), lambda texts: embed_texts(network, tokenizer, texts))


def crop(picture: Tensor, box: Box) -> Tensor:
    """(1, 3, h, w): what a box (shares) shows of a picture (1, 3, H, W), at least a pixel."""
    height, width = picture.shape[2:]
    left, top = min(int(box[0] * width), width - 1), min(int(box[1] * height), height - 1)
    right, bottom = max(round((box[0] + box[2]) * width), left + 1), max(round((box[1] + box[3]) * height), top + 1)
    return picture[:, :, top:bottom, left:right]


@torch.no_grad()
def cp_clip(
    pictures: Sequence[Tensor], references: Mapping[str, Tensor], judge: Judge, detect: Detect, floor: float = 0.0
) -> dict[str, float]:
    """Mean over pictures of CP-CLIP, and of every concept's share in it; names -> numbers, "all" for the whole.

    pictures: (1, 3, H, W) in [0, 1], which are to show every concept. references: concept -> its own pictures (N, 3, h, w), cut
    out. detect: where it is. floor: a cosine below this counts as nothing.
    """
    if not pictures or not references:
        raise ValueError("CP-CLIP is of pictures and concepts; give one or more of both.")
    own = {name: F.normalize(judge.pictures(images.float()).mean(0), dim=0) for name, images in references.items()}
    totals = dict.fromkeys(references, 0.0)
    for picture in pictures:
        for name, direction in own.items():
            crops = [crop(picture.float(), box) for box in detect(picture, name)]
            likeness = [float(judge.pictures(one)[0] @ direction) for one in crops]
            best = max(likeness, default=0.0)
            totals[name] += best if best > floor else 0.0
    each = {name: total / len(pictures) for name, total in totals.items()}
    return {**each, "all": sum(each.values()) / len(each)}


@torch.no_grad()
def ti_clip(pictures: Sequence[Tensor], texts: Sequence[str], judge: Judge) -> float:
    """Mean cosine of pictures and texts, one each."""
    if not pictures or len(pictures) != len(texts):
        raise ValueError(f"TI-CLIP is of pictures with a text each; there are {len(pictures)} pictures and {len(texts)} texts.")
    rows = judge.texts(list(texts))
    seen = torch.cat([judge.pictures(picture.float()) for picture in pictures])
    return float((seen * rows.to(seen)).sum(1).mean())


def detect_by_judge(judge: Judge, references: Mapping[str, Tensor], windows: Sequence[float] = (0.35, 0.5, 0.7, 1.0)) -> Detect:
    """Where no detector is given: windows over the picture, each the concept's whose pictures it is most like, the best window
    of a concept being where it is. A concept to which no window is nearest is not there."""
    own = {name: F.normalize(judge.pictures(images.float()).mean(0), dim=0) for name, images in references.items()}
    names = list(own)
    directions = torch.stack([own[name] for name in names])
    boxes = [(x, y, side, side) for side in windows for x in _starts(side) for y in _starts(side)]

    @torch.no_grad()
    def detect(picture: Tensor, name: str) -> Sequence[Box]:
        size = picture.shape[2:]
        seen = [F.interpolate(crop(picture.float(), box), size, mode="bilinear", align_corners=False) for box in boxes]
        scores = judge.pictures(torch.cat(seen)) @ directions.T.to(picture.device)  # (windows, concepts)
        column = names.index(name)
        scores[scores.argmax(1) != column, column] = -1
        best = int(scores[:, column].argmax())
        return [boxes[best]] if float(scores[best, column]) > -1 else []

    return detect


def _starts(side: float) -> list[float]:
    """Where windows of a side begin, half a side apart, the last at the edge."""
    if side >= 1:
        return [0.0]
    count = max(2, round((1 - side) / (side / 2)) + 1)
    return [i * (1 - side) / (count - 1) for i in range(count)]
