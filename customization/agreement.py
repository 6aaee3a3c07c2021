"""Do the data of a run fit the model that is to be taught? Asked before it begins, of one sample, as
`distill.agreement` asks of a network that is trained whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customization.size_sampling import Sizes
from distill.agreement import Disagreement, several_sizes
from distill.types import Batch
from gen.models.buckets import LEAST, MOST
from gen.models.components import component_digest

if TYPE_CHECKING:
    from customization.base.objective import CustomizationObjective
    from gen.generator import Generator


@torch.no_grad()
def check_agreement(objective: CustomizationObjective, source: Any) -> None:
    """Disagreement where the data are not what the model works on: latents of another autoencoder, pictures of a size that it
    was not made for, no captions for a model that reads text, no labels or unknown ones for a model of classes."""
    generator = objective.generator
    batch = source.batch(range(1))
    _check_conditions(generator, batch, source)
    _check_latents(generator, batch, source)
    if batch.images is not None or batch.latents is not None:
        _check_size(generator, objective.clean(batch), source)


def _check_conditions(generator: Generator, batch: Batch, source: Any) -> None:
    if generator.text_encoder is not None:
        if batch.captions is None:
            raise Disagreement(
                f"The model {generator.name!r} reads text, and the data have no captions; give data that have, or type: "
                "concept with a prompt for all pictures."
            )
        return
    if not generator.classes:
        return
    if batch.labels is None:
        raise Disagreement(
            f"The model {generator.name!r} takes labels of {generator.classes} classes, and the data have none; give data with "
            "classes (folders, or labels)."
        )
    labels = getattr(source, "labels", None)
    most = int(labels.max()) if isinstance(labels, Tensor) and labels.numel() else int(batch.labels.max())
    if most >= generator.classes:
        raise Disagreement(
            f"The data have the label {most}, and the model {generator.name!r} knows 0 to {generator.classes - 1}; give data "
            "of its classes."
        )


def _check_latents(generator: Generator, batch: Batch, source: Any) -> None:
    if batch.latents is None:
        return
    if generator.autoencoder is None:
        raise Disagreement(f"The data are latents, and the model {generator.name!r} works on pictures; give the pictures.")
    where = getattr(source, "autoencoder_folder", None)
    own = generator.weights.get("autoencoder")
    if where is not None and own and component_digest(where) != own:
        raise Disagreement(
            f"The latents are made by data.autoencoder ({where}), whose weights are not those of the model {generator.name!r}; "
            "give its own, or pictures in place of latents."
        )


def _check_size(generator: Generator, x: Tensor, source: Any) -> None:
    if x.shape[1] != generator.channels:
        raise Disagreement(
            f"The model {generator.name!r} works on {generator.channels} channels, and the data have {x.shape[1]}; give data "
            "made for it."
        )
    factor, side = generator.factor, generator.config.sample_size
    height, width = (size * factor for size in x.shape[2:])
    multiple = factor * generator.network.config.patch
    if height % multiple or width % multiple:
        raise Disagreement(
            f"The model {generator.name!r} takes sides that are multiples of {multiple}, and the data give pictures of "
            f"{width} x {height}; set the data's size to {side}."
        )
    if isinstance(source, Sizes) or several_sizes(source):
        return  # sizes of others are what is taught, or each picture has its own
    if not LEAST <= height * width / side**2 <= MOST:
        raise Disagreement(
            f"The model {generator.name!r} was made for pictures of {side} x {side}, and the data give {width} x {height}; set "
            f"the data's size to {side}, or teach it other sizes with type: sizes (configs/lora/res_adapter.yaml)."
        )
