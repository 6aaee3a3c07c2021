"""Do the parts of a config fit one another? Asked before a run begins, of one sample of the data: a network would train at
another size than its config says, or without reading a word, and nothing would stop it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.objectives.bases.objective import Objective
from distill.types import Batch
from gen.models.components import component_digest
from gen.nn.registry import config_of


class Disagreement(ValueError):
    """Parts of a config that do not fit one another; the message says which, and what to change."""


def check_start(built: nn.Module, loaded: nn.Module, folder: Path) -> None:
    """The weights of init_from must be of the network that the section network describes."""
    asked, found = config_of(built), config_of(loaded)
    differ = [key for key in {**asked, **found} if asked.get(key) != found.get(key)]
    if differ:
        differences = ", ".join(f"{key} {asked.get(key)} and {found.get(key)}" for key in differ[:5])
        raise Disagreement(
            f"The section network and the network in init_from ({folder}) differ: {differences}. Write the section as it is in "
            "that folder's config.json, or leave init_from out."
        )


def check_agreement(objective: Objective, source: Any) -> None:
    """Disagreement where the data, the encoders and the network that trains do not fit one another."""
    given: Any = objective
    name, network = next((name, role.network) for name, role in objective.roles.items() if role.trains)
    config = getattr(network, "config", None)
    batch = source.batch(range(1))
    _check_autoencoder(given, source)
    _check_text(given, config, batch)
    _check_labels(given, config, batch, source)
    _check_size(given, config, batch, source, name)


def _check_autoencoder(objective: Any, source: Any) -> None:
    """Latents must be of the autoencoder by which pictures are made of them again."""
    where = getattr(source, "autoencoder_folder", None)
    if where is None or getattr(objective, "autoencoder", None) is None:
        return
    path = getattr(objective.config, "autoencoder", None)
    own = component_digest(path) if isinstance(path, Path) else getattr(objective, "teacher", None)
    own = own if isinstance(own, str) or own is None else own.weights.get("autoencoder")
    if own and component_digest(where) != own:
        what = f"objective.autoencoder ({path})" if isinstance(path, Path) else "the teacher's"
        raise Disagreement(
            f"The latents are made by data.autoencoder ({where}), whose weights are not {what}; give one of both."
        )


def _check_text(objective: Any, config: Any, batch: Batch) -> None:
    wanted = getattr(config, "text_dim", None)
    if wanted is None or not hasattr(objective, "text_encoder"):
        return
    encoder = objective.text_encoder
    if wanted and encoder is None:
        raise Disagreement(
            f"The network reads text (network.text_dim is {wanted}), and there is no text encoder, so it would train without "
            "reading a word: give objective.text_encoder, or leave network.text_dim and text_tokens out."
        )
    if encoder is None:
        return
    dim, tokens = getattr(encoder, "dim", None), getattr(encoder, "max_tokens", None)
    if not wanted:
        raise Disagreement(
            f"There is a text encoder, and the network reads no text (network.text_dim is 0): set network.text_dim to {dim} "
            f"and text_tokens to {tokens}, or leave the text encoder out."
        )
    if dim is not None and dim != wanted:
        raise Disagreement(f"network.text_dim is {wanted}, and the text encoder's features are {dim} wide; set it to {dim}.")
    most = getattr(config, "text_tokens", None)  # an evaluation network reads any number
    if tokens is not None and most is not None and tokens > most:
        raise Disagreement(f"network.text_tokens is {most}, and the text encoder gives {tokens} tokens; set it to {tokens}.")
    if batch.captions is None:
        raise Disagreement("The network reads text, and the data have no captions; give data that have, or set text_dim to 0.")


def _check_labels(objective: Any, config: Any, batch: Batch, source: Any) -> None:
    classes = getattr(config, "num_classes", 0)
    if not classes or getattr(objective, "text_encoder", None) is not None or not hasattr(objective, "condition"):
        return
    if batch.labels is None:
        raise Disagreement(
            f"The network takes labels (network.num_classes is {classes}), and the data have none, so it would train without; "
            "give data with classes, or set num_classes to 0."
        )
    labels = getattr(source, "labels", None)
    most = int(labels.max()) if isinstance(labels, Tensor) and labels.numel() else int(batch.labels.max())
    if most >= classes:
        raise Disagreement(
            f"The data have the label {most}, and the network knows 0 to {classes - 1}; set network.num_classes to at least "
            f"{most + 1}."
        )


def _check_size(objective: Any, config: Any, batch: Batch, source: Any, name: str) -> None:
    size, channels = getattr(config, "size", None), getattr(config, "channels", None)
    if size is None or (batch.images is None and batch.latents is None):
        return
    try:
        x = objective.clean(batch)
    except NotImplementedError:
        x = batch.images if batch.images is not None else batch.latents
    assert isinstance(x, Tensor)
    what = "latents" if getattr(objective, "autoencoder", None) is not None or batch.images is None else "pictures"
    if channels is not None and x.shape[1] != channels:
        raise Disagreement(
            f"The network of role {name!r} takes {channels} channels (network.channels), and the data's {what} have "
            f"{x.shape[1]}; set it to {x.shape[1]}."
        )
    height, width = x.shape[2:]
    if several_sizes(source) or (height, width) == (size, size):
        return
    factor = getattr(getattr(objective, "autoencoder", None), "factor", 1)
    seen = f"{height}x{width} {what}" + (f" of {height * factor}x{width * factor} pictures" if factor > 1 else "")
    raise Disagreement(
        f"The network of role {name!r} is of size {size} (network.size), and the data give {seen}: set the data's size to "
        f"{size * factor}" + (f", or network.size to {height}." if height == width else ".")
    )


def several_sizes(source: Any) -> bool:
    """Has a source pictures of several shapes, in batches of one each?"""
    inner = getattr(source, "source", source)
    return len(getattr(inner, "sizes", ())) > 1 or getattr(getattr(inner, "config", None), "buckets", None) is not None


@torch.no_grad()
def checked(objective: Objective, source: Any) -> Objective:
    """The objective, after `check_agreement`."""
    check_agreement(objective, source)
    return objective
