"""Pictures that a picture follows, through ControlNets (`gen.models.control`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.io.images import digest, read_picture
from gen.io.validators import check_float, check_int, check_interval
from gen.models.control import find_control, open_control
from gen.nn.control import MODE, PICTURE, PROMPT, PROMPT_MASK, WEIGHT, OpenedControl
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.control.options import ControlKeywords, ControlRecord
from gen.tasks.edit.task import fit_and_warn, size_tolerance
from gen.tasks.ranges import WithinRanges
from samplers.denoiser import Condition, Denoiser
from samplers.interval import EVERYWHERE

if TYPE_CHECKING:
    from gen.models.model import Model

MOST = 8  # pictures that are followed at a time


@dataclass(frozen=True)
class Followed:
    """One picture: the name of its network in the denoiser's, its condition (1, C, h, w), and what recipes say of it."""

    name: str
    picture: Tensor
    record: ControlRecord


@dataclass(frozen=True)
class ControlTask(Task):
    """The pictures that the pictures of a call follow."""

    followed: tuple[Followed, ...]

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(by_level=True)

    @classmethod
    def from_call(cls, model: Model, args: ControlKeywords, settings: Settings) -> tuple[ControlTask | None, Settings]:
        pictures, networks = _listed(args.control), _listed(args.controlnet)
        if isinstance(args.control, Mapping):  # controls by name, each with its picture
            if networks:
                raise ValueError("control has names, which say the controlnet; leave controlnet out.")
            networks, pictures = list(args.control), list(args.control.values())
        if not pictures and not networks:
            orphan = next((name for name, value in vars(args).items() if value is not None and value != []), None)
            if orphan is not None:
                raise ValueError(
                    f"{orphan} was given without control and controlnet; give a picture and a ControlNet's folder."
                )
            return None, settings
        if len(pictures) != len(networks) and 1 not in (len(pictures), len(networks)):
            raise ValueError(
                f"control has {len(pictures)} pictures and controlnet {len(networks)} folders; give a folder for each picture."
            )
        count = max(len(pictures), len(networks))
        if not pictures or not networks or count > MOST:
            raise ValueError(f"control and controlnet go together, {MOST} at most; give both.")
        ranges = args.control_range
        if ranges is not None and not isinstance(ranges[0], Sequence):
            ranges = [ranges]  # type: ignore[list-item]
        rows = zip(
            *(
                _spread(name, value, count)
                for name, value in (
                    ("control", pictures),
                    ("controlnet", networks),
                    ("control_weight", _listed(args.control_weight) or [1.0]),
                    ("control_range", list(ranges or [None])),  # type: ignore[list-item]
                    ("control_mode", _listed(args.control_mode) or [None]),
                )
            ),
            strict=True,
        )
        followed = tuple(_follow(model, settings, number, *row) for number, row in enumerate(rows))
        return cls(followed), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> ControlKeywords:
        if len(_listed(keywords.get("control"))) != len(recipe.control):
            given = len(recipe.control)
            raise ValueError(
                f"The picture followed {given} {'picture' if given == 1 else 'pictures'}, which its recipe does not hold; give "
                "them again as control, with their ControlNets as controlnet (--control, --controlnet)."
                if given
                else "The picture was made without control; leave it out."
            )
        records = recipe.control
        return ControlKeywords(
            control=keywords["control"],
            controlnet=keywords.get("controlnet"),
            control_weight=[record.weight for record in records],
            control_range=[record.interval or EVERYWHERE for record in records],
            control_mode=None if all(r.mode is None for r in records) else [record.mode for record in records],
        )

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        for record, one in zip(recipe.control if recipe is not None else (), self.followed, strict=recipe is not None):
            changed = "control" if record.image != one.record.image else "controlnet"
            if (record.image, record.network) != (one.record.image, one.record.network):
                raise ValueError(f"This {changed} is not the one that the picture was made with: its sha256 differs.")

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        condition, negative = batch.condition, batch.negative
        prompt: dict[str, Tensor] = {}
        if getattr(batch.model.network, "controls_read_prompt", False) and condition.tokens is not None:
            prompt[PROMPT] = condition.tokens
            if condition.mask is not None:
                prompt[PROMPT_MASK] = condition.mask
        rows = len(batch.noise)
        return replace(
            batch, condition=self._on(condition, prompt, rows), negative=negative and self._on(negative, prompt, rows)
        )

    def _on(self, condition: Condition, prompt: Mapping[str, Tensor], rows: int) -> Condition:
        """With the pictures, one row for each of the condition's, or `rows`; and with what the prompt gives to controls."""
        own = next((value for value in (condition.tokens, condition.label) if value is not None), None)
        rows, extra = rows if own is None else len(own), {**condition.extra, **prompt}
        device = self.followed[0].picture.device if own is None else own.device
        for one in self.followed:
            extra[PICTURE + one.name] = one.picture.to(device).expand(rows, -1, -1, -1)
            extra[WEIGHT + one.name] = torch.full((rows,), one.record.weight, device=device)
            if one.record.mode is not None:
                extra[MODE + one.name] = torch.full((rows, 1), one.record.mode, device=device)
        return replace(condition, extra=extra)

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        ranges = {one.name: one.record.interval for one in self.followed if one.record.interval is not None}
        return WithinRanges(denoiser, ranges, (PICTURE, WEIGHT, MODE)) if ranges else denoiser

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"control": tuple(one.record for one in self.followed)}


def _follow(
    model: Model, settings: Settings, number: int, source: Any, folder: Any, weight: Any, interval: Any, mode: Any
) -> Followed:
    control, named = _opened(model, folder)
    mode = named if mode is None else mode
    picture = read_picture("control", source, "RGB")
    picture = fit_and_warn("control", picture, settings.height, settings.width, size_tolerance(model))
    union = control.modes is not None
    if union != (mode is not None):
        raise ValueError(
            f"The ControlNet {str(folder)!r} is {'a union' if union else 'for one control'}; "
            f"{'give' if union else 'leave out'} control_mode{', the number of the control' if union else ''}."
        )
    record = ControlRecord(
        image=digest(picture),
        network=control.digest,
        weight=check_float("control_weight", weight, -100, 100),
        interval=None if interval in (None, EVERYWHERE) else check_interval("control_range", interval),
        mode=None if control.modes is None else check_int("control_mode", mode, 0, control.modes - 1),
    )
    with torch.no_grad():
        read = control.picture(picture.to(model.device), model.autoencoder, model.config.latent_scale, record.mode)
    name = f"{number} {control.digest[:16]}"
    model.network.controls[name] = control
    return Followed(name, read, record)


def _opened(model: Model, given: Any) -> tuple[OpenedControl, int | None]:
    """(a control that the model has open already, or from its folder; its mode where a name says it)."""
    opened: dict[str, OpenedControl] = getattr(model.network, "opened_controls", {})
    folder, mode = find_control(given)
    key = str(folder.resolve())
    if key not in opened:
        opened[key] = open_control(folder, model.network, model.factor, model.dtype, model.device)
    return opened[key], mode


def _listed(value: Any) -> list[Any]:
    """One or several, as a list; nothing as an empty one."""
    if isinstance(value, Mapping):
        return list(value.values())
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _spread(name: str, values: list[Any], count: int) -> list[Any]:
    if len(values) not in (1, count):
        raise ValueError(f"{name} has {len(values)} entries where {count} are asked for; give one for all, or {count}.")
    return values * count if len(values) == 1 else values
