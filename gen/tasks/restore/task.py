"""Restoring a picture: inpainting, super-resolution, colour, sharpness, as inverse problems (`samplers.guidance.inverse`).

The operator acts on pictures. A model of latents is asked through its decoder, which is linearised at every evaluation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.io.images import digest, fit, read_picture
from gen.io.validators import check_float, check_int, check_option_values
from gen.pipeline.output import Output
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Caller, Crop, Decode, Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.edit.task import check_given, check_same, fit_and_warn, own_size, read_mask, size_tolerance
from gen.tasks.restore.options import RestoreArguments, RestoreRecord

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.denoiser import Denoiser
    from samplers.sample import Solver

# task -> its options and what they are where nothing is said
TASKS: dict[str, dict[str, Any]] = {"inpaint": {}, "superres": {"factor": 4}, "colorize": {}, "deblur": {"radius": 2.0}}
RESTORE_SCALE = 2.0  # of guidance, at most: more pulls a picture from its measurement, and seams and stains show
COMMON = {"noise": 0.02, "kind": "", "weight": 1.0, "spread": 1.0, "iterations": 5, "simulate": False}


@dataclass(frozen=True)
class Restoration(Task):
    """A checked request. operator: on pictures in [-1, 1]; measurement (1, ...) of such; given (1, 3, H, W) in [0, 1]: what
    was measured, to be shown; mask (1, 1, H, W): 1 where the picture is made, None where all of it is."""

    operator: Any
    measurement: Tensor
    given: Tensor
    mask: Tensor | None
    begun: RestoreRecord

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(chooses_size=True)

    @classmethod
    def choose_size(
        cls, model: Model, args: RestoreArguments, height: int | None, width: int | None, multiple: int
    ) -> tuple[RestoreArguments, int | None, int | None]:
        return own_size(model, args, height, width, multiple, enlargement(args.task, args.options))

    @classmethod
    def from_call(cls, model: Model, args: RestoreArguments, settings: Settings) -> tuple[Restoration, Settings]:
        given = args.task, args.image, args.mask, args.options
        restoration = make_restoration(*given, settings.height, settings.width, size_tolerance(model))
        restoration.build(model, model.denoiser)  # options are checked here
        return restoration, settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> RestoreArguments | None:
        record, image, mask = recipe.restore, keywords.get("image"), keywords.get("mask")
        check_given(record, image, mask)
        return None if record is None else RestoreArguments(record.task, image, mask, record.options)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        if recipe is not None:
            check_same(self.begun, recipe.restore)

    def wrap_guided(self, denoiser: Denoiser, solver: Solver, batch: SamplingBatch) -> tuple[Denoiser, Solver]:
        return self.build(batch.model, denoiser), solver

    def build(self, model: Model, denoiser: Denoiser) -> Denoiser:
        """The denoiser of pictures that explain the measurement: outside guidance."""
        from samplers.guidance.inverse import Posterior
        from samplers.guidance.operators import Composed

        options: dict[str, Any] = {**COMMON, **self.begun.options}
        operator = self.operator
        if model.autoencoder is not None:
            scale, decode = model.config.latent_scale, model.autoencoder.decode
            operator = Composed(operator, lambda z: decode(z / scale).float())
        return Posterior(
            denoiser,
            operator,
            self.measurement.to(model.device),
            noise_std=2 * options["noise"],  # pictures here are in [-1, 1]
            kind=options["kind"] or ("pigdm" if model.autoencoder is None else "projection"),
            spread=options["spread"],
            weight=options["weight"],
            iterations=options["iterations"],
        )

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        """With what the mask keeps put back, to the pixel."""
        images = decode(latents, None)
        if self.mask is not None:
            images = torch.lerp(self.given.to(images).expand_as(images), images, self.mask.to(images))
        return images if crop is None else crop(images)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"restore": self.begun}


def check_task(task: object, options: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """(task's name, options), known ones; ValueError says which is not."""
    from samplers import lookup as names

    rows = {name: _Row(name, (*own, *COMMON)) for name, own in TASKS.items()}
    row = names.find(rows, task, "task")  # type: ignore[arg-type]
    chosen = check_option_values("restore options", options or {})
    names.check_options(row, chosen, "task")
    return row.name, chosen


def enlargement(task: object, options: Mapping[str, Any] | None) -> int:
    """How many times as high as its image a restoration is."""
    name, chosen = check_task(task, options)
    values = {**TASKS[name], **COMMON, **chosen}
    return check_int("factor", values["factor"], 2, 64) if name == "superres" and not values["simulate"] else 1


def make_restoration(
    task: object,
    image: Any,
    mask: Any = None,
    options: Mapping[str, Any] | None = None,
    height: int = 0,
    width: int = 0,
    tolerance: int = 1,
) -> Restoration:
    """ValueError for a task, picture, mask or option that cannot be used.

    The picture is cut and scaled to height x width, or for superres to a `factor`-th of it. simulate: it is whole, and is first
    made what the task starts from. tolerance: pixels of it that may be cut away without a warning.
    """
    from samplers.guidance import operators

    name, chosen = check_task(task, options)
    values = {**TASKS[name], **COMMON, **chosen}
    check_float("noise", values["noise"], 0, 1)
    check_float("weight", values["weight"], 0, 10)
    check_float("spread", values["spread"], 1e-3, 100)
    check_int("iterations", values["iterations"], 1, 1000)
    if values["kind"] not in ("", "exact", "pigdm", "projection"):
        raise ValueError(f"kind is {values['kind']!r}; choose exact, pigdm or projection.")
    if (mask is None) == (name == "inpaint"):
        raise ValueError(
            "Inpainting needs a mask: white is made anew, black stays."
            if mask is None
            else f"The task {name!r} takes no mask; leave it out, or choose inpaint."
        )

    small = enlargement(task, options)
    if height % small or width % small:
        raise ValueError(f"{width} x {height} is not divisible by the factor {small}; choose another size.")
    source = read_picture("image", image, "RGB")
    pixel_mask = None
    if name == "inpaint":
        pixel_mask = fit(read_mask("mask", mask, source, "image"), height, width)
        operator = operators.keep(1 - pixel_mask)
    elif name == "superres":
        operator = operators.downsample(check_int("factor", values["factor"], 2, 64))
    elif name == "colorize":
        operator = operators.grey()
    else:
        operator = operators.blur(check_float("radius", values["radius"], 0.1, 1000))
    picture = fit_and_warn("image", source, height // small, width // small, tolerance)
    signal = picture * 2 - 1
    measured = operator(signal) if values["simulate"] or name in ("inpaint", "colorize") else signal
    shown = picture if name == "inpaint" else (measured.expand(-1, 3, -1, -1) / 2 + 0.5).clamp(0, 1)
    record = RestoreRecord(
        task=name, image=digest(picture), mask=None if pixel_mask is None else digest(pixel_mask), options=chosen
    )
    return Restoration(operator, measured, shown, pixel_mask, record)


@dataclass(frozen=True)
class _Row:
    name: str
    options: tuple[str, ...]
    aliases: tuple[str, ...] = ()


def restore(
    generator: Caller, image: Any, task: str, prompt: str | Sequence[str] | None = None, *, mask: Any = None, **call: Any
) -> Output:
    """Pictures that explain a damaged one. Their recipes replay, given the image (and mask) again.

    task: inpaint (mask: white is made anew, black stays, to the pixel), superres (image is a `factor`-th of the size, 4),
    colorize, deblur (a Gaussian blur of `radius` pixels, 2). image and mask as in a call. Options of all tasks: noise, the
    standard deviation of the picture's noise in [0, 1] (0.02); kind, how the posterior is approximated (exact, pigdm,
    projection; by default pigdm for a model of pixels, projection for one of latents), weight, spread and iterations of
    `samplers.guidance.Posterior`; simulate: the image is whole, and is damaged first. Other arguments are those of a call;
    guidance_scale is 2 at most where it is not given.
    """
    known = {*COMMON, *(name for options in TASKS.values() for name in options)}
    options = {name: call.pop(name) for name in list(call) if name in known}
    if call.get("strength") is not None:
        raise ValueError("A restoration takes no strength; leave it out, or give weight.")
    guidable = generator.text_encoder is not None or generator.classes
    if guidable and call.get("guidance_scale") is None and call.get("guidance") is None:
        call["guidance_scale"] = min(RESTORE_SCALE, generator.config.defaults.guidance_scale)
    return generator(prompt, **call, _task_args={"restoration": RestoreArguments(task, image, mask, options)})
