"""The closed list of formats, and which of them a file has."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import nn

from gen.io.weights import listed
from gen.models.formats import (
    adm,
    adm_classifier,
    diffusers_dit,
    diffusers_flux,
    diffusers_pixart,
    diffusers_qwen_image,
    diffusers_sd3,
    diffusers_z_image,
    dit,
    flux,
    pixart,
    sd3,
    uvit,
    z_image,
)
from gen.models.formats.format import Format
from gen.models.formats.table import Slots, nearest
from gen.nn.registry import COMPONENTS, config_of

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        *(uvit, dit, pixart, diffusers_dit, diffusers_pixart, sd3, diffusers_sd3, flux, diffusers_flux),
        *(diffusers_qwen_image, z_image, diffusers_z_image, adm, adm_classifier),
    )
}

# our network -> diffusers' format of it; a DiT has two
THEIR_FORMATS = {
    "mmdit": "diffusers-sd3",
    "flux": "diffusers-flux",
    "qwen_image": "diffusers-qwen-image",
    "z_image": "diffusers-z-image",
}


def their_format(network: nn.Module) -> Format:
    """diffusers' format of a network of ours that it has, too."""
    config: Any = network.config
    kind = config_of(network)["type"]
    return FORMATS[THEIR_FORMATS.get(kind) or ("diffusers-dit" if config.modulation == "adaln" else "diffusers-pixart")]


def their_config(network: nn.Module) -> dict[str, Any]:
    """What diffusers' config.json says of a network of ours that it has, too."""
    written = their_format(network).config_out
    assert written is not None
    return written(config_of(network))


def adapted_formats(network: nn.Module) -> list[dict[str, Slots]]:
    """For every format that adapters for a network of ours may be named by: their names and where they belong in it.

    Of a DiT that is diffusers' format alone, as the authors' names are ours; [] for a network of others."""
    from gen.models.formats.read import slots_of

    path = type(network).__module__, type(network).__qualname__
    kind = next((kind for kind, (module, _, name) in COMPONENTS.items() if (module, name) == path), None)
    formats = [format for format in FORMATS.values() if format.kind == kind and kind not in ("uvit", "dit")]
    if kind == "dit":
        formats = [their_format(network)]
    return [slots_of(format, network) for format in formats]


def find(name: str) -> Format:
    if name not in FORMATS:
        raise ValueError(f"Unknown format {name!r}{nearest(name, FORMATS)}; known: {', '.join(FORMATS)}.")
    return FORMATS[name]


def detect(names: Collection[str]) -> str:
    """The format that has tensors of these names; ValueError where none, or more than one, has."""
    matching = [format.name for format in FORMATS.values() if all(name in names for name in format.signature)]
    if len(matching) == 1:
        return matching[0]
    what = f"fits {' and '.join(matching)}" if matching else f"is of no format that is known ({', '.join(FORMATS)})"
    raise ValueError(f"{what}; its first tensors are {listed(sorted(names)) or 'none'}")
