"""Scenes of several concepts as training data: things are placed, a background is painted around them, and all is captioned.

Gen4Gen (arXiv 2402.15504): its stages are foregrounds by segmentation, boxes by a language model, backgrounds by inpainting,
and captions by a language model that sees the picture. Here each has a rule of ours, or takes what the user's model says.
The things stay what they were in their photos: they are laid over what was painted, with their soft edges.

A data set is a folder: images/00000.png with 00000.txt beside it, masks/00000.png (white on the things), scenes.json.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from customization.scenes.cutting import SingleConcept
from customization.scenes.placing import Box, SceneLayout, caption_of, find_rule, fitted
from gen.io.alpha import flattened, resized, upon
from gen.io.folders import written_folder
from gen.io.weights import write_bytes
from samplers.noise import fold

GREY = 0.5  # of a canvas before anything is painted
Paint = Callable[[Tensor, Tensor, str, int], Tensor]  # (picture (1, 3, H, W), hole (1, 1, H, W), background, seed) -> picture
Caption = Callable[[Any], str]  # of a PIL picture


@dataclass(frozen=True)
class ComposedScene:
    """picture: (1, 3, H, W) in [0, 1]. mask: (1, 1, H, W), how much of a pixel is a thing's. boxes: by concept, as shares."""

    picture: Tensor
    mask: Tensor
    boxes: Mapping[str, Box]
    caption: str


def placed(layer: Tensor, box: Box, height: int, width: int) -> Tensor:
    """A layer (1, 4, h, w) scaled into a box (shares) of a canvas (1, 4, height, width) that is clear elsewhere."""
    left, top = round(box[0] * width), round(box[1] * height)
    wide, tall = max(1, round(box[2] * width)), max(1, round(box[3] * height))
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    wide, tall = min(wide, width - left), min(tall, height - top)
    canvas = layer.new_zeros(1, 4, height, width)
    canvas[:, :, top : top + tall, left : left + wide] = resized(layer, tall, wide)
    return canvas


def compose(
    layers: Mapping[str, Tensor],
    boxes: Mapping[str, Box],
    background: str,
    paint: Paint,
    *,
    height: int,
    width: int,
    seed: int,
    caption: str | None = None,
    flip: Sequence[str] = (),
) -> ComposedScene:
    """One scene. layers: concept -> (1, 4, h, w) with colours times alpha, the lowest first; each keeps its shape, as large as
    its box allows. flip: concepts that are seen from the other side. caption: None for that of `caption_of`."""
    canvases, exact = [], {}
    for name, layer in layers.items():
        own = layer.flip(-1) if name in flip else layer
        exact[name] = fitted(boxes[name], own.shape[3] / own.shape[2] * height / width)
        canvases.append(placed(own, exact[name], height, width))
    things = flattened(canvases)
    mask = things[:, 3:]
    painted = paint(upon(things, torch.full_like(things[:, :3], GREY)), 1 - mask, background, seed)
    return ComposedScene(upon(things, painted.to(things)), mask, exact, caption or caption_of(exact, background))


def painter(generator: Any, template: str = "{}", **call: Any) -> Paint:
    """Backgrounds by a generator's inpainting. template: of its prompt, around the background's text."""

    def paint(picture: Tensor, hole: Tensor, background: str, seed: int) -> Tensor:
        prompt = template.format(background)
        given = {"prompt": prompt} if generator.text_encoder is not None else {}
        made = generator(
            **given, image=picture[0].float(), mask=(hole > 0.5)[0].float(), seed=seed, output_type="pt", progress=False, **call
        )
        return resized(made.images[:1].double().cpu(), *picture.shape[2:])

    return paint


def plain(colours: Sequence[tuple[float, float, float]]) -> Paint:
    """Backgrounds of one colour (red, green, blue in [0, 1]), drawn from these."""

    def paint(picture: Tensor, hole: Tensor, background: str, seed: int) -> Tensor:
        colour = colours[seed % len(colours)]
        return picture.new_tensor(colour).view(1, 3, 1, 1).expand_as(picture)

    return paint


def compose_all(
    concepts: Sequence[SingleConcept],
    paint: Paint,
    *,
    count: int,
    height: int,
    width: int,
    backgrounds: Sequence[str] = ("",),
    rule: str = "row",
    scenes: Sequence[SceneLayout] = (),
    flip: bool = False,
    seed: int = 0,
    captioner: Caption | None = None,
) -> Any:
    """Scenes one after another; scene i is a function of (seed, i).

    rule: of boxes; scenes: given ones instead, in turns. flip: half of the things are mirrored. captioner: writes the captions.
    ValueError for no concepts, or none for a given scene.
    """
    if not concepts:
        raise ValueError("There is no concept to compose; give two or more.")
    boxes_of = find_rule(rule)
    for number in range(count):
        own = fold(seed, "scene", number) % 2**53
        rng = random.Random(own)
        scene = scenes[number % len(scenes)] if scenes else None
        chosen = [one for one in concepts if scene is None or one.name in scene.boxes]
        views = {one.name: one.views[rng.randrange(len(one.views))].layer for one in chosen}
        background = (scene.background if scene else None) or backgrounds[rng.randrange(len(backgrounds))]
        if scene is None:
            aspects = [layer.shape[3] / layer.shape[2] * height / width for layer in views.values()]
            boxes = dict(zip(views, boxes_of(aspects, [one.size for one in chosen], rng), strict=True))
        else:
            boxes = dict(scene.boxes)
        mirrored = [name for name in views if flip and rng.random() < 0.5]
        caption = scene.caption if scene else None
        made = compose(views, boxes, background, paint, height=height, width=width, seed=own, caption=caption, flip=mirrored)
        if captioner is not None and caption is None:
            said = captioner(as_picture(made.picture))
            if not isinstance(said, str) or not said.strip():
                raise ValueError(f"The captioner gave {said!r:.80} for scene {number}; it must give a text.")
            made = ComposedScene(made.picture, made.mask, made.boxes, " ".join(said.split()))
        yield made


def as_picture(picture: Tensor) -> Image.Image:
    """8 bits a channel, of (1, 3 or 1, H, W) in [0, 1]."""
    array = (picture[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)


def write_scenes(folder: Path, made: Any) -> int:
    """The data set of some scenes in a new folder, which is there when it is whole; returns how many there are."""
    import io

    def png(picture: Tensor) -> bytes:
        data = io.BytesIO()
        as_picture(picture).save(data, "PNG")
        return data.getvalue()

    rows = []
    with written_folder(folder) as new:
        (new / "images").mkdir(parents=True)
        (new / "masks").mkdir()
        for number, scene in enumerate(made):
            name = f"{number:05d}"
            write_bytes(new / "images" / f"{name}.png", png(scene.picture))
            write_bytes(new / "images" / f"{name}.txt", f"{scene.caption}\n".encode())
            write_bytes(new / "masks" / f"{name}.png", png(scene.mask))
            rows.append(
                {"image": f"{name}.png", "caption": scene.caption, "boxes": {k: list(v) for k, v in scene.boxes.items()}}
            )
        write_bytes(new / "scenes.json", (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())
    return len(rows)
