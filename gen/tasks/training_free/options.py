"""The declaration of training-free changes: keywords, and what recipes keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Name, Option, Record, Text
from gen.tasks.declaration import RecipeField, TaskOptions, Work, names_of


class First(Record):
    """The first picture of a batch, where the others were made to differ from it."""

    prompt: Text = ""
    negative_prompt: Text = ""
    class_label: int = Field(-1, ge=-1)
    seed: int = Field(ge=0, lt=1 << 63)


class TrainingFreeRecord(Record):
    """One change of the run: sha256 of its pictures or embedding and of their masks, its texts, an energy of the closed table
    ("" for none, or the maker's own code), numbers, and the picture that the batch began with."""

    digests: tuple[Digest, ...] = ()
    masks: tuple[Digest, ...] = ()
    texts: tuple[Text, ...] = ()
    energy: Name = ""
    options: dict[Name, Option] = Field({})
    first: First | None = None


@dataclass(frozen=True)
class TrainingFreeOptions:
    """The keywords of a call. Pictures are files, PIL pictures, arrays or tensors, one or a list.

    negtome: pictures to stay away from, or "batch", the batch's first picture.
    negtome_mask: white where each counts. Options: scale 0.9, threshold 0.65, layers, interval
        (`samplers.guidance.NegativeMerging`).
    reference: pictures that self-attention sees.
    reference_mask: white where each counts.
    reference_prompt: what each shows, the call's own prompt if left out. Options: weight 3, layers, interval, null
        (`samplers.guidance.MultiReference`).
    concepts: words of the prompt that must not mix. Options: strength 0.1, window 3, quantile 0.7 of the correction,
        suppression 1 and interval of the attention maps (`samplers.guidance.t2i_zero`).
    aesthetic: texts, or a safetensors file with one embedding, towards which the text encoder is moved for each prompt.
        Options: steps 10, rate 1e-4.
    greedy: an energy's name, or a function (pictures (B, 3, H, W) in [0, 1], condition) -> (B,), higher is better. Options:
        iterations and rate of gradient steps, or candidates: scales, interpolations, draws (with spread); limit, interval; and
        those of the energy (`samplers.guidance.Greedy`).
    """

    negtome: Any = None
    negtome_mask: Any = None
    negtome_options: Mapping[str, Any] | None = None
    reference: Any = None
    reference_mask: Any = None
    reference_prompt: str | Sequence[str] | None = None
    reference_options: Mapping[str, Any] | None = None
    concepts: str | Sequence[str] | None = None
    concepts_options: Mapping[str, Any] | None = None
    aesthetic: Any = None
    aesthetic_options: Mapping[str, Any] | None = None
    greedy: Any = None
    greedy_options: Mapping[str, Any] | None = None


def _work(recipe: Any) -> Work:
    records = recipe.tweaks.values()
    return Work(tuple(record.options for record in records), beside=sum(len(record.digests) for record in records))


def _colours_matched_in_rgb(recipe: Any) -> dict[str, Any]:
    greedy = recipe.tweaks.get("greedy")
    if greedy is None or greedy.energy != "colour":
        return {}
    return {"tweaks": {**recipe.tweaks, "greedy": greedy.model_copy(update={"options": {"match": "rgb", **greedy.options}})}}


OPTIONS = TaskOptions(
    TrainingFreeOptions,
    names_of(TrainingFreeOptions),
    {"tweaks": RecipeField(dict[Name, TrainingFreeRecord], {}, place=5)},
    work=_work,
    upgrades={1: _colours_matched_in_rgb},
)
