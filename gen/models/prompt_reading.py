"""How a prompt is read beside its words: what text encoders may be asked for, and which of them take what."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class SeenPicture:
    """A picture (1, 3, H, W) in [0, 1] that a text encoder sees beside the words, at the encoder's `seen_size`; it is told from
    others by the sha256 of the one that was given."""

    digest: str
    pixels: Tensor = field(compare=False, repr=False)


@dataclass(frozen=True)
class Reading:
    """None is the model's own way.

    prompt_2, prompt_3: another prompt for the second and third text encoder.
    clip_skip: how many of CLIP's last layers are left out, of positive prompts (diffusers' count, in which AUTOMATIC1111's 2 is
        1).
    max_sequence_length: tokens that T5 or a language model reads.
    pictures: that a text encoder which `sees` reads with every prompt.
    """

    prompt_2: str | None = None
    prompt_3: str | None = None
    clip_skip: int | None = None
    max_sequence_length: int | None = None
    pictures: tuple[SeenPicture, ...] | None = None

    @property
    def named(self) -> list[str]:
        """What is asked for."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]


USUAL = Reading()


def check_reading(text_encoder: Any, name: str, asked: list[str], negative: str = "") -> None:
    """ValueError for what the text encoder of the model `name` does not take."""
    takes = getattr(text_encoder, "takes", ())
    for option in asked:
        if option not in takes:
            listed = f"it takes {', '.join(takes)}" if takes else "it has one way of reading"
            raise ValueError(f"The model {name!r} takes no {negative}{option}: {listed}; leave it out.")
