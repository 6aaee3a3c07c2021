"""Pictures that are read in several ways: one prompt upright, others when the picture is turned, mirrored or inverted.

    generator.ambiguous("a red heart", "a red apple", view="rotate180")

Every view is denoised as a picture of its own, and what the views say of the clean picture is averaged at every step
(`samplers.canvas.sync_tweedies`). Turned latents are only nearly those of a turned picture: early steps average latents, which costs
nothing, and steps from the log-SNR `pixels_from` on average decoded pictures.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from samplers.canvas.sync_tweedies import Instances, View, project
from samplers.rows import stack
from torch import Tensor

from gen.io.images import cut_to
from gen.nn.conditions import told_its_size
from gen.pipeline.recipe import Recipe, ViewsRecord
from gen.pipeline.task import Batch, Kind
from gen.tasks.layout import read_prompt

if TYPE_CHECKING:
    from gen.generator import Generator
    from gen.pipeline.settings import Settings
    from gen.pipeline.types import Item
    from samplers.denoiser import Condition, Context, Denoiser
    from samplers.noise import NoiseSource
    from samplers.path import NoiseLevel, Path
    from samplers.prediction import Prediction

Map = Callable[[Tensor], Tensor]
PIXELS_FROM = -1.5


@dataclass(frozen=True)
class Turn:
    """A view of pictures (B, 3, H, W) in [-1, 1], and the way back. square: for square pictures only; latent: latents turn with
    the picture."""

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
        near = difflib.get_close_matches(str(name), VIEWS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"There is no view {name!r}; choose one of {', '.join(VIEWS)}.{hint}")
    return VIEWS[name]


def make_views(views: Any, height: int, width: int, rules: Any) -> Views:
    """Checked: a record, or (prompts, names, pixels_from)."""
    if not isinstance(views, ViewsRecord):
        prompts, names, pixels_from = views
        if len(prompts) != len(names):
            raise ValueError(f"{len(prompts)} prompts are given for {len(names)} views; give one prompt for each view.")
        views = ViewsRecord(prompts=tuple(prompts), views=tuple(names), pixels_from=pixels_from)
    for name in views.views:
        if view_of(name).square and height != width:
            raise ValueError(f"The view {name!r} is for square pictures, and this one is {width} x {height}; choose another.")
    if rules.guidance[0] == "cfg++":
        raise ValueError("cfg++ needs the two branches of one picture, which views do not have; choose other guidance.")
    if rules.both:
        raise ValueError("CFG++ needs the two branches of one picture, which views do not have; choose another sampler.")
    return Views(views, tuple(view_of(name) for name in views.views))


@dataclass(frozen=True)
class Views(Kind):
    """Views at work. Rows of x are view after view, the picture as it is first."""

    record: ViewsRecord
    turns: tuple[Turn, ...]
    own_prompts = True

    @classmethod
    def make(cls, generator: Generator, asked: Mapping[str, Any], settings: Settings) -> Views:
        return make_views(asked["views"], settings.height, settings.width, settings.rules)

    @classmethod
    def again(cls, generator: Generator, recipe: Recipe, given: Mapping[str, Any]) -> dict[str, Any]:
        return {"views": recipe.views}

    def check(self, settings: Settings) -> None:
        for name, kind in settings.kinds.items():
            if kind is not self and getattr(kind, "name", "") != "merge":
                raise ValueError(f"A picture with several views takes no {name}; leave it out.")

    @property
    def copies(self) -> int:
        """The picture as it is, and as every view shows it."""
        return 1 + len(self.turns)

    def of_all(self, noise: Tensor) -> Tensor:
        """The unit noise of all views, (V B, C, h, w), of the picture's (B, C, h, w)."""
        return project(self._latent_views([None] * self.copies), noise)

    def begin(self, x: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        return self.of_all(noise) * level.sigma

    def noise(self, source: NoiseSource) -> NoiseSource:
        return lambda s, t: self.of_all(source(s, t))

    def field(self, batch: Batch) -> Denoiser:
        """All views around the network, each guided for itself."""
        generator, settings, negative = batch.generator, batch.settings, batch.negative
        others = [
            told_its_size(read_prompt(generator, text, settings.adapters), generator, 1, settings.seen)
            for text in self.record.prompts
        ]
        conditions = alike([batch.condition, *others])
        refused = None if negative is None else stack([negative] * self.copies)
        inner, _ = settings.rules.build(
            generator.denoiser, settings.solver, settings.scale, refused, settings.interval, batch.guided
        )
        pictures = Instances(inner, self._picture_views(generator, conditions))
        if generator.autoencoder is None or not all(turn.latent for turn in self.turns):
            return pictures
        return _Early(Instances(inner, self._latent_views(conditions)), pictures, self.record.pixels_from)

    def show(self, generator: Generator, latents: Tensor, size: tuple[int, int] | None, known: Sequence[Kind] = ()) -> Tensor:
        """The mean of what the views show."""
        decoded = generator.decode(latents) * 2 - 1
        back = [_same, *(turn.back for turn in self.turns)]
        mean = torch.stack([turn(one) for turn, one in zip(back, decoded.chunk(self.copies), strict=True)]).mean(0)
        mean = mean if size is None else cut_to(mean, size)
        return (mean / 2 + 0.5).clamp(0, 1).contiguous()

    def recorded(self, items: Sequence[Item]) -> dict[str, Any]:
        return {"views": self.record}

    def _latent_views(self, conditions: Sequence[Condition | None]) -> tuple[View, ...]:
        """A turn that latents do not know leaves them as they are: only noise passes through it then."""
        one = torch.ones(1, 1, 1, 1)
        maps = [(_same, _same), *((t.there, t.back) if t.latent else (_same, _same) for t in self.turns)]
        return tuple(View(there, back, one, c) for (there, back), c in zip(maps, conditions, strict=True))

    def _picture_views(self, generator: Generator, conditions: Sequence[Condition]) -> tuple[View, ...]:
        one, autoencoder, scale = torch.ones(1, 1, 1, 1), generator.autoencoder, generator.config.latent_scale

        def encode(pictures: Tensor) -> Tensor:
            return pictures if autoencoder is None else autoencoder.encode(pictures).float() * scale

        def decode(latents: Tensor) -> Tensor:
            return latents if autoencoder is None else autoencoder.decode(latents / scale).float()

        maps = [(_same, _same), *((turn.there, turn.back) for turn in self.turns)]
        return tuple(
            View(lambda v, there=there: encode(there(v)), lambda v, back=back: back(decode(v)), one, c)
            for (there, back), c in zip(maps, conditions, strict=True)
        )


@dataclass(frozen=True)
class _Early:
    """One denoiser below a log-SNR, another from there on."""

    early: Denoiser
    late: Denoiser
    until: float

    @property
    def path(self) -> Path:
        return self.late.path

    def __call__(self, x: Tensor, level: NoiseLevel, condition: Condition, context: Context) -> Prediction:
        return (self.early if level.logsnr < self.until else self.late)(x, level, condition, context)


def alike(conditions: Sequence[Condition]) -> list[Condition]:
    """With equally many tokens."""
    from gen.nn.conditions import pad_tokens

    length = max((c.tokens.shape[1] for c in conditions if c.tokens is not None), default=0)
    return [pad_tokens(condition, length) for condition in conditions]


def check_pixels_from(value: object) -> float:
    from gen.io import validators as request

    if value in (math.inf, -math.inf):
        return 20.0 if value == math.inf else -20.0
    return request.real("pixels_from", PIXELS_FROM if value is None else value, -20, 20)
