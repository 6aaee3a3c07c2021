"""A folder that diffusers saved, as a model of ours.

model_index.json names a pipeline and its parts. Both are looked up in closed tables here; a name that is not in them is
refused, so no file chooses what code runs, nor where it is read from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gen.io.weights import CheckpointError, read_json
from gen.models.bridge.families.base import Family
from gen.models.bridge.families.table import FAMILIES
from gen.models.bridge.generic.table import WHOLE
from gen.models.bridge.hub import part_folder
from gen.models.bridge.load import CLASSES, STEMS, load_network, load_tokenizer, read_part_config, variants_for, weight_files
from gen.models.bridge.network import BridgedNetwork, setting
from gen.models.bridge.parts import VAE_CLASSES, open_autoencoder
from gen.models.bridge.schedule import sampling
from gen.models.bridge.vae import BridgedAutoencoder
from gen.models.buckets import TABLES
from gen.models.folder import Opened, Pipeline, model_config
from gen.nn.initialisation import wants_sizes_only
from samplers.lookup import nearest

INDEX = "model_index.json"

PIPELINES: dict[str, Family] = {name: row.family for name, row in FAMILIES.items()}


def is_pipeline(folder: Path) -> bool:
    return (folder / INDEX).is_file() and not (folder / "config.json").exists()


def read_index(folder: Path) -> tuple[Family, dict[str, str], dict[str, Any]]:
    """(family, part -> the class to open it with, the index itself) of a pipeline's folder; CheckpointError if it is none
    that we open. Parts that a pipeline may have beside (a safety checker, an image encoder) are left where they are."""
    path = folder / INDEX
    index = read_json(path)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINES:
        short = {pipeline.removesuffix("Pipeline"): pipeline for pipeline in PIPELINES}  # all end alike, which makes none near
        near = nearest(str(name).removesuffix("Pipeline"), short)
        hint = f"did you mean {short[near]}? " if near else ""
        known = [*PIPELINES, *(whole for whole in WHOLE if whole not in PIPELINES)]
        raise CheckpointError(path, f"is a {name!r}; {hint}pipelines that can be opened: {', '.join(known)}.")
    family = PIPELINES[name]
    parts = {}
    for part, allowed in family.classes.items():
        library, class_name = part_entry(path, part, index.get(part))
        if class_name is None:
            if part not in family.optional:
                raise CheckpointError(path, f"has no {part}, which {family.name} needs ({' or '.join(allowed)}).")
            continue
        if class_name not in allowed or library not in ("diffusers", "transformers", "kolors"):
            shown = f"{library}.{class_name}"
            raise CheckpointError(path, f"gives {part} as {shown}; {family.name} has {' or '.join(allowed)} there.")
        plain = class_name.removesuffix("Fast")
        parts[part] = next((name for name in (class_name, plain) if name in CLASSES and name in allowed), allowed[0])
    return family, parts, index


def part_entry(path: Path, part: str, value: Any) -> tuple[Any, Any]:
    if value is None:
        return None, None
    if not isinstance(value, list) or len(value) != 2:
        raise CheckpointError(
            path, f"has {part} = {value!r}; a pair such as ['diffusers', 'AutoencoderKL'] is meant to be there."
        )
    return value[0], value[1]


def open_pipeline(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    native: bool | None = None,
    vae: str | Path | None = None,
    variant: str | None = None,
    quantize: str | None = None,
    text_encoder: str | Path | None = None,
) -> Opened:
    """A pipeline's folder.

    dtype: of the denoiser and the text encoders; the autoencoder is float32, as some overflow in half precision.
    native: the denoiser in our own network (True), in diffusers' (False), or in ours where that is usual for the family
        (None).
    vae: another autoencoder in place of the pipeline's (`gen.models.bridge.parts`).
    variant: which weights are read, such as "fp16", of the parts that have it; None as of
        `gen.models.bridge.load.variants_for`.
    quantize: of `gen.nn.quantized`, in which diffusers' denoiser is read.
    text_encoder: where the text encoder is that the published pipeline lacks (HiDream).
    """
    from gen.models.bridge.native import described

    family, classes, index = read_index(folder)
    lender = _lender(folder, family, classes, text_encoder)
    _check_variant(folder, classes, variant)
    use_native = choose_native(folder, family, native)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    noise = read_json(scheduler, infinite=True)
    settings = sampling(scheduler, noise, family.own_sigmas, family.mu(index))
    configs = {part: read_part_config(folder / part, name) for part, name in classes.items() if "Tokenizer" not in name}
    loaded: dict[str, Any] = dict.fromkeys(family.classes)
    weights = {}
    if lender is not None and family.lent is not None:
        encoder, tokenizer, _ = family.lent
        own, name = family.classes[tokenizer][0], family.classes[encoder][0]
        loaded[encoder], weights[encoder] = _load(lender, name, dtype, variant)
        beside = lender if (lender / "tokenizer.json").is_file() else lender.parent / "tokenizer"
        loaded[tokenizer] = load_tokenizer(beside, own)
        classes = {**classes, encoder: name}
    for part, name in classes.items():
        if loaded[part] is not None:
            continue
        if "Tokenizer" in name:
            loaded[part] = load_tokenizer(folder / part, name)
        elif part == "vae" and vae is not None:
            swapped, weights[part] = open_autoencoder(vae, like=configs["vae"])
            loaded[part] = swapped.vae
        elif use_native and part == family.backbone:
            loaded[part] = described(name, configs[part])
        else:
            scheme = quantize if part == family.backbone else None
            loaded[part], weights[part] = _load(folder / part, name, dtype, variant, scheme)

    def native_network(reader: Any) -> nn.Module | None:
        if not (family.native and use_native):
            return None
        variants = variants_for(variant, dtype)
        place = folder / family.backbone
        found, weights[family.backbone] = _native(place, family, family.native, reader, dtype, native, variants)
        if found is None:
            loaded[family.backbone], weights[family.backbone] = _load(place, classes[family.backbone], dtype, variant, quantize)
        return found

    opened = assemble(folder, family, index, noise, settings, configs[family.backbone], loaded, native_network)
    return replace(opened, weights={part: weights[part] for part in classes if part in weights})


def _lender(folder: Path, family: Family, classes: Mapping[str, str], source: str | Path | None) -> Path | None:
    """The folder of the text encoder that a pipeline lacks; ValueError where none is given, or one that is not needed."""
    lacks = family.lent is not None and family.lent[0] not in classes
    if source is None:
        if lacks and family.lent is not None:
            raise CheckpointError(
                folder, f"has no {family.lent[0]}; give text_encoder (--text-encoder), as its makers say {family.lent[2]}."
            )
        return None
    if not lacks:
        raise ValueError(f"{folder} is a whole model with its own text encoder, if it reads text; leave text_encoder out.")
    return part_folder(source, "text_encoder", ("config.json",), ("tokenizer",))


def assemble(
    source: Path,
    family: Family,
    index: Mapping[str, Any],
    noise: Mapping[str, Any],
    settings: Mapping[str, Any],
    backbone: Mapping[str, Any],
    loaded: dict[str, Any],
    native_network: Callable[[Any], nn.Module | None] = lambda reader: None,
) -> Opened:
    """The opened parts of a pipeline as a model; CheckpointError where they do not fit one another.

    index, noise: values of model_index.json and of the scheduler's config.
    settings: what `gen.models.bridge.schedule.sampling` makes of the scheduler's.
    backbone: the config of the network that predicts.
    loaded: networks and tokenizers by part name, None for a part that the pipeline does without.
    native_network: our own network for the reader of prompts, or None; `loaded` has a description of the network then.
    """
    try:
        autoencoder = BridgedAutoencoder(loaded["vae"])
        reader = None if family.reader is None else family.reader(loaded, index)
        shown = loaded[family.backbone]
        network: Any = native_network(reader)
        if network is not None:
            loaded[family.backbone] = network
            size = network.config.size * autoencoder.factor
        else:
            shown = loaded[family.backbone]
            network = family.network(loaded, index)
            size = family.size(shown, autoencoder.factor)
        _check_fit(network, autoencoder, loaded[family.backbone])
        bins = binned(size, family.bins)
        usual = few_steps(family.defaults(shown), (index, backbone, source), noise, family.few)
        config = model_config(
            {
                "clock": family.clock,
                **settings,
                "sample_size": size,
                "defaults": {**settings["defaults"], **usual, **bins["defaults"], **family.index_defaults(index)},
                "size_bins": bins["size_bins"],
                "classes": family.class_names(index),
            }
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(source, f"cannot be opened as {family.name}: {error}") from None
    parts: dict[str, nn.Module] = {"denoiser": network, "autoencoder": autoencoder}
    if reader is not None:
        reader.encoders = {name: part for name, part in loaded.items() if name.startswith("text_encoder") and part is not None}
        parts["text_encoder"] = reader
    return Opened(config, parts, {}, Pipeline(index, noise, loaded))


FEW = {"turbo": 1, "schnell": 4, "lightning": 4, "hyper": 8, "lcm": 4}  # what distilled models are named after, and their steps


def few_steps(
    usual: dict[str, Any], sources: Iterable[Mapping | Path], scheduler: Mapping[str, Any], few: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The defaults of a distilled model: few steps, no guidance, where the scheduler is made for them, or a source says where
    the weights are from: a config, as in `"_name_or_path": "stabilityai/sdxl-turbo"`, or the folder's own name, which folders
    above it have no part in. A network that embeds its scale has its own. few: words in names -> steps, over those of FEW."""
    names = [_repository(one if isinstance(one, Path) else Path(str(one.get("_name_or_path", "")))) for one in sources]
    words = re.split(r"[^a-z]+", " ".join(names).lower())
    steps = next((steps for word, steps in {**FEW, **(few or {})}.items() if word in words), None)
    if steps is None and scheduler.get("_class_name") in ("LCMScheduler", "TCDScheduler"):
        steps = 4
    if steps is None or usual.get("guidance") == "embedded" or usual["num_inference_steps"] <= 4:
        return usual
    return {**usual, "num_inference_steps": steps, "guidance_scale": 1.0}


def _repository(folder: Path) -> str:
    """The name of a model's folder, which a denoiser's may lie in, or of the repository whose snapshot it is in the hub's
    cache."""
    folder = folder.parent if folder.name in ("unet", "transformer") else folder
    return folder.parent.parent.name if folder.parent.name == "snapshots" else folder.name


def binned(size: int, default: bool | None) -> dict[str, Any]:
    """size_bins and the default for them of a model of this sample size; default None: it has no list."""
    known = default is not None and size in TABLES
    return {"size_bins": size if known else None, "defaults": {"use_resolution_binning": True} if known and default else {}}


def _native(
    folder: Path, family: Family, format: str, reader: Any, dtype: torch.dtype, native: bool | None, variants: tuple[str, ...]
) -> tuple[nn.Module | None, str]:
    """(our own network, digest of its files); None where the weights turn out to be none of ours, which is an error if it was
    asked for."""
    from gen.models.bridge.native import native_network
    from gen.models.formats.read import UnequalRepeats

    try:
        return native_network(folder, format, reader, dtype, variants, family.native_options)
    except UnequalRepeats:
        if native:
            raise
        return None, ""


def native_by_choice(folder: Path) -> bool:
    """Has the family of a pipeline's folder a network of ours that is not the default?"""
    family = PIPELINES.get(str(read_json(folder / INDEX).get("_class_name")))
    return family is not None and family.native is not None and not family.native_usual


def choose_native(folder: Path, family: Family, native: bool | None) -> bool:
    """Whether our own network takes the place of the pipeline's; ValueError where it is asked for and cannot."""
    usual = family.native is not None and family.native_usual and not wants_sizes_only()
    if native is False or (native is None and not usual):
        return False
    if family.native is None:
        with_one = ", ".join(name for name, family_row in PIPELINES.items() if family_row.native)
        raise ValueError(f"There is no network of our own for {family.name}; leave native out ({with_one} have one).")
    from gen.models.bridge.native import why_not

    reason = why_not(folder / family.backbone, family.native, family.native_options)
    if reason and native:
        raise ValueError(f"Our own network cannot take the place of this one; leave native out. {reason}")
    return reason is None


def _load(folder: Path, name: str, dtype: torch.dtype, variant: str | None, scheme: str | None = None) -> tuple[nn.Module, str]:
    dtype = torch.float32 if name in VAE_CLASSES else dtype
    return load_network(folder, name, dtype, variants=variants_for(variant, dtype), scheme=scheme)


def _check_variant(folder: Path, classes: Mapping[str, str], variant: str | None) -> None:
    """ValueError where no part has the variant that was asked for."""
    if not variant:
        return
    for part, name in classes.items():
        if "Tokenizer" not in name and (folder / part).is_dir():
            names = [entry.name for entry in (folder / part).iterdir()]
            if weight_files(names, STEMS[CLASSES[name]], (variant,))[1]:
                return
    raise ValueError(f"{folder} has no weights of the variant {variant!r}; leave variant out.")


def _check_fit(network: Any, autoencoder: BridgedAutoencoder, backbone: nn.Module) -> None:
    if network.config.channels != autoencoder.channels:
        raise ValueError(
            f"the network takes {network.config.channels} channels and the autoencoder makes {autoencoder.channels}; "
            "networks for inpainting or depth are not supported."
        )
    beside = getattr(network.config, "beside", 0)
    if beside and beside != (wanted := autoencoder.channels + autoencoder.factor**2):
        raise ValueError(f"its network takes {beside} channels beside the noise, not {wanted}: those of picture and mask")
    if isinstance(network, BridgedNetwork) and (classes := setting(backbone, "class_embed_type")) is not None:
        raise ValueError(f"its network embeds {classes!r} beside the text, which is not supported.")


def needed_files(
    names: Sequence[str], classes: Mapping[str, str], variant: str | None = None, dtype: torch.dtype = torch.float32
) -> list[str]:
    """Of a repository's file names those that a pipeline needs: configs, vocabularies and one kind of weights for each part.

    CheckpointError for a part without safetensors.
    """
    needed = [name for name in (INDEX, "scheduler/scheduler_config.json", "README.md") if name in names]
    for part, kind in classes.items():
        part_files = {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/") and name.count("/") == 1}
        if "Tokenizer" in kind:
            needed += sorted(f"{part}/{name}" for name in part_files if name.endswith((".json", ".txt", ".model")))
            continue
        variants = variants_for(variant, torch.float32 if kind in VAE_CLASSES else dtype)
        _, files, listing = weight_files(part_files, STEMS[CLASSES[kind]], variants)
        if not files:
            raise CheckpointError(part, "has no safetensors in this repository, and other formats are not read.")
        needed += [f"{part}/{name}" for name in ("config.json", *files, *([listing] if listing else []))]
    return needed
