"""The declaration of image prompts: keywords, and what recipes keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from gen.io.record import Digest, Name, Record
from gen.tasks.declaration import RecipeField, TaskOptions, names_of


class ImagePromptRecord(Record):
    """The pictures of one IP-Adapter: sha256 of its file, of its encoder's weights, of the pictures' bytes, of embeddings that
    were given and of the masks; how strongly, one number for all pictures or one for each; by layer of the network, where only
    some take part; the log-SNR between which it acts."""

    adapter: Digest
    encoder: Digest | None = None
    images: tuple[Digest, ...] = ()
    embeds: Digest | None = None
    masks: tuple[Digest, ...] = ()
    scale: tuple[float, ...] = (1.0,)
    layers: dict[Name, float] = Field({}, max_length=200)
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class ImagePromptKeywords:
    """Keywords of a call; for several adapters lists of one length.

    ip_adapter: the file of an IP-Adapter (safetensors).
    ip_adapter_image: its picture (file, PIL, array or tensor), or a list of several.
    ip_adapter_scale: how strongly, 1 if None: a number; a list with one for each picture; or numbers by layer, as in
        {"up": {"block_0": [0.0, 1.0, 0.0]}}, where what is not named is 0.
    ip_adapter_mask: white where a picture counts; one for each picture.
    ip_adapter_image_embeds: embeddings (N, E) in the place of pictures, or (2, N, E) with those of no picture first, as
        diffusers has them; of faces, for adapters that read these.
    ip_adapter_encoder: folder or hub id of the vision encoder; the folder image_encoder near the file if None.
    ip_adapter_range: (lowest, highest) log-SNR where it acts; everywhere if None.
    """

    ip_adapter: Any = None
    ip_adapter_image: Any = None
    ip_adapter_scale: Any = None
    ip_adapter_mask: Any = None
    ip_adapter_image_embeds: Any = None
    ip_adapter_encoder: Any = None
    ip_adapter_range: Any = None


OPTIONS = TaskOptions(
    ImagePromptKeywords,
    names_of(ImagePromptKeywords),
    {"image_prompts": RecipeField(tuple[ImagePromptRecord, ...], (), place=9)},
)
