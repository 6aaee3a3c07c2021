"""Pictures that are read in several ways: one prompt upright, others when the picture is turned, mirrored or inverted.

    generator.ambiguous("a red heart", "a red apple", view="rotate180")

Every view is denoised as a picture of its own, and what the views say of the clean picture is averaged at every step
(`samplers.canvas.sync_tweedies`). Turned latents are only nearly those of a turned picture: early steps average latents, which
costs nothing, and steps from the log-SNR `pixels_from` on average decoded pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gen.io.validators import check_float, check_texts
from gen.nn.conditions import pad_to_longest, with_picture_size
from gen.pipeline.output import Output
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Caller, Crop, Decode, Item, SamplingBatch, Settings, Task, TaskTraits
from gen.tasks.layout.task import read_prompt
from gen.tasks.views.options import ViewsArguments, ViewsRecord
from samplers.canvas.sync_tweedies import SyncTweedies, View, project
from samplers.lookup import nearest
from samplers.rows import stack_conditions
from samplers.wrappers import DenoiserWrapper

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.denoiser import Condition, Context, Denoiser
    from samplers.path import NoiseLevel
    from samplers.prediction import Prediction

Map = Callable[[Tensor], Tensor]
PIXELS_FROM = -1.5


@dataclass(frozen=True)
class Turn:
    """A view of pictures (B, 3, H, W) in [-1, 1], and the way back.

    square: for square pictures only.
    latent: latents turn with the picture.
    """

    there: Map
    back: Map
    description: str
    square: bool = False
    latent: bool = True


def _rotation(quarters: int) -> tuple[Map, Map]:
    return (lambda v: v.rot90(quarters, (2, 3))), (lambda v: v.rot90(-quarters, (2, 3)))


def _same(v: Tensor) -> Tensor:
    return v


VIEWS: dict[str, Turn] = {
    "rotate180": Turn(*_rotation(2), "upside down"),
    "rotate90": Turn(*_rotation(1), "turned to the left", square=True),
    "rotate270": Turn(*_rotation(3), "turned to the right", square=True),
    "flip_vertical": Turn(lambda v: v.flip(2), lambda v: v.flip(2), "mirrored, as in water"),
    "flip_horizontal": Turn(lambda v: v.flip(3), lambda v: v.flip(3), "mirrored, as in a mirror"),
    "transpose": Turn(lambda v: v.mT, lambda v: v.mT, "mirrored along the diagonal", square=True),
    "negative": Turn(torch.neg, torch.neg, "in inverted colours", latent=False),
}


def view_of(name: str) -> Turn:
    if name not in VIEWS:
        near = nearest(name, VIEWS)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"There is no view {name!r}; choose one of {', '.join(VIEWS)}.{hint}")
    return VIEWS[name]


def make_views(views: Any, height: int, width: int, rules: Any) -> Views:
    """Checked: a record, or (prompts, names, pixels_from)."""
    if not isinstance(views, ViewsRecord):
        prompts, names, pixels_from = views
        if len(prompts) != len(names):
            raise ValueError(f"Views have {len(names)} names and {len(prompts)} prompts; give one prompt for each view.")
        views = ViewsRecord(prompts=tuple(prompts), views=tuple(names), pixels_from=pixels_from)
    for name in views.views:
        if view_of(name).square and height != width:
            raise ValueError(f"The view {name!r} is for square pictures, and this one is {width} x {height}; choose another.")
    if rules.names[0] == "cfg++":
        raise ValueError("cfg++ needs the two branches of one picture, which views do not have; choose other guidance.")
    if rules.keeps_both:
        raise ValueError("CFG++ needs the two branches of one picture, which views do not have; choose another sampler.")
    return Views(views, tuple(view_of(name) for name in views.views))


@dataclass(frozen=True)
class Views(Task):
    """Views at work. Rows of x are view after view, the picture as it is first."""

    views: ViewsRecord
    turns: tuple[Turn, ...]

    @classmethod
    def from_call(cls, model: Model, args: ViewsArguments, settings: Settings) -> tuple[Views, Settings]:
        return make_views(args.views, settings.height, settings.width, settings.guidance), settings

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> ViewsArguments:
        return ViewsArguments(recipe.views)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        for name, task in settings.tasks.items():
            if task is not self and getattr(task, "name", "") != "merge":
                raise ValueError(f"A picture with several views takes no {name}; leave it out.")

    def map_texts(self, read: Callable[[str], str]) -> Views:
        return replace(self, views=self.views.model_copy(update={"prompts": tuple(map(read, self.views.prompts))}))

    @property
    def traits(self) -> TaskTraits:
        return TaskTraits(always_guided=True, guides_itself=True, one_prompt=True, copies=self.copies)

    @property
    def copies(self) -> int:
        """The picture as it is, and as every view shows it."""
        return 1 + len(self.turns)

    def of_all(self, noise: Tensor) -> Tensor:
        """The unit noise of all views, (V B, C, h, w), of the picture's (B, C, h, w)."""
        return project(self._latent_views([None] * self.copies), noise)

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        """With a beginning and noise of all views."""
        source = batch.source
        x = self.of_all(batch.noise) * batch.settings.levels[0].sigma
        return replace(batch, x=x, source=lambda s, t: self.of_all(source(s, t)))

    def wrap_network(self, denoiser: Denoiser, batch: SamplingBatch) -> Denoiser:
        """All views around the network, each guided for itself."""
        model, settings, negative = batch.model, batch.settings, batch.negative
        others = [
            with_picture_size(read_prompt(model, text, settings.adapters, reading=settings.reading), model, 1, settings.seen)
            for text in self.views.prompts
        ]
        conditions = pad_to_longest([batch.condition, *others])
        refused = None if negative is None else stack_conditions([negative] * self.copies)
        inner, _ = settings.guidance.build(denoiser, settings.solver, settings.scale, refused, settings.interval, batch.guided)
        pictures = SyncTweedies(inner, self._picture_views(model, conditions))
        if model.autoencoder is None or not all(turn.latent for turn in self.turns):
            return pictures
        return _DenoiserSwitch(pictures, SyncTweedies(inner, self._latent_views(conditions)), self.views.pixels_from)

    def decode(self, model: Model, latents: Tensor, crop: Crop | None, decode: Decode) -> Tensor:
        """The mean of what the views show."""
        decoded = decode(latents, None) * 2 - 1
        back = [_same, *(turn.back for turn in self.turns)]
        mean = torch.stack([turn(picture) for turn, picture in zip(back, decoded.chunk(self.copies), strict=True)]).mean(0)
        mean = mean if crop is None else crop(mean)
        return (mean / 2 + 0.5).clamp(0, 1).contiguous()

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"views": self.views}

    def _latent_views(self, conditions: Sequence[Condition | None]) -> tuple[View, ...]:
        """A turn that latents do not know leaves them as they are: only noise passes through it then."""
        everywhere = torch.ones(1, 1, 1, 1)
        maps = [(_same, _same), *((t.there, t.back) if t.latent else (_same, _same) for t in self.turns)]
        return tuple(View(there, back, everywhere, c) for (there, back), c in zip(maps, conditions, strict=True))

    def _picture_views(self, model: Model, conditions: Sequence[Condition]) -> tuple[View, ...]:
        everywhere, autoencoder, scale = torch.ones(1, 1, 1, 1), model.autoencoder, model.config.latent_scale

        def encode(pictures: Tensor) -> Tensor:
            return pictures if autoencoder is None else autoencoder.encode(pictures).float() * scale

        def decode(latents: Tensor) -> Tensor:
            return latents if autoencoder is None else autoencoder.decode(latents / scale).float()

        def view(there: Map, back: Map, condition: Condition) -> View:
            return View(lambda v: encode(there(v)), lambda v: back(decode(v)), everywhere, condition)

        maps = [(_same, _same), *((turn.there, turn.back) for turn in self.turns)]
        return tuple(view(there, back, c) for (there, back), c in zip(maps, conditions, strict=True))


@dataclass(frozen=True)
class _DenoiserSwitch(DenoiserWrapper):
    """A denoiser, and another one below a log-SNR."""

    denoiser: Denoiser
    early: Denoiser
    until: float

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        return (self.early if level.logsnr < self.until else self.denoiser)(x, level, condition, context)


def check_pixels_from(value: object) -> float:
    if value in (math.inf, -math.inf):
        return 20.0 if value == math.inf else -20.0
    return check_float("pixels_from", PIXELS_FROM if value is None else value, -20, 20)


def ambiguous(
    generator: Caller,
    prompt: str,
    others: str | Sequence[str],
    view: str | Sequence[str] = "rotate180",
    *,
    pixels_from: float | None = None,
    **call: Any,
) -> Output:
    """Pictures of `prompt` that show `others` when they are seen as `view` says. Their recipes replay.

    view: one of `gen.tasks.views.task.VIEWS`, or one for each of several others.
    pixels_from: the log-SNR from which the views agree as decoded pictures rather than as latents (-1.5; lower is slower).
    call: what a call takes. latents that come back, or reach a callback, are those of the picture as it is, and of all views
        one after another.
    """
    names = [view] if isinstance(view, str) else list(view)
    prompts = check_texts("others", others)
    subject = {"prompt": prompt} if generator.text_encoder is not None else {"class_labels": prompt}
    views = ViewsArguments((prompts, names, check_pixels_from(pixels_from)))
    return generator(**subject, **call, _task_args={"views": views})
