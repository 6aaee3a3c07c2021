"""The declaration of how prompts are read: keywords, and what recipes keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from gen.io.record import Extent, Record, Text
from gen.tasks.declaration import RecipeField, TaskOptions, names_of

SizeIds = tuple[Extent, Extent, Extent, Extent, Extent, Extent]


class TextEncodingRecord(Record):
    """How prompts were read, where not in the model's own way (`gen.models.prompt_reading`), and the sizes that SDXL was told:
    height, width, top, left, height, width of the original, its crop and the target."""

    clip_skip: int | None = Field(default=None, ge=0, le=100)
    max_sequence_length: int | None = Field(default=None, ge=1, le=512)
    size_ids: SizeIds | None = None
    negative_size_ids: SizeIds | None = None


@dataclass(frozen=True)
class TextEncodingKeywords:
    """Keywords of a call, diffusers' own; None is the model's own way.

    clip_skip: how many of CLIP's last layers are left out.
    max_sequence_length: tokens that T5 reads.
    prompt_2, prompt_3, negative_prompt_2, negative_prompt_3: what further text encoders read, a text or one for each prompt.
    original_size, target_size and their negative forms: (height, width) that SDXL is told.
    crops_coords_top_left and its negative form: (top, left).
    """

    clip_skip: int | None = None
    max_sequence_length: int | None = None
    prompt_2: str | Sequence[str] | None = None
    prompt_3: str | Sequence[str] | None = None
    negative_prompt_2: str | Sequence[str] | None = None
    negative_prompt_3: str | Sequence[str] | None = None
    original_size: tuple[int, int] | None = None
    crops_coords_top_left: tuple[int, int] | None = None
    target_size: tuple[int, int] | None = None
    negative_original_size: tuple[int, int] | None = None
    negative_crops_coords_top_left: tuple[int, int] | None = None
    negative_target_size: tuple[int, int] | None = None


PROMPTS = ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")
OPTIONS = TaskOptions(
    TextEncodingKeywords,
    names_of(TextEncodingKeywords),
    {
        **{name: RecipeField(Text | None, None, place=1 + i, after="prompt_syntax") for i, name in enumerate(PROMPTS)},
        "encoding": RecipeField(TextEncodingRecord | None, None, place=5, after="prompt_syntax"),
    },
)
