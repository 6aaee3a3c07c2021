"""What is asked of the guided model, the energy that says so, and how well a finished picture does it.

Pictures are (B, 3, H, W) in [0, 1]. Scores are higher the better, and are never the energy itself: they look at the decoded
8-bit picture, with other networks or other measures. Pictures of "search" and of "table" have other subjects and seeds.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageColor
from torch import Tensor

from distill.data.emoji.archive import read_archive
from distill.data.emoji.captions import HELD_OUT, read_common
from distill.eval.colours import object_colours
from distill.networks.evaluator.augment import NUMBERS, augment
from distill.networks.evaluator.energy import LabelEnergy, TextEnergy, grams, style_distance
from distill.networks.evaluator.network import Evaluator
from gen.io.images import read_picture
from gen.rewards.pixels import mean_brightness
from gen.tasks.energies.simple import Brightness, Colour
from samplers.guidance.operators import LinearOperator, downsample, keep

TASKS = ("inpaint", "superres", "label", "colour", "brightness", "text", "style")
SIZE, HOLE, FACTOR = 128, 56, 4
COPIES = 4  # changed copies of a picture that a judge sees beside it
COLOURS = {"blue": "#2f6fd8", "green": "#3fae49", "red": "#d8372f", "purple": "#8b45c1", "pink": "#f08ab8", "teal": "#1f9e96"}


@dataclass(frozen=True)
class Subject:
    """One picture's request. noun: the everyday word it must still be recognised by; target: what the task makes of it;
    shown: what stands above it on the sheet."""

    prompt: str
    target: Any
    noun: str = ""
    caption: str = ""
    shown: Any = None


@dataclass(frozen=True)
class World:
    """What scores are made with. judge: not the network that energies use; restorable: where real pictures come from."""

    evaluator: Evaluator
    judge: Evaluator
    text_encoder: Any
    shipped: Path
    restorable: Path

    def probabilities(self, network: Evaluator, images: Tensor) -> Tensor:
        """(B, labels)"""
        scale = network.log_scale.exp().clamp(max=100)
        return (scale * network.classify(images * 2 - 1)).softmax(1)

    def kept(self, images: Tensor, subjects: Sequence[Subject]) -> Tensor:
        """(B,): how surely the evaluation network still sees each noun, under any of the labels that it is a word for."""
        words = read_common()
        found = self.probabilities(self.evaluator, images)
        rows = []
        for row, subject in zip(found, subjects, strict=True):
            labels = [i for i, n in enumerate(self.evaluator.labels) if subject.noun == n or subject.noun in words.get(n, ())]
            if not labels:
                raise ValueError(f"No label is called {subject.noun!r}.")
            rows.append(row[labels].sum())
        return torch.stack(rows)

    def changed(self, images: Tensor) -> list[Tensor]:
        """The pictures, and copies with other shapes, tones and outlines: a network that was led astray is not for long."""
        copies = [images]
        for k in range(COPIES):
            draw = torch.Generator().manual_seed(k)
            u = torch.rand(1, NUMBERS, generator=draw).expand(len(images), -1)
            noise = torch.randn(1, *images.shape[1:], generator=draw).expand(len(images), -1, -1, -1)
            copies.append((augment(images * 2 - 1, u, noise) + 1) / 2)
        return copies


Score = Callable[[World, Tensor, Sequence[Subject]], dict[str, Tensor]]


@dataclass(frozen=True)
class Task:
    """subjects: "search" and "table" -> requests, taken in turn; energy: of a batch, for its subjects in order; score: of
    finished pictures, "score" and its parts, each (B,). start: a strength to search from."""

    name: str
    about: str
    measure: str
    subjects: dict[str, list[Subject]]
    energy: Callable[[World, Sequence[Subject]], Callable[[Tensor, Any], Tensor]]
    score: Score
    start: float
    operator: LinearOperator | None = field(default=None, compare=False)


# ---- inverse problems ----


def operator_of(name: str) -> LinearOperator:
    if name == "superres":
        return downsample(FACTOR)
    mask, edge = torch.ones(1, 1, SIZE, SIZE), (SIZE - HOLE) // 2
    mask[..., edge : edge + HOLE, edge : edge + HOLE] = 0
    return keep(mask)


def residual(operator: LinearOperator, images: Tensor, targets: Tensor) -> Tensor:
    """Root of the summed square of y - A x (B,), pixels in [-1, 1]."""
    off = operator(images * 2 - 1) - operator(targets.to(images) * 2 - 1)
    return (off.flatten(1).square().sum(1) + 1e-6).sqrt()


def inverse(name: str, about: str, world: World) -> Task:
    operator, gain = operator_of(name), FACTOR if name == "superres" else 1
    pixels = SIZE * SIZE * 3 / gain**2

    def energy(world: World, subjects: Sequence[Subject]) -> Callable[[Tensor, Any], Tensor]:
        targets = torch.cat([s.target for s in subjects])
        return lambda images, condition: -gain * residual(operator, images, targets)

    def score(world: World, images: Tensor, subjects: Sequence[Subject]) -> dict[str, Tensor]:
        targets = torch.cat([s.target for s in subjects])
        psnr = -10 * (images - targets).flatten(1).square().mean(1).clamp(min=1e-12).log10()
        return {"score": psnr, "measurement": residual(operator, images, targets) / pixels**0.5 / 2}

    subjects: dict[str, list[Subject]] = {"search": [], "table": []}
    records, data, _ = read_archive(world.restorable)
    pack = sorted({r.pack for r in records})[0]
    drawings = {r.label: i for i, r in enumerate(records) if r.pack == pack}
    for split, wanted in INVERSE.items():
        for label in (label for label in wanted if label in drawings):
            whole = read_picture("picture", Image.open(io.BytesIO(data[drawings[label]]), formats=["WEBP"]), "RGB")
            damaged = operator(whole * 2 - 1) / 2 + 0.5
            subjects[split].append(Subject("", whole, label, label, damaged))
    return Task(name, about, "PSNR (dB)", subjects, energy, score, 2.0, operator)


# ---- labels, attributes, rewards, styles ----


def label(world: World) -> Task:
    def energy(world: World, subjects: Sequence[Subject]) -> Callable[[Tensor, Any], Tensor]:
        return LabelEnergy(network=world.evaluator, copies=3, labels=tuple(s.target for s in subjects))

    def score(world: World, images: Tensor, subjects: Sequence[Subject]) -> dict[str, Tensor]:
        labels = world.judge.labels
        everyday = [i for i, name in enumerate(labels) if name in read_common()]
        rows, places = range(len(images)), [everyday.index(labels.index(s.target)) for s in subjects]
        found = torch.stack([world.probabilities(world.judge, copy)[:, everyday] for copy in world.changed(images)]).mean(0)
        first = found.topk(5, 1).indices
        hit = torch.tensor([place in row for place, row in zip(places, first.tolist(), strict=True)]).float()
        return {"score": found[rows, places] / found.sum(1), "top-5": hit}

    subjects = {split: [Subject(prompt, name, name, name) for name, prompt in rows] for split, rows in LABELS.items()}
    return Task(
        "label", "a label of which the prompt says only the kind", "probability of the label", subjects, energy, score, 4.0
    )


def each_its_own(energies: Sequence[Callable[[Tensor, Any], Tensor]]) -> Callable[[Tensor, Any], Tensor]:
    """The energy of a batch whose pictures have one each."""
    return lambda images, c: torch.cat([one(images[i : i + 1], c) for i, one in enumerate(energies)])


def object_of(images: Tensor) -> Tensor:
    """(B, 1, H, W) in {0, 1}: what clearly differs from the border."""
    border = torch.cat([images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1]], 2).median(2).values
    return ((images - border[..., None, None]).abs().amax(1, keepdim=True) > 0.12).float()


def colour(world: World) -> Task:
    def energy(world: World, subjects: Sequence[Subject]) -> Callable[[Tensor, Any], Tensor]:
        return each_its_own([Colour(COLOURS[s.target], match="rgb") for s in subjects])

    def score(world: World, images: Tensor, subjects: Sequence[Subject]) -> dict[str, Tensor]:
        targets = torch.tensor([ImageColor.getrgb(COLOURS[s.target]) for s in subjects]) / 255
        apart = object_of(images)
        mean = (images * apart).sum((2, 3)) / apart.sum((2, 3)).clamp(min=1)
        near = torch.exp(-0.5 * (mean - targets).square().mean(1) / 0.2**2)
        kept = world.kept(images, subjects)
        named = [word == s.target for word, s in zip(object_colours(images * 2 - 1), subjects, strict=True)]
        return {"score": near * kept, "colour": near, "kept": kept, "named": torch.tensor(named).float()}

    subjects = {
        split: [Subject(f"a {noun}", word, noun, f"{word} {noun}") for noun, word in rows] for split, rows in COLOURED.items()
    }
    return Task("colour", "a colour that the prompt does not name", "colour x recognised", subjects, energy, score, 0.5)


def brightness(world: World) -> Task:
    def energy(world: World, subjects: Sequence[Subject]) -> Callable[[Tensor, Any], Tensor]:
        return each_its_own([Brightness(s.target) for s in subjects])

    def score(world: World, images: Tensor, subjects: Sequence[Subject]) -> dict[str, Tensor]:
        mean = mean_brightness(images)
        near = torch.exp(-0.5 * ((mean - torch.tensor([s.target for s in subjects])) / 0.1) ** 2)
        kept = world.kept(images, subjects)
        return {"score": near * kept, "brightness": near, "kept": kept, "mean": mean}

    subjects = {
        split: [Subject(f"a {noun}", DARK[i % 2], noun, f"{noun}, {DARK[i % 2]:g}") for i, noun in enumerate(nouns)]
        for split, nouns in DARKENED.items()
    }
    about = "a reward: how dark the picture is"
    return Task("brightness", about, "brightness x recognised", subjects, energy, score, 0.5)


def text(world: World) -> Task:
    def energy(world: World, subjects: Sequence[Subject]) -> Callable[[Tensor, Any], Tensor]:
        texts = tuple(s.target for s in subjects)
        return TextEnergy(network=world.evaluator, encoder=world.text_encoder, copies=3, texts=texts)

    def score(world: World, images: Tensor, subjects: Sequence[Subject]) -> dict[str, Tensor]:
        wanted = world.judge.embed_texts(world.text_encoder.pooled([s.target for s in subjects]))
        each = [(world.judge.embed(copy * 2 - 1) * wanted).sum(1) for copy in world.changed(images)]
        return {"score": torch.stack(each).mean(0), "kept": world.kept(images, subjects)}

    pairs = [(pair.prompt, pair.noun) for pair in HELD_OUT]
    rows = {"search": [(f"a {colour} {noun}", noun) for colour, noun in OTHERS], "table": pairs}
    subjects = {split: [Subject(prompt, prompt, noun, prompt) for prompt, noun in found] for split, found in rows.items()}
    return Task("text", "a reward: likeness to the prompt", "cosine with the prompt", subjects, energy, score, 1.0)


def style(world: World) -> Task:
    def distance(network: Evaluator, subjects: Sequence[Subject]) -> Callable[[Tensor], Tensor]:
        with torch.no_grad():
            wanted = grams(network, torch.cat([s.target for s in subjects]) * 2 - 1)
        return lambda images: style_distance(grams(network, images * 2 - 1), wanted)

    def energy(world: World, subjects: Sequence[Subject]) -> Callable[[Tensor, Any], Tensor]:
        measured = distance(world.evaluator, subjects)
        return lambda images, condition: -10 * measured(images)

    def score(world: World, images: Tensor, subjects: Sequence[Subject]) -> dict[str, Tensor]:
        near, kept = torch.exp(-distance(world.judge, subjects)(images)), world.kept(images, subjects)
        return {"score": near * kept, "style": near, "kept": kept}

    records, data, _ = read_archive(world.shipped)
    drawings = {r.label: i for i, r in enumerate(records) if r.style == "noto"}

    def subject(noun: str, reference: str) -> Subject:
        picture = Image.open(io.BytesIO(data[drawings[reference]]), formats=["WEBP"])
        target = read_picture("picture", picture, "RGB")
        return Subject(f"a {noun}", target, noun, f"{noun}, like {reference}", target)

    subjects = {split: [subject(*row) for row in rows] for split, rows in STYLED.items()}
    return Task("style", "the style of one picture", "style x recognised", subjects, energy, score, 1.0)


def all_tasks(world: World) -> dict[str, Task]:
    hole = f"a hole of {HOLE} x {HOLE} in a drawing"
    return {
        "inpaint": inverse("inpaint", hole, world),
        "superres": inverse("superres", f"a drawing at {SIZE // FACTOR} x {SIZE // FACTOR}", world),
        "label": label(world),
        "colour": colour(world),
        "brightness": brightness(world),
        "text": text(world),
        "style": style(world),
    }


INVERSE = {
    "search": ["fox", "mushroom", "lemon", "rocket", "snail", "key", "penguin", "cherries"],
    "table": ["panda", "rose", "red apple", "house", "octopus", "hamburger", "owl", "sailboat"],
}
LABELS = {
    "search": [("fox", "an animal"), ("pizza", "food"), ("rocket", "a vehicle"), ("penguin", "a bird"), ("rose", "a flower"),
               ("lemon", "a fruit"), ("key", "a tool"), ("umbrella", "a thing")],
    "table": [("panda", "an animal"), ("cactus", "a plant"), ("strawberry", "a fruit"), ("octopus", "a sea animal"),
              ("hamburger", "food"), ("red heart", "a symbol"), ("sunflower", "a flower"), ("ghost", "a monster")],
}  # fmt: skip
COLOURED = {
    "search": [("dog", "blue"), ("tree", "red"), ("penguin", "purple"), ("pizza", "green"), ("fox", "teal"), ("pig", "blue"),
               ("elephant", "red"), ("owl", "green"), ("turtle", "purple"), ("robot", "teal"), ("bus", "blue"),
               ("star", "purple"), ("butterfly", "red"), ("lion", "blue"), ("snake", "pink"), ("lemon", "red")],
    "table": [("house", "blue"), ("cat", "green"), ("car", "purple"), ("mushroom", "blue"), ("fish", "red"),
              ("rose", "blue"), ("bear", "teal"), ("panda", "pink")],
}  # fmt: skip
DARK = (0.35, 0.5)  # mean brightness; of drawings on white it is about 0.8
DARKENED = {
    "search": ["dog", "tree", "penguin", "pizza", "fox", "pig", "elephant", "owl", "turtle", "robot", "bus", "star",
               "butterfly", "lion", "snake", "lemon"],
    "table": ["house", "cat", "car", "mushroom", "fish", "rose", "bear", "panda"],
}  # fmt: skip
OTHERS = [("blue", "cat"), ("red", "penguin"), ("green", "pig"), ("pink", "tree"), ("purple", "fox"), ("blue", "rose"),
          ("orange", "car"), ("red", "elephant"), ("green", "owl"), ("blue", "turtle"), ("pink", "robot"), ("purple", "star"),
          ("green", "bus"), ("red", "lion"), ("blue", "butterfly"), ("orange", "snake")]  # fmt: skip
STYLED = {
    "search": [("cat", "strawberry"), ("house", "fire"), ("car", "watermelon"), ("tree", "zebra"), ("fish", "pizza")],
    "table": [("dog", "watermelon"), ("mushroom", "zebra"), ("fox", "fire"), ("bear", "strawberry"), ("house", "watermelon"),
              ("cat", "zebra"), ("rose", "rainbow"), ("pig", "fire")],
}  # fmt: skip
