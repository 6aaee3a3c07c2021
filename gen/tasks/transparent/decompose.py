"""A picture taken apart: a thing with alpha, and what is behind it, which together are the picture again.

LayeringDiff (arXiv 2501.01197): the opacity of the thing is found, what it hides is made anew by a generator, and the detail of
the layers is brought back from the picture. Here that last step is exact: where nothing covers the background it is the picture
to the bit, and where the thing is partly clear, what its colours cannot explain is the background's (`gen.io.alpha.lifted`,
`completed`). So the consistency of LayerDecomp (arXiv 2411.17864), |thing upon background - picture|, is zero but for rounding,
whatever opacity was found; shadows stay with the thing, as its black with alpha.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gen.io.alpha import completed, least_opacity, lifted, opaque, resized, upon
from gen.io.images import read_picture
from gen.io.openraster import LayerImage, LayerStack, to_picture
from gen.models.transparency import open_transparency
from gen.tasks.edit.task import encode, read_mask
from gen.tasks.transparent.running_on import run_on
from gen.tasks.transparent.things import connected
from samplers.denoiser import Context
from samplers.guidance.embedded import EmbeddedGuidance
from samplers.lookup import nearest
from samplers.noise import normal

FILLS = ("smooth", "model")
GROWN = 2  # pixels around a thing whose colours it may have touched
LEAST = 0.5 / 255  # opacity that is seen
SAMPLES, LEVEL = 4, 0.5  # of the search for what a prompt names: noises, and how far up the path's clock
NAMED = 0.5  # of the most that a prompt changes a thing: from here on it is the prompt's too


@dataclass(frozen=True)
class Decomposition:
    """picture, background: (1, 3, H, W); layer: (1, 4, H, W) with colours times alpha; in [0, 1]."""

    picture: Tensor
    layer: Tensor
    background: Tensor

    @property
    def consistency(self) -> float:
        """LayerDecomp's: the mean difference of the layers together and the picture, in [0, 1]."""
        return float((upon(self.layer, self.background) - self.picture).abs().mean())

    def stack(self, name: str = "thing") -> LayerStack:
        """As a file holds it, 8 bits a channel."""
        height, width = self.picture.shape[2:]
        below = LayerImage("background", to_picture(opaque(self.background)))
        return LayerStack(width, height, (below, LayerImage(name, to_picture(self.layer))))


def decompose(
    generator: Any,
    picture: Any,
    mask: Any = None,
    prompt: str | None = None,
    background: str | None = None,
    fill: str = "smooth",
    transparency: Any = None,
    *,
    progress: bool = True,
    **call: Any,
) -> Decomposition:
    """Take a picture apart.

    generator: a `Generator`, which fills in and reads the prompt.
    picture: a file, PIL picture, array or tensor. mask: the opacity of the thing, white where it is; found by the network of
    `transparency` (the shipped one if None) otherwise. prompt: of several things, those that it names. fill: what was hidden is
    made by "smooth", colours that run on from around it, or by "model", the generator, asked for `background` with the further
    keywords of a call, whose picture then runs on into what is around it. progress: show bars, in a terminal.
    Raises ValueError where nothing is found, or all of it.
    """
    if fill not in FILLS:
        near = nearest(fill, FILLS)
        hint = f" (did you mean {near!r}?)" if near else ""
        raise ValueError(f"fill is {fill!r:.80}{hint}; say how what was hidden is made: smooth or model.")
    if fill == "smooth" and (background is not None or call):
        other = "background" if background is not None else next(iter(call))
        raise ValueError(f"{other} is for the model that fills in; give fill='model' (--fill model) too.")
    if mask is not None and prompt is not None:
        raise ValueError("mask says which thing it is, and prompt too; give one of them.")
    given = read_picture("picture", picture, "RGB").double()
    if mask is None:
        alpha = open_transparency(generator, transparency).separate(given)[0][:, 3:].double()
        if prompt is not None:
            alpha = alpha * named(generator, given, alpha, prompt)
    else:
        alpha = resized(read_mask("mask", mask, given.float(), "picture").double(), *given.shape[2:])
    covered = float((alpha > LEAST).double().mean())
    if not covered and mask is not None:
        raise ValueError("Nothing of the mask is white, so that no thing is there; give one that is white where the thing is.")
    if not covered:
        raise ValueError("Nothing is found that stands before a background; give a mask (--mask) of the thing.")
    hole = (F.max_pool2d(alpha, 2 * GROWN + 1, 1, GROWN) > LEAST).double()
    if bool(hole.all()):
        raise ValueError("The thing covers the whole picture, so that nothing of a background is known; give a smaller mask.")
    made = _made(generator, given, hole, background, {"progress": progress, **call}) if fill == "model" else None
    behind = run_on(given, hole, made, progress=progress)
    if mask is None:  # what the background cannot be belongs to the thing
        alpha = torch.where(hole > 0, torch.maximum(alpha, least_opacity(given, behind)), alpha)
    layer = lifted(given, alpha, behind)
    return Decomposition(given, layer, completed(given, layer, behind))


def _made(generator: Any, picture: Tensor, hole: Tensor, prompt: str | None, call: dict[str, Any]) -> Tensor:
    """What a generator paints into a hole, at the picture's size."""
    given = {"image": picture.float()[0], "mask": hole.float()[0], "output_type": "pt", **call}
    if generator.text_encoder is not None:
        given["prompt"] = prompt or ""
    elif prompt is not None:
        raise ValueError(f"The model {generator.name!r} reads no text; leave background out.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The image is .* the picture is made at")  # it is brought back to size below
        made = generator(**given).images[:1].double()
    return resized(made, *picture.shape[2:])


@torch.no_grad()
def named(generator: Any, picture: Tensor, alpha: Tensor, prompt: str) -> Tensor:
    """(1, 1, H, W), 1 on those of several things that a prompt names.

    What the prompt changes most in the model's clean picture of the noised one is what it names (DiffEdit, arXiv 2210.11427);
    a thing is what hangs together in the opacity.
    """
    if generator.text_encoder is None:
        raise ValueError(f"The model {generator.name!r} reads no text, and cannot say what the prompt names; give a mask.")
    pieces = connected(alpha > 0.5)
    count = int(pieces.max())
    if count <= 1:
        warnings.warn(
            f"Only one thing stands before the background, and it is kept whether or not it is {prompt!r:.80}; for a part of "
            "it give a mask (--mask).",
            stacklevel=3,
        )
        return torch.ones_like(alpha)
    height, width = (
        max(round(side / generator.factor / generator.network.config.patch), 1)
        * generator.factor
        * generator.network.config.patch
        for side in picture.shape[2:]
    )
    latents = encode(generator, resized(picture, height, width).float().to(generator.device) * 2 - 1)
    path = generator.denoiser.path
    level, shape = path(LEVEL * path.t_noise), tuple(latents.shape[1:])
    noise = normal(range(SAMPLES), shape, "named", device=generator.device)
    x = level.mix(latents, noise)
    denoiser, defaults = generator.denoiser, generator.config.defaults
    if defaults.guidance == "embedded":  # such a network is always told a scale
        denoiser = EmbeddedGuidance(denoiser, defaults.guidance_scale)
    said, nothing = (
        denoiser(x, level, generator.encode_prompt([text] * SAMPLES, generator.adapters), Context()).x0.float()
        for text in (prompt, "")
    )
    change = (said - nothing).abs().mean((0, 1), keepdim=True).double().cpu()
    change = F.interpolate(change, picture.shape[2:], mode="bilinear", align_corners=False)
    scores = torch.stack([change[pieces == number].mean() for number in range(1, count + 1)])
    if bool((alpha <= LEAST).any()) and float(scores.max()) <= float(change[alpha <= LEAST].mean()):
        warnings.warn(
            f"The prompt {prompt!r:.80} changes the background more than any of the {count} things, so it may name none of "
            "them; what it changes most is kept. Say it in other words, or give a mask (--mask).",
            stacklevel=3,
        )
    kept = torch.zeros_like(alpha)
    for number in (scores >= NAMED * scores.max()).nonzero()[:, 0].tolist():
        kept = torch.maximum(kept, (pieces == number + 1).double())
    return _towards(kept, alpha, pieces)


def _towards(kept: Tensor, alpha: Tensor, pieces: Tensor) -> Tensor:
    """Things that are kept with their soft edges and shadows: what is fainter belongs to the thing that it is nearest to."""
    mine, others = kept > 0, (pieces > 0) & (kept == 0)
    while bool(((alpha > LEAST) & ~mine & ~others).any()):
        grown = [F.max_pool2d(one.double(), 3, 1, 1) > 0 for one in (mine, others)]
        free = (alpha > LEAST) & ~mine & ~others
        new_mine, new_others = free & grown[0], free & grown[1] & ~grown[0]
        if not bool((new_mine | new_others).any()):
            break
        mine, others = mine | new_mine, others | new_others
    return mine.double()
