"""Concepts in a picture that is laid out first: OMG (arXiv 2403.10983), by two calls of a `Generator`.

    1  an ordinary picture of the prompt, without the concepts' adapters: who stands where, and in front of whom
    2  the same noise again; from the log-SNR `start` on, inside each thing's mask, the prediction of that concept's own prompt
       and adapter; elsewhere that of the first stage

A mask comes from the caller, from a function of theirs (a segmentation model), or from what the model itself finds. Where masks
overlap predictions are averaged. The second picture is a layout (`gen.tasks.layout`), whose recipe replays without the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gen.io.images import read_picture
from gen.pipeline.output import Output

# After step 15 of 50 on Stable Diffusion's schedule, as published; the log-SNR there
START = -1.13
Segment = Callable[[Any, str], Any]  # (a PIL picture, what is to be found) -> a mask (H, W) in [0, 1]


@dataclass(frozen=True)
class PlacedConcept:
    """A concept: `thing` is what the layout's prompt calls it, by which it is found; `prompt` what is drawn there, with
    `adapters` (name -> weight, loaded already). mask: where, instead of looking; white inside, of the picture's size."""

    thing: str
    prompt: str
    adapters: Mapping[str, float] = field(default_factory=dict)
    mask: Any = None


@dataclass(frozen=True)
class TwoStages:
    """layout: the first stage's output. masks: thing -> (1, 1, H, W) in [0, 1]. picture: the second's."""

    layout: Output
    masks: Mapping[str, Tensor]
    picture: Output


def found_by_model(generator: Any, picture: Tensor, thing: str) -> Tensor:
    """(1, 1, H, W) in [0, 1]: what stands before the background of a picture (1, 3, H, W) in [0, 1], and of several things
    those that `thing` names. ValueError where nothing does."""
    from gen.models.transparency import open_transparency
    from gen.tasks.transparent.decompose import named

    alpha = open_transparency(generator, None).separate(picture.double())[0][:, 3:].double()
    if not bool((alpha > 0.5).any()):
        raise ValueError(f"Nothing is found that stands before the background, so {thing!r} is nowhere; give its mask.")
    return (alpha * named(generator, picture.double(), alpha, thing)).float()


def concepts_in_place(
    generator: Any,
    prompt: str,
    concepts: Sequence[PlacedConcept],
    *,
    start: float | None = START,
    segment: Segment | None = None,
    grow: int = 0,
    keep_outside: bool = False,
    **call: Any,
) -> TwoStages:
    """Draw the prompt, find the things, and draw the concepts in their places.

    prompt: of the layout, in which things have their ordinary names.
    start: log-SNR from which concepts act; lower is earlier, more of the concept and less of the layout. None: all of the run.
    segment: finds a thing in the layout, instead of `found_by_model`.
    grow: pixels by which masks reach further.
    keep_outside: outside of all masks the picture is the layout's to the bit, and has no recipe.
    call: further keywords of the call (seed, steps, size, ...), of both stages. One picture.
    ValueError for no concepts, a mask that is empty or does not fit, and an adapter that is not loaded.
    """
    if not concepts:
        raise ValueError("There is no concept to put into the picture; give one or more, or draw the prompt by itself.")
    if doubled := {one.thing for one in concepts if sum(other.thing == one.thing for other in concepts) > 1}:
        raise ValueError(f"{sorted(doubled)[0]!r} is given twice; give each thing once, under different names.")
    if isinstance(grow, bool) or not isinstance(grow, int) or not 0 <= grow <= 1024:
        raise ValueError(f"grow is {grow!r}; give a number of pixels, 0 to 1024.")
    for name in ("output_type", "num_images_per_prompt", "seeds", "layout"):
        if name in call:
            raise ValueError(f"{name} is not for two stages, which make one picture; leave it out.")
    known = {name: 0.0 for one in concepts for name in one.adapters}
    before = dict(generator.adapters)
    generator.set_adapters({**before, **known})
    try:
        layout = generator(prompt, output_type="pt", **call)
        seed = layout.recipes[0].seed
        picture = layout.images[:1].float().cpu()
        masks = {one.thing: _mask(generator, picture, one, segment, grow) for one in concepts}
        height, width = picture.shape[2:]
        regions = [{"prompt": one.prompt, "mask": masks[one.thing], "adapters": {**known, **one.adapters}} for one in concepts]
        again = {**call, "seed": seed, "height": height, "width": width}
        second = generator(prompt, layout={"background": prompt, "regions": regions, "start": start}, output_type="pt", **again)
    finally:
        generator.set_adapters(before)
    if keep_outside:
        inside = torch.stack(list(masks.values())).amax(0).to(second.images)
        second.images[:] = torch.where(inside > 0, second.images, layout.images.to(second.images))
    return TwoStages(layout, masks, second)


def _mask(generator: Any, picture: Tensor, concept: PlacedConcept, segment: Segment | None, grow: int) -> Tensor:
    """(1, 1, H, W), of the picture's size."""
    what = f"The mask of {concept.thing!r}"
    if concept.mask is not None:
        mask = read_picture(what, concept.mask, "L").float()
    elif segment is not None:
        from gen.pipeline.output import to_pil

        given = segment(to_pil(picture.permute(0, 2, 3, 1).numpy())[0], concept.thing)
        mask = read_picture(what, given, "L").float()
    else:
        mask = found_by_model(generator, picture, concept.thing)
    if mask.shape[-2:] != picture.shape[-2:]:
        sizes = [f"{one.shape[-1]} x {one.shape[-2]}" for one in (mask, picture)]
        raise ValueError(f"{what} is {sizes[0]} pixels, and the picture {sizes[1]}; give one of the picture's size.")
    if not bool((mask > 0).any()):
        raise ValueError(f"{what} is empty: it is nowhere in the layout. Try another seed, or give a mask.")
    return torch.nn.functional.max_pool2d(mask, 2 * grow + 1, 1, grow) if grow else mask
