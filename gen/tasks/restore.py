"""Restoring a picture: inpainting, super-resolution, colour, sharpness, as inverse problems (`samplers.guidance.inverse`).

The operator acts on pictures. A model of latents is asked through its decoder, which is linearised at every evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.io import validators as request
from gen.io.images import digest, fit, read_picture
from gen.pipeline.recipe import Recipe, RestoreRecord
from gen.pipeline.task import Batch, Kind
from gen.tasks.edit import check_given, check_same, fit_told, read_mask, slack

if TYPE_CHECKING:
    from gen.generator import Generator
    from gen.pipeline.settings import Settings
    from gen.pipeline.types import Item
    from samplers.denoiser import Denoiser
    from samplers.sample import Solver

# task -> its options and what they are where nothing is said
TASKS: dict[str, dict[str, Any]] = {"inpaint": {}, "superres": {"factor": 4}, "colorize": {}, "deblur": {"radius": 2.0}}
COMMON = {"noise": 0.02, "kind": "", "weight": 1.0, "spread": 1.0, "iterations": 5, "simulate": False}


@dataclass(frozen=True)
class Restoration(Kind):
    """A checked request. operator: on pictures in [-1, 1]; measurement (1, ...) of such; given (1, 3, H, W) in [0, 1]: what
    was measured, to be shown; mask (1, 1, H, W): 1 where the picture is made, None where all of it is."""

    operator: Any
    measurement: Tensor
    given: Tensor
    mask: Tensor | None
    record: RestoreRecord
    keeps = True

    @classmethod
    def make(cls, generator: Generator, asked: Mapping[str, Any], settings: Settings) -> Restoration:
        made = make_restoration(**asked, height=settings.height, width=settings.width, slack=slack(generator))
        made.build(generator, generator.denoiser)  # options are checked here
        return made

    @classmethod
    def again(cls, generator: Generator, recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
        record, image, mask = recipe.restore, given.get("image"), given.get("mask")
        check_given(record, image, mask)
        return {} if record is None else {"task": record.task, "image": image, "mask": mask, "options": record.options}

    def verify(self, recipe: Recipe) -> None:
        check_same(self.record, recipe.restore)

    def around(self, denoiser: Denoiser, solver: Solver, batch: Batch) -> tuple[Denoiser, Solver]:
        return self.build(batch.generator, denoiser), solver

    def build(self, generator: Generator, denoiser: Denoiser) -> Denoiser:
        """The denoiser of pictures that explain the measurement: outside guidance."""
        from samplers.guidance.inverse import Posterior
        from samplers.guidance.operators import Composed

        options = {**COMMON, **self.record.options}
        operator = self.operator
        if generator.autoencoder is not None:
            scale, decode = generator.config.latent_scale, generator.autoencoder.decode
            operator = Composed(operator, lambda z: decode(z / scale).float())
        return Posterior(
            denoiser,
            operator,
            self.measurement.to(generator.device),
            noise_std=2 * options["noise"],  # pictures here are in [-1, 1]
            kind=options["kind"] or ("pigdm" if generator.autoencoder is None else "projection"),
            spread=options["spread"],
            weight=options["weight"],
            iterations=options["iterations"],
        )

    def keep_known(self, images: Tensor) -> Tensor:
        """Decoded pictures (B, 3, H, W) with what the mask keeps put back, to the pixel."""
        if self.mask is None:
            return images
        return torch.lerp(self.given.to(images).expand_as(images), images, self.mask.to(images))

    def recorded(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"restore": self.record}


def check_options(task: object, options: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """(task's name, options), known ones; ValueError says which is not."""
    from samplers import lookup as names

    rows = {name: _Row(name, (*own, *COMMON)) for name, own in TASKS.items()}
    row = names.find(rows, task, "task")  # type: ignore[arg-type]
    chosen = request.options("restore options", options or {})
    names.check_options(row, chosen, "task")
    return row.name, chosen


def enlargement(asked: Mapping[str, Any]) -> int:
    """How many times as high as its image a restoration is."""
    name, chosen = check_options(asked["task"], asked.get("options"))
    options = {**TASKS[name], **COMMON, **chosen}
    return request.whole("factor", options["factor"], 2, 64) if name == "superres" and not options["simulate"] else 1


def make_restoration(
    task: object,
    image: Any,
    mask: Any = None,
    options: Mapping[str, Any] | None = None,
    height: int = 0,
    width: int = 0,
    slack: int = 1,
) -> Restoration:
    """ValueError for a task, picture, mask or option that cannot be used.

    The picture is cut and scaled to height x width, or for superres to a `factor`-th of it. simulate: it is whole, and is first
    made what the task starts from. slack: pixels of it that may be cut away without a warning.
    """
    from samplers.guidance import operators

    name, chosen = check_options(task, options)
    asked = {**TASKS[name], **COMMON, **chosen}
    request.real("noise", asked["noise"], 0, 1)
    request.real("weight", asked["weight"], 0, 10)
    request.real("spread", asked["spread"], 1e-3, 100)
    request.whole("iterations", asked["iterations"], 1, 1000)
    if asked["kind"] not in ("", "exact", "pigdm", "projection"):
        raise ValueError(f"kind is {asked['kind']!r}; choose exact, pigdm or projection.")
    if (mask is None) == (name == "inpaint"):
        raise ValueError(
            "Inpainting needs a mask: white is made anew, black stays."
            if mask is None
            else f"The task {name!r} takes no mask; leave it out, or choose inpaint."
        )

    small = enlargement({"task": task, "options": options})
    if height % small or width % small:
        raise ValueError(f"{width} x {height} is not divisible by the factor {small}; choose another size.")
    whole = read_picture("image", image, "RGB")
    known = None
    if name == "inpaint":
        known = fit(read_mask("mask", mask, whole, "image"), height, width)
        operator = operators.keep(1 - known)
    elif name == "superres":
        operator = operators.downsample(request.whole("factor", asked["factor"], 2, 64))
    elif name == "colorize":
        operator = operators.grey()
    else:
        operator = operators.blur(request.real("radius", asked["radius"], 0.1, 1000))
    picture = fit_told("image", whole, height // small, width // small, slack)
    signal = picture * 2 - 1
    measured = operator(signal) if asked["simulate"] or name in ("inpaint", "colorize") else signal
    given = picture if name == "inpaint" else (measured.expand(-1, 3, -1, -1) / 2 + 0.5).clamp(0, 1)
    record = RestoreRecord(task=name, image=digest(picture), mask=None if known is None else digest(known), options=chosen)
    return Restoration(operator, measured, given, known, record)


@dataclass(frozen=True)
class _Row:
    name: str
    options: tuple[str, ...]
    aliases: tuple[str, ...] = ()
