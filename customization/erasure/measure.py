"""Is it forgotten, and is all else still there? Pictures of both, before and after, and how often a judge finds their prompt.

A picture counts as found if, of all texts in question, its own fits it best: the concept, what is drawn instead, what is kept.
The rate of the concept should fall to that of chance or below, those of the others stay. Any reward of `gen.rewards` that reads
prompts is a judge: the shipped evaluation network, or a CLIP of the user's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gen.generator import Generator
from gen.rewards import Reward


@dataclass(frozen=True)
class Measured:
    """pictures: by prompt, (N, 3, H, W) in [0, 1]. rates: by prompt, the share of them that the judge finds."""

    pictures: Mapping[str, Tensor]
    rates: Mapping[str, float]


def draw(generator: Generator, prompts: Sequence[str], count: int, steps: int | None = None) -> dict[str, Tensor]:
    """`count` pictures of each prompt; those of one number have one seed, with or without an adapter in force."""
    made = generator(
        [prompt for prompt in prompts for _ in range(count)],
        seeds=list(range(count)) * len(prompts),
        num_inference_steps=steps,
        output_type="pt",
        batch_size=8,
        progress=False,
    ).images
    return dict(zip(prompts, made.float().cpu().split(count), strict=True))


@torch.no_grad()
def found_rate(judge: Reward, images: Tensor, texts: Sequence[str], own: int) -> float:
    """The share of pictures (N, 3, H, W) that text number `own` fits better than all others."""
    scores = torch.stack([judge(images, [text] * len(images)) for text in texts])  # (texts, N)
    return float((scores.argmax(0) == own).double().mean())


def measure(generator: Generator, judge: Reward, prompts: Sequence[str], count: int, steps: int | None = None) -> Measured:
    """What the generator draws of each prompt as it is now, and how often it is found among all of them."""
    pictures = draw(generator, prompts, count, steps)
    rates = {prompt: found_rate(judge, images, prompts, i) for i, (prompt, images) in enumerate(pictures.items())}
    return Measured(pictures, rates)
