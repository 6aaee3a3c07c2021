"""A finished adapter as files: in the format that the config names, its new words by themselves, OFT as peft keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from customization.base.config import CustomizationConfig, Format
from customization.base.textual_inversion import file_name
from distill.networks.lora.peft_injection import peft_settings, peft_state
from gen.adapters import Adapter, write_adapter
from gen.adapters.files import IN_FOLDER
from gen.adapters.peft_config import BESIDE
from gen.io.weights import write_json, write_weights

WEIGHTS = "adapter.safetensors"  # in the export of formats that are one file


def export_adapter(
    adapter: Adapter,
    values: Mapping[str, Tensor],
    config: CustomizationConfig,
    metadata: Mapping[str, str],
    oft: Mapping[str, nn.Module],
    folder: Path,
) -> None:
    """Write an adapter into a folder.

    values: what it was made of, by the names of `CustomizationObjective.attach`.
    metadata: of the training, for the file.
    oft: part -> network of the parts whose adapter is an OFT, which are kept in peft's own form as well.
    """
    if adapter.layers or adapter.words:
        write_file(adapter, config.format, metadata, folder)
    for word, parts in adapter.words.items() if adapter.layers else ():  # by themselves as well, as diffusers reads them
        alone = Adapter(word, {}, {**metadata, "modelspec.trigger_phrase": word}, words={word: parts})
        write_adapter(alone, folder / f"{file_name(word)}.safetensors", "diffusers")
    for part, network in oft.items():
        peft_folder = folder / f"peft-{part}"
        peft_folder.mkdir(parents=True, exist_ok=True)
        write_json(peft_folder / BESIDE, peft_settings(network))
        write_weights(peft_folder / IN_FOLDER[0], peft_state(values_of(part, values)))


def write_file(adapter: Adapter, format: Format, metadata: Mapping[str, str], folder: Path) -> Path:
    """Write the adapter's file, or peft's folder, with the metadata; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = replace(adapter, metadata={**adapter.metadata, **metadata})
    if format == "ai-toolkit":
        adapter = replace(adapter, layers={layer: delta.folded() for layer, delta in adapter.layers.items()})
    if format in ("ai-toolkit", "peft"):  # words have no place there
        adapter, format = (replace(adapter, words={}), format) if adapter.layers else (adapter, "diffusers")
    return write_adapter(adapter, folder if format == "peft" else folder / WEIGHTS, format)


def values_of(part: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values of one part, by the names inside of it."""
    return {name.removeprefix(f"{part}."): value for name, value in values.items() if name.startswith(f"{part}.")}
