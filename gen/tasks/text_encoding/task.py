"""What a call says of how its prompts are read: CLIP's layers, T5's length, prompts for further encoders, SDXL's sizes.

The names and counts are diffusers'.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from gen.io.validators import check_int, check_texts
from gen.models.prompt_reading import Reading, check_reading
from gen.nn.conditions import pad_to_longest
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Item, SamplingBatch, Settings, Task
from gen.tasks.text_encoding.options import PROMPTS, SizeIds, TextEncodingKeywords, TextEncodingRecord

if TYPE_CHECKING:
    from gen.models.model import Model
    from samplers.denoiser import Condition

MAX_TOKENS = 512  # of T5, as in diffusers
MAX_SIDE = 16_384


@dataclass(frozen=True)
class TextEncoding(Task):
    """A checked request. prompts: keyword -> one text, or one for each prompt."""

    encoding: TextEncodingRecord
    prompts: Mapping[str, list[str]] = field(default_factory=dict)

    @classmethod
    def from_call(cls, model: Model, args: TextEncodingKeywords, settings: Settings) -> tuple[TextEncoding, Settings]:
        reading = Reading(
            clip_skip=_optional("clip_skip", args.clip_skip, 0, 100),
            max_sequence_length=_optional("max_sequence_length", args.max_sequence_length, 1, MAX_TOKENS),
        )
        given = {name: value for name, value in vars(args).items() if value is not None}
        prompts = {name: check_texts(name, given[name]) for name in PROMPTS if name in given}
        check_reading(model.text_encoder, model.name, reading.named)
        for name in prompts:
            positive = name.removeprefix("negative_")
            check_reading(model.text_encoder, model.name, [positive], name.removesuffix(positive))
        sizes = {name: value for name, value in given.items() if name.endswith(("_size", "_top_left"))}
        if sizes and not getattr(model.network, "reads_sizes", False):
            raise ValueError(f"The model {model.name!r} is told no sizes (SDXL is); leave {next(iter(sizes))} out.")
        negative_ids = _negative_ids(sizes)
        encoding = TextEncodingRecord(
            clip_skip=reading.clip_skip,
            max_sequence_length=reading.max_sequence_length,
            size_ids=_size_ids(sizes, "", settings.seen) if sizes else None,
            negative_size_ids=negative_ids,
        )
        # the task of a picture, which is made first, may have said what else is read
        asked = {name: getattr(reading, name) for name in reading.named}
        return cls(encoding, prompts), replace(settings, reading=replace(settings.reading, **asked))

    @classmethod
    def args_from_recipe(cls, model: Model, recipe: Recipe, keywords: Mapping[str, Any]) -> TextEncodingKeywords:
        args: dict[str, Any] = {name: getattr(recipe, name) for name in PROMPTS}
        if (encoding := recipe.encoding) is not None:
            args |= {"clip_skip": encoding.clip_skip, "max_sequence_length": encoding.max_sequence_length}
            for prefix, ids in (("", encoding.size_ids), ("negative_", encoding.negative_size_ids)):
                if ids is not None:
                    names = ("original_size", "crops_coords_top_left", "target_size")
                    args |= {f"{prefix}{name}": ids[2 * i : 2 * i + 2] for i, name in enumerate(names)}
        return TextEncodingKeywords(**args)

    def check(self, settings: Settings, recipe: Recipe | None = None) -> None:
        sized = self.encoding.size_ids or self.encoding.negative_size_ids
        for name in ("layout", "views"):
            if name in settings.tasks and (sized or self.prompts):
                raise ValueError(f"Sizes and further prompts are of a whole picture, which {name} is not; leave them out.")

    def change_items(self, items: list[Item], per_prompt: int, recipe: Recipe | None = None) -> list[Item]:
        count = len(items) // per_prompt
        texts: dict[str, list[str | None]] = {name: [None] * count for name in PROMPTS}
        for name, given in self.prompts.items():
            if len(given) not in (1, count):
                raise ValueError(f"{name} has {len(given)} entries where {count} are asked for; give one for all, or {count}.")
            texts[name] = [*given] * (count if len(given) == 1 else 1)
        rows = list(zip(*(texts[name] for name in PROMPTS), strict=True))
        return [
            replace(item, others=rows[i // per_prompt][:2], negative_others=rows[i // per_prompt][2:])
            for i, item in enumerate(items)
        ]

    def prepare(self, batch: SamplingBatch) -> SamplingBatch:
        """With the sizes that the network is told; those of what the picture should not be need a condition of their own."""
        condition, negative, encoding = batch.condition, batch.negative, self.encoding
        if encoding.negative_size_ids is not None and negative is None:
            refused = batch.model.encode_prompt(
                [""] * len(batch.items), batch.settings.adapters, negative=True, reading=batch.settings.reading
            )
            condition, negative = pad_to_longest([condition, replace(refused, extra=condition.extra)])
        condition = _told(condition, encoding.size_ids)
        negative = negative and _told(negative, encoding.negative_size_ids or encoding.size_ids)
        return replace(batch, condition=condition, negative=negative)

    def record(self, items: Sequence[Item]) -> dict[str, Any]:
        return {} if self.encoding == TextEncodingRecord() else {"encoding": self.encoding}


def _told(condition: Condition, ids: SizeIds | None) -> Condition:
    if ids is None:
        return condition
    assert condition.tokens is not None
    rows = torch.tensor([ids] * len(condition.tokens), dtype=torch.float32, device=condition.tokens.device)
    return replace(condition, extra={**condition.extra, "size_ids": rows})


def _optional(name: str, value: object, low: int, high: int) -> int | None:
    return None if value is None else check_int(name, value, low, high)


def _size_ids(sizes: Mapping[str, Any], prefix: str, made: tuple[int, int]) -> SizeIds:
    """(height, width, top, left, height, width): original, crop, target; sizes that are not given are the picture's."""
    names = [f"{prefix}{name}" for name in ("original_size", "crops_coords_top_left", "target_size")]
    original, target = (_pair(name, sizes.get(name, made), 1) for name in (names[0], names[2]))
    return (*original, *_pair(names[1], sizes.get(names[1], (0, 0)), 0), *target)


def _negative_ids(sizes: Mapping[str, Any]) -> SizeIds | None:
    given = [name for name in sizes if name.startswith("negative_")]
    for name in ("negative_original_size", "negative_target_size"):
        if given and name not in given:
            raise ValueError(f"{given[0]} was given without {name}; give negative_original_size and negative_target_size.")
    return _size_ids(sizes, "negative_", (1, 1)) if given else None


def _pair(name: str, value: object, low: int) -> tuple[int, int]:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name} is {value!r}; give two whole numbers, height (top) first.")
    first, second = (check_int(name, one, low, MAX_SIDE) for one in value)
    return first, second
