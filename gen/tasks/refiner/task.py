"""A refiner: another model goes on from the first one's noisy latents, without new noise, to the end of the same schedule.

Source: SDXL (arXiv 2307.01952, section 2.5, its ensemble of experts); with the cut as diffusers' pair of `denoising_end` and
`denoising_start` has it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from gen.io.validators import check_float
from gen.io.weights import CheckpointError
from gen.models.model import Model
from gen.pipeline.types import Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.refiner.options import RefinerKeywords, RefinerRecord

if TYPE_CHECKING:
    from gen.pipeline.recipe import Recipe
    from samplers.path import NoiseLevel

AT = 0.8  # of the schedule, done by the first model
BESIDE = ("refiner", "encoding", "variation", "transparent")  # tasks that go with it
SHARED = ("encoding", "transparent")  # tasks that both models have


@dataclass(frozen=True)
class Refiner(Task):
    """model: that finishes. levels: those that it takes, the first being where the other one ended."""

    model: Model
    levels: tuple[NoiseLevel, ...]
    refined: RefinerRecord

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(more_steps=len(self.levels) - 1, label=self.model.name)

    @classmethod
    def from_call(cls, model: Model, args: RefinerKeywords, settings: Settings) -> tuple[Refiner | None, Settings]:
        if args.refiner is None:
            if args.refiner_at is None:
                return None, settings
            raise ValueError("refiner_at was given without refiner; give the model that finishes too (--refiner MODEL).")
        at = check_float("refiner_at", AT if args.refiner_at is None else args.refiner_at, 0, 1)
        if not 0 < at < 1:
            raise ValueError(
                f"refiner_at is {at:g}, where one of the models does nothing; give 0.8, or another number between."
            )
        if settings.unrecorded or settings.own_steps:
            raise ValueError("A refiner needs sampler and schedule by name, with steps of their own; choose another sampler.")
        refiner = _opened(model, args.refiner)
        _check(model, refiner)
        first, second = handed_over(settings.levels, at, model)
        record = RefinerRecord(name=refiner.name, weights=digest_of(refiner), at=at)
        return cls(refiner, second, record), replace(settings, levels=first)

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> RefinerKeywords | None:
        record, given = recipe.refiner, keywords.get("refiner")
        if record is None:
            if given is not None:
                raise ValueError("The picture was made without a refiner; leave it out.")
            return None
        if given is None:
            raise ValueError(f"The picture was finished by {record.name!r}; give that model again as refiner (--refiner).")
        return RefinerKeywords(given, record.at)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        if other := next((name for name in settings.tasks if name not in BESIDE), None):
            raise ValueError(
                f"A refiner goes without {other}; leave one of them out, or refine the finished picture with image=."
            )
        record = None if recipe is None else recipe.refiner
        if record is not None and record.weights != self.refined.weights:
            raise ValueError(f"This refiner is not {record.name!r}, which finished the picture: its sha256 differs.")

    def second_run(self, model: Model, latents: Tensor, settings: Settings) -> Settings:
        shared = {name: task for name, task in settings.tasks.items() if name in SHARED}
        return replace(settings, levels=self.levels, adapters={}, tasks={**shared, "image": HandedOver(latents)})

    def second_model(self, model: Model) -> Model:
        return self.model

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"refiner": self.refined}


@dataclass(frozen=True)
class HandedOver(Task):
    """The beginning of the refiner's run: latents (B, C, h, w) with the noise that the other model left."""

    latents: Tensor

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        return replace(batch, x=self.latents)


def handed_over(levels: Sequence[NoiseLevel], at: float, model: Model) -> tuple[tuple[NoiseLevel, ...], tuple[NoiseLevel, ...]]:
    """(levels of the first model, those of the second), which have one in common.

    The first takes the steps that begin at timestep N (1 - at) of N, rounded to a whole one, or where there is more noise.
    ValueError where one of them has no step.
    """
    table = getattr(model.denoiser.path, "table", None)
    total = 1000 if table is None else len(table)
    cut, offset = round(total - at * total), 0 if table is None else 1
    first = sum(total * float(level.t) - offset >= cut - 1e-6 * total for level in levels[:-1])
    if not 0 < first < len(levels) - 1:
        idle = "the refiner" if first else "the first model"
        raise ValueError(f"refiner_at {at:g} leaves {idle} without a step of {len(levels) - 1}; take more steps, or another.")
    return tuple(levels[: first + 1]), tuple(levels[first:])


def _opened(model: Model, source: Any) -> Model:
    """An open model as it is; a folder, file or hub id opened as the first model was, once."""
    if isinstance(source, Model):
        return source
    if not isinstance(source, str | Path):
        raise ValueError(f"refiner is a {type(source).__name__}; give a folder, file or hub id, or an open model.")
    key = str(source)
    if key not in model.refiners:
        try:
            model.refiners[key] = Model.from_pretrained(
                key, device=model.device, dtype=model.dtype, quantize=model.quantize, offload=model.offload
            )
        except CheckpointError:  # which names its file
            raise
        except ValueError as error:
            raise ValueError(f"refiner: {error}") from error
    return model.refiners[key]


def _check(model: Model, refiner: Model) -> None:
    """ValueError where a model cannot go on from another's latents."""
    if refiner.network is model.network:
        raise ValueError("refiner is the model itself; leave it out, or give another.")
    if getattr(refiner.network, "whole", False):
        raise ValueError(f"{refiner.name!r} is a pipeline that runs as a whole, which refines nothing; give another model.")
    for name in ("channels", "factor", "device"):
        mine, its = getattr(model, name), getattr(refiner, name)
        if mine != its:
            raise ValueError(
                f"The {name} of {model.name!r} is {mine}, and of the refiner {refiner.name!r} {its}; they must agree."
            )
    if (model.config.path, model.config.latent_scale) != (refiner.config.path, refiner.config.latent_scale):
        raise ValueError(
            f"The refiner {refiner.name!r} was trained on other noise or latents than {model.name!r}; give another."
        )


def digest_of(model: Model) -> str:
    """sha256 of the names and digests of a model's parts."""
    return hashlib.sha256(json.dumps(sorted(model.weights.items())).encode()).hexdigest()
