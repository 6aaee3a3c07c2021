"""Training-free changes of a run beside guidance, as a call asks for them: the closed table, and what a call may say.

    generator("a cat", negtome="cat.png")                        away from what a picture looks like
    generator("a cat", reference="cat.png")                      towards it, through self-attention
    generator("a cat and a dog", concepts=["cat", "dog"])        words that must not mix
    generator("a cat", aesthetic="a watercolour painting")       the prompt's reading moved towards another text's
    generator("a cat", greedy=score)                             of several clean images the best, at every step

Each has options of its own, `negtome_options` and so on. A recipe keeps names, numbers, texts and the sha256 of pictures.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

from torch import Tensor

from gen.recipe import First, TweakRecord
from samplers.denoiser import Condition

if TYPE_CHECKING:
    from gen.generator import Generator
    from gen.request import Item
    from samplers.denoiser import Denoiser
    from samplers.noise import NoiseSource


class TweakOptions(TypedDict, total=False):
    """The keywords of a call. Pictures are files, PIL pictures, arrays or tensors, one or a list.

    negtome: pictures to stay away from, or "batch", the batch's first picture; negtome_mask: white where each counts. Options:
    scale 0.9, threshold 0.65, layers, interval (`samplers.guidance.NegativeMerging`).
    reference: pictures that self-attention sees; reference_mask: white where each counts; reference_prompt: what each shows,
    the call's own prompt if left out. Options: weight 3, layers, interval, null (`samplers.guidance.MultiReference`).
    concepts: words of the prompt that must not mix. Options: strength 0.1, window 3, quantile 0.7 of the correction,
    suppression 1 and interval of the attention maps (`samplers.guidance.concepts`).
    aesthetic: texts, or a safetensors file with one embedding, towards which the text encoder is moved for each prompt.
    Options: steps 10, rate 1e-4.
    greedy: an energy's name, or a function (pictures (B, 3, H, W) in [0, 1], condition) -> (B,), higher is better. Options:
    iterations and rate of gradient steps, or candidates: scales, interpolations, draws (with spread); limit, interval; and
    those of the energy (`samplers.guidance.Greedy`).
    """

    negtome: Any
    negtome_mask: Any
    negtome_options: Mapping[str, Any] | None
    reference: Any
    reference_mask: Any
    reference_prompt: str | Sequence[str] | None
    reference_options: Mapping[str, Any] | None
    concepts: str | Sequence[str] | None
    concepts_options: Mapping[str, Any] | None
    aesthetic: Any
    aesthetic_options: Mapping[str, Any] | None
    greedy: str | Callable[..., Tensor] | None
    greedy_options: Mapping[str, Any] | None


# name -> (module, class), in the order in which they go around the network
TWEAKS: dict[str, tuple[str, str]] = {
    "reference": ("gen.tweaks.pictures", "Reference"),
    "negtome": ("gen.tweaks.pictures", "NegTome"),
    "aesthetic": ("gen.tweaks.aesthetic", "Aesthetic"),
    "concepts": ("gen.tweaks.concepts", "Concepts"),
    "greedy": ("gen.tweaks.greedy", "GreedyChoice"),
}


class Tweak:
    """Base of the rows: each changes what it has to."""

    record: TweakRecord
    unrecorded: tuple[str, ...] = ()

    @classmethod
    def make(cls, generator: Generator, given: Mapping[str, Any], height: int, width: int) -> Tweak:
        """From the keywords of a call that begin with its name; ValueError says what cannot be used."""
        raise NotImplementedError

    @classmethod
    def again(cls, record: TweakRecord, given: Mapping[str, Any]) -> dict[str, Any]:
        """The keywords for a replay: those of the record, and what the caller gave where it holds no more than a digest."""
        raise NotImplementedError

    def read(
        self, generator: Generator, prompts: Sequence[str], condition: Condition, adapters: Mapping[str, float]
    ) -> Condition:
        """The prompts' condition, changed."""
        return condition

    def inside(
        self, generator: Generator, denoiser: Denoiser, seeds: Sequence[int], prompts: Sequence[str], condition: Condition
    ):
        """Around the network and its caches."""
        return denoiser

    def outside(self, generator: Generator, denoiser: Denoiser, noise: NoiseSource, prompts: Sequence[str]) -> Denoiser:
        """Around all guidance."""
        return denoiser

    def recorded(self, items: Sequence[Item]) -> TweakRecord:
        """What recipes of this batch say of it."""
        return self.record


@dataclass(frozen=True)
class Tweaks:
    """Those of one call, by name."""

    parts: Mapping[str, Tweak]

    def read(
        self, generator: Generator, prompts: Sequence[str], condition: Condition, adapters: Mapping[str, float]
    ) -> Condition:
        for part in self.parts.values():
            condition = part.read(generator, prompts, condition, adapters)
        return condition

    def inside(self, generator: Generator, seeds: Sequence[int], prompts: Sequence[str], condition: Condition):
        """What goes around the network and its caches, as one function of a denoiser."""

        def around(denoiser: Denoiser) -> Denoiser:
            for part in self.parts.values():
                denoiser = part.inside(generator, denoiser, seeds, prompts, condition)
            return denoiser

        return around

    def outside(self, generator: Generator, denoiser: Denoiser, noise: NoiseSource, prompts: Sequence[str]) -> Denoiser:
        for part in self.parts.values():
            denoiser = part.outside(generator, denoiser, noise, prompts)
        return denoiser

    def records(self, items: Sequence[Item]) -> dict[str, TweakRecord]:
        return {name: part.recorded(items) for name, part in self.parts.items()}

    @property
    def unrecorded(self) -> tuple[str, ...]:
        return tuple(what for part in self.parts.values() for what in part.unrecorded)


def check_names(given: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords that say something. TypeError, as of any function, for one that there is not."""
    known = TweakOptions.__annotations__
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, [*known, *_others()], 1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise TypeError(f"A call takes no {name!r}{hint}")
    return {name: value for name, value in given.items() if value is not None and value != () and value != [] and value != {}}


def make_tweaks(generator: Generator, given: Mapping[str, Any], height: int, width: int) -> Tweaks:
    """ValueError for options without the thing that they are of, and for what cannot go together."""
    for name in given:
        base = next(row for row in TWEAKS if name.startswith(row))
        if base not in given:
            raise ValueError(f"{name} was given without {base}; give {base} too.")
    if "negtome" in given and "reference" in given:
        raise ValueError("negtome and reference both put pictures beside the batch; give one of them.")
    parts = {}
    for name, (module, row) in TWEAKS.items():
        if name in given:
            own = {key.removeprefix(name).lstrip("_"): value for key, value in given.items() if key.startswith(name)}
            parts[name] = getattr(importlib.import_module(module), row).make(generator, own, height, width)
    return Tweaks(parts)


def replayed_tweaks(
    generator: Generator, records: Mapping[str, TweakRecord], given: Mapping[str, Any], height: int, width: int
) -> Tweaks | None:
    """Those of a recipe; `given` are the pictures, files and functions that it does not hold. ValueError where one is missing,
    another than it was, or not wanted."""
    keywords: dict[str, Any] = {}
    for name in given:
        base = next(row for row in TWEAKS if name.startswith(row))
        if base not in records:
            raise ValueError(f"The picture was made without {base}; leave {name} out.")
    for name, record in records.items():
        if name not in TWEAKS:
            raise ValueError(f"The recipe has a tweak {name!r:.40}, which this fewstep does not know; use a newer one.")
        module, row = TWEAKS[name]
        own = {key.removeprefix(name).lstrip("_"): value for key, value in given.items() if key.startswith(name)}
        again = getattr(importlib.import_module(module), row).again(record, own)
        keywords |= {
            f"{name}_{key}" if key else name: value for key, value in {**again, "options": dict(record.options)}.items()
        }
    if not keywords:
        return None
    made = make_tweaks(generator, check_names(keywords), height, width)
    for name, part in made.parts.items():
        if (part.record.digests, part.record.masks) != (records[name].digests, records[name].masks):
            raise ValueError(f"This {name} is not the one that the picture was made with: its sha256 differs.")
    return made


def first_of(records: Mapping[str, TweakRecord]) -> First | None:
    """The batch's first picture, where others depend on it."""
    return next((record.first for record in records.values() if record.first is not None), None)


def wanted(name: str, again: str) -> ValueError:
    return ValueError(f"The picture was made with {name}, which its recipe does not hold; give it again ({again}).")


def several(value: Any) -> list[Any]:
    """One or a list, as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _others() -> list[str]:
    import inspect

    from gen.generator import Generator

    return [name for name in inspect.signature(Generator.__call__).parameters if name != "self"]
