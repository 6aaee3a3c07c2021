"""Kinds of runs: what a call may ask for beside prompts, sampler and guidance, behind one protocol.

A kind is a subclass of `Kind` in a file of its own and a row of `KINDS`. Its class reads keywords (of a call, or of a recipe
that is made again); an instance takes part in one run: it changes settings, wraps the field and the solver, decodes, and says
what recipes keep of it. Whatever it leaves alone stays as it is in a plain run. B pictures, latents (B, C, h, w).
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from gen.generator import Generator
    from gen.pipeline.recipe import Recipe
    from gen.pipeline.settings import Settings
    from gen.pipeline.types import Item
    from samplers.denoiser import Condition, Denoiser
    from samplers.noise import NoiseSource
    from samplers.path import NoiseLevel
    from samplers.sample import Solver


@dataclass(frozen=True)
class Batch:
    """Pictures that go through the network together, as a kind sees them. noise: (B, C, h, w) of unit variance; condition:
    what they should be; negative: what not, None without negative prompts; guided: guidance has something to do."""

    generator: Generator
    items: Sequence[Item]
    settings: Settings
    noise: Tensor
    condition: Condition
    negative: Condition | None
    guided: bool

    @property
    def prompts(self) -> list[str]:
        return [item.prompt for item in self.items]

    @property
    def seeds(self) -> list[int]:
        return [item.seed for item in self.items]

    def fresh(self) -> NoiseSource:
        """Noise by the pictures' seeds."""
        from samplers.noise import seeded_noise

        return seeded_noise(self.seeds, self.noise)


@dataclass(frozen=True)
class Frame:
    """A picture that the network does not see at once: only `window` of it (height, width in pixels), and any whole number of
    latents is a size. shown: height and width that it is cut to, None for all of it."""

    window: tuple[int, int]
    shown: tuple[int, int] | None = None


class Kind:
    """Base of all kinds: the protocol, in which nothing changes anything.

    copies: rows of x for one picture. named: its name in this run, for messages.
    own_prompts: guided whatever the call's prompts are. keeps: `keep_known` does something.
    unrecorded: what took part and is in no recipe.
    """

    copies: int = 1
    named: str = ""
    own_prompts: bool = False
    keeps: bool = False
    unrecorded: tuple[str, ...] = ()

    # ---- from a call, or from a recipe ----

    @classmethod
    def frame(cls, asked: Mapping[str, Any]) -> Frame | None:
        """What the network sees at once, before anything else is known; None: the whole picture."""
        return None

    @classmethod
    def make(cls, generator: Generator, asked: Mapping[str, Any], settings: Settings) -> Kind | None:
        """From a call's keywords, those that are not None; None where they ask for nothing. ValueError says what is wrong."""
        raise NotImplementedError

    @classmethod
    def again(cls, generator: Generator, recipe: Recipe, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The keywords that make what the recipe says; `given` are those of the replay, for what no recipe holds."""
        raise NotImplementedError

    # ---- in the settings of a run ----

    def change(self, generator: Generator, settings: Settings) -> Settings:
        """With other levels or adapters, say; kinds inside it are made with these."""
        return settings

    def check(self, settings: Settings) -> None:
        """ValueError for what it does not go with, now that all is known."""

    def verify(self, recipe: Recipe) -> None:
        """ValueError if it is not what the picture of the recipe was made with."""

    def rebuilt(self, recipe: Recipe, items: list[Item]) -> list[Item]:
        """The batch of a replay, which is copies of one item unless pictures depend on others."""
        return items

    def halved(self) -> Kind:
        """Itself with half the need for memory; itself as it is where it cannot do with less."""
        return self

    # ---- at work on a batch ----

    def bar(self, bar: Any, steps: int) -> Any:
        """The progress bar of a call that takes so many steps."""
        return bar

    def network(self, denoiser: Denoiser, bar: Any) -> Denoiser:
        """The network, before anything is put around it."""
        return denoiser

    def texts(self, prompts: list[str]) -> list[str]:
        """What the text encoder reads."""
        return prompts

    def read(self, generator: Generator, prompts: list[str], condition: Condition, adapters: Mapping[str, float]) -> Condition:
        """What it read, (B, L, D)."""
        return condition

    def negative(self, batch: Batch) -> Condition | None:
        """The batch's negative condition."""
        return batch.negative

    def field(self, batch: Batch) -> Denoiser | None:
        """A field in the place of the network, its caches and guidance; None for those."""
        return None

    def inside(self, denoiser: Denoiser, batch: Batch) -> Denoiser:
        """Around the network and its caches, under guidance."""
        return denoiser

    def around(self, denoiser: Denoiser, solver: Solver, batch: Batch) -> tuple[Denoiser, Solver]:
        """Around guidance, and around the solver."""
        return denoiser, solver

    def begin(self, x: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
        """What the first level begins with: x is the unit noise, scaled."""
        return x

    def noise(self, source: NoiseSource) -> NoiseSource:
        """The noise of stochastic solvers."""
        return source

    def show(self, generator: Generator, latents: Tensor, size: tuple[int, int] | None, known: Sequence[Kind]) -> Tensor | None:
        """Pictures (B, 3, H, W) in [0, 1], cut to `size`, with what is `known` put back; None: decoded as usual."""
        return None

    def keep_known(self, images: Tensor) -> Tensor:
        """Decoded pictures with what is known of them put back."""
        return images

    def recorded(self, items: Sequence[Item]) -> Mapping[str, Any]:
        """Fields of the batch's recipes (`gen.pipeline.recipe.Recipe`)."""
        return {}


@dataclass(frozen=True)
class Row:
    """A kind in the table. keywords: those of a call that are its own; those of kinds that a method of `Generator` makes are
    private to it (`asked`). fields: of a recipe."""

    module: str
    name: str
    keywords: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()

    def load(self) -> type[Kind]:
        return getattr(importlib.import_module(self.module), self.name)


# closed, in the order in which they go around the network
KINDS: dict[str, Row] = {
    "composition": Row(
        "gen.tasks.lora_composition",
        "Composition",
        ("composition", "composition_options", "regions"),
        ("composition", "composition_options", "regions"),
    ),
    "layout": Row("gen.tasks.layout", "Layout", ("layout",), ("layout",)),
    "views": Row("gen.tasks.views", "Views", (), ("views",)),
    "canvas": Row("gen.tasks.canvas", "Canvas", (), ("canvas",)),
    "restoration": Row("gen.tasks.restore", "Restoration", (), ("restore",)),
    "guide": Row(
        "gen.tasks.energy_guidance", "Guide", ("guide", "guide_strength", "guide_method", "guide_options"), ("guide",)
    ),
    "tweak": Row(
        "gen.tasks.training_free",
        "Tweaks",
        (
            "negtome",
            "negtome_mask",
            "negtome_options",
            "reference",
            "reference_mask",
            "reference_prompt",
            "reference_options",
            "concepts",
            "concepts_options",
            "aesthetic",
            "aesthetic_options",
            "greedy",
            "greedy_options",
        ),
        ("tweaks",),
    ),
    "image": Row("gen.tasks.edit", "Edit", ("image", "mask", "strength"), ("start",)),
}

Asked = dict[str, Mapping[str, Any]]  # kind -> its keywords


def check_names(given: Mapping[str, Any]) -> None:
    """TypeError, as of any function, for a keyword that is no kind's."""
    known = [name for row in KINDS.values() for name in row.keywords]
    for name in given:
        if name not in known:
            from gen.generator import Generator

            others = [one for one in inspect.signature(Generator.__call__).parameters if one != "self"]
            near = difflib.get_close_matches(name, [*known, *others], 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise TypeError(f"A call takes no {name!r}{hint}")


def asked_of(given: Mapping[str, Any]) -> Asked:
    """What a call asks for, of all its keywords."""
    found: Asked = {}
    for kind, row in KINDS.items():
        own = {name: given[name] for name in row.keywords if given.get(name) is not None}
        if own:
            found[kind] = own
    return found


def asked_again(generator: Generator, recipe: Recipe, given: Mapping[str, Any]) -> Asked:
    """What the picture of a recipe was asked for. given: what the recipe does not hold; ValueError for what it does, or what
    was not there."""
    again = asked_of(given)
    for kind, row in reversed(KINDS.items()):
        if kind in again or any(getattr(recipe, field) for field in row.fields):
            own = row.load().again(generator, recipe, given)
            again[kind] = {name: value for name, value in own.items() if value is not None}
    return {kind: own for kind, own in again.items() if own}


def frame_of(asked: Asked) -> Frame | None:
    """What the network sees at once, where one of the kinds says so."""
    frames = [KINDS[kind].load().frame(own) for kind, own in asked.items()]
    return next((one for one in frames if one is not None), None)


def with_kinds(generator: Generator, asked: Asked, settings: Settings) -> Settings:
    """With what is asked for, made from the outermost to the innermost, and as they change it."""
    made: dict[str, Kind] = {}
    for name in reversed(KINDS):
        kind = KINDS[name].load().make(generator, asked[name], settings) if name in asked else None
        if kind is not None:
            made[name] = kind
            settings = kind.change(generator, settings)
    settings = replace(settings, kinds={name: made[name] for name in KINDS if name in made})
    for kind in settings.kinds.values():
        kind.check(settings)
    return settings
