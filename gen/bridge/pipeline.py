"""A folder that diffusers saved, as a model of ours.

model_index.json names a pipeline and its parts. Both are looked up in closed tables here; a name that is not in them is
refused, so no file chooses what code runs, nor where it is read from.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.bridge.families import dit, flux, pixart, sana, sd3, sdxl, stable_diffusion
from gen.bridge.families.base import Family
from gen.bridge.load import CLASSES, STEMS, load_network, load_tokenizer, read_part_config, weight_files
from gen.bridge.network import setting
from gen.bridge.schedule import sampling
from gen.bridge.vae import BridgedAutoencoder
from gen.checkpoints import CheckpointError, read_json
from gen.model_folder import ModelConfig, model_config

INDEX = "model_index.json"
VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny", "AutoencoderDC")  # the one part whose class a file may choose

PIPELINES: dict[str, Family] = {
    "StableDiffusionPipeline": stable_diffusion.FAMILY,
    "LatentConsistencyModelPipeline": stable_diffusion.LCM,
    "StableDiffusionXLPipeline": sdxl.FAMILY,
    "PixArtAlphaPipeline": pixart.ALPHA,
    "PixArtSigmaPipeline": pixart.SIGMA,
    "DiTPipeline": dit.FAMILY,
    "StableDiffusion3Pipeline": sd3.FAMILY,
    "FluxPipeline": flux.FAMILY,
    "SanaPipeline": sana.FAMILY,
}


def is_pipeline(folder: Path) -> bool:
    return (folder / INDEX).is_file() and not (folder / "config.json").exists()


def read_index(folder: Path) -> tuple[Family, dict[str, str], dict[str, Any]]:
    """(family, part -> the class to open it with, the index itself) of a pipeline's folder; CheckpointError if it is none
    that we open. Parts that a pipeline may have beside (a safety checker, an image encoder) are left where they are."""
    path = folder / INDEX
    index = read_json(path)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        near = difflib.get_close_matches(str(name), PIPELINES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise CheckpointError(path, f"is a {name!r}; {hint}pipelines that can be opened: {', '.join(PIPELINES)}.")
    family = PIPELINES[name]
    parts = {}
    for part, allowed in family.classes.items():
        library, given = _entry(path, part, index.get(part))
        if given is None:
            if part not in family.optional:
                raise CheckpointError(path, f"has no {part}, which {family.name} needs ({' or '.join(allowed)}).")
            continue
        if given not in allowed or library not in ("diffusers", "transformers"):
            shown = f"{library}.{given}"
            raise CheckpointError(path, f"gives {part} as {shown}; {family.name} has {' or '.join(allowed)} there.")
        parts[part] = given if given in VAE_CLASSES else allowed[0]
    return family, parts, index


def _entry(path: Path, part: str, value: Any) -> tuple[Any, Any]:
    if value is None:
        return None, None
    if not isinstance(value, list) or len(value) != 2:
        raise CheckpointError(
            path, f"has {part} = {value!r}; a pair such as ['diffusers', 'AutoencoderKL'] is meant to be there."
        )
    return value[0], value[1]


def open_pipeline(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[ModelConfig, dict[str, nn.Module], dict[str, str]]:
    """(config, networks by our part names, sha256 of their weights) of a pipeline's folder.

    dtype: of the denoiser and the text encoders; the autoencoder is float32, as some overflow in half precision.
    """
    family, classes, index = read_index(folder)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    settings = sampling(scheduler, read_json(scheduler, infinite=True))
    for part, name in classes.items():  # all configs before any weights
        if "Tokenizer" not in name:
            read_part_config(folder / part)
    loaded: dict[str, Any] = dict.fromkeys(family.classes)
    weights = {}
    for part, name in classes.items():
        if "Tokenizer" in name:
            loaded[part] = load_tokenizer(folder / part, name)
        else:
            loaded[part], weights[part] = load_network(folder / part, name, torch.float32 if part == "vae" else dtype)
    try:
        autoencoder = BridgedAutoencoder(loaded["vae"])
        network = family.network(loaded, index)
        reader = None if family.reader is None else family.reader(loaded, index)
        _check_fit(network, autoencoder, loaded[family.backbone])
        defaults = {**settings["defaults"], **family.defaults(loaded[family.backbone])}
        config = model_config(
            {
                "path": settings["path"],
                "prediction": settings["prediction"],
                "clock": family.clock,
                "sample_size": family.size(loaded[family.backbone], autoencoder.factor),
                "defaults": defaults,
                "classes": family.class_names(index),
            }
        )
    except ValueError as error:
        raise CheckpointError(folder, f"cannot be opened as {family.name}: {error}") from None
    parts: dict[str, nn.Module] = {"denoiser": network, "autoencoder": autoencoder}
    if reader is not None:
        reader.encoders = {part: loaded[part] for part in classes if part.startswith("text_encoder")}
        parts["text_encoder"] = reader
    return config, parts, weights


def _check_fit(network: Any, autoencoder: BridgedAutoencoder, backbone: nn.Module) -> None:
    if network.config.channels != autoencoder.channels:
        raise ValueError(
            f"the network takes {network.config.channels} channels and the autoencoder makes {autoencoder.channels}; "
            "networks for inpainting or depth are not supported."
        )
    if (classes := setting(backbone, "class_embed_type")) is not None:
        raise ValueError(f"its network embeds {classes!r} beside the text, which is not supported.")


def needed_files(names: list[str], classes: Mapping[str, str]) -> list[str]:
    """Of a repository's file names those that a pipeline needs: configs, vocabularies and one kind of weights for each part.

    CheckpointError for a part without safetensors.
    """
    wanted = [name for name in (INDEX, "scheduler/scheduler_config.json", "README.md") if name in names]
    for part, kind in classes.items():
        own = {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/") and name.count("/") == 1}
        if "Tokenizer" in kind:
            wanted += sorted(f"{part}/{name}" for name in own if name.endswith((".json", ".txt", ".model")))
            continue
        _, files, listing = weight_files(own, STEMS[CLASSES[kind]])
        if not files:
            raise CheckpointError(part, "has no safetensors in this repository, and other formats are not read.")
        wanted += [f"{part}/{name}" for name in ("config.json", *files, *([listing] if listing else []))]
    return wanted
