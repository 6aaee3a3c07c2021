"""A whole model, or its denoiser alone, in one file: opened with what the file lacks from elsewhere, as a pipeline's folder is.

Sizes are read from shapes and checked before any weights are; every tensor of the file's networks must find its place.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gen.io.digests import file_digest
from gen.io.weights import CheckpointError
from gen.models.bridge.files import layouts
from gen.models.bridge.files.fill import TensorSource, fill
from gen.models.bridge.files.kinds import Kind, kind_of
from gen.models.bridge.files.plans import Planned, holding, open_source, planned
from gen.models.bridge.load import load_network, load_tokenizer, variants_for
from gen.models.bridge.schedule import sampling
from gen.models.folder import Opened
from gen.nn.initialisation import wants_sizes_only

if TYPE_CHECKING:
    from gen.models.bridge.families.base import Family
    from gen.models.options import ModelOptions

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}


def is_whole_model(path: Path) -> bool:
    """Is a file one of `kinds.KINDS`, and not a network in a format of our own?"""
    if path.suffix == ".gguf":
        return True
    from gen.io.weights import TensorFile

    return path.suffix == ".safetensors" and kind_of(TensorFile(path).shapes) is not None


def open_file(path: Path, dtype: torch.dtype, options: ModelOptions) -> Opened:
    """A model in one file.

    dtype: of the denoiser and text encoders; the autoencoder is float32.
    options: vae, a folder, hub id or file in place of the file's own; text_encoder, a pipeline's folder or hub id, from which
        tokenizers are taken and text encoders that the file lacks; model_options may hold prediction, "eps" or "v".
    Raises CheckpointError for a damaged file, and ValueError for what is missing.
    """
    from gen.models.bridge.pipeline import PIPELINES, assemble

    source = open_source(path)
    kind = kind_of(source.shapes)
    if kind is None:
        from gen.models.bridge.files.kinds import KINDS, named_elsewhere

        if (what := named_elsewhere(source.shapes)) is not None:
            raise CheckpointError(path, f"holds {what}.")
        raise CheckpointError(path, f"holds none of the models that open from one file: {', '.join(k.name for k in KINDS)}.")
    if options.quantize is not None and source.codes:
        raise CheckpointError(path, f"is quantised already; leave quantize={options.quantize!r} out.")
    family = PIPELINES[kind.pipeline]
    scheduler_options = _checked(path, options)
    plans: dict[str, Planned] = {}
    for part, holders in kind.parts.items():
        if part == "vae" and options.vae is not None:
            continue
        if (found := holding(holders, source.shapes)) is not None:
            plans[part] = planned(source, *found)
    if family.backbone not in plans:
        raise CheckpointError(path, f"lacks the first layer of the network of {kind.name}; the download is incomplete.")
    try:
        pipeline = kind.variant(plans[family.backbone].config, path.stem) or kind.pipeline
    except ValueError as error:
        raise CheckpointError(path, str(error)) from None
    family = PIPELINES[pipeline]
    _check_leftover(source, kind, family, plans)
    _check_missing(path, kind, family, plans, options)
    loaded: dict[str, Any] = dict.fromkeys(family.classes)
    weights = dict.fromkeys(plans, "" if wants_sizes_only() else file_digest(path))
    _read_elsewhere(path, kind, family, plans, options, dtype, loaded, weights)
    fillings = []
    for part, network in plans.items():
        if _without(part, family, loaded):
            continue
        scheme = options.quantize if part == family.backbone else None
        fillings.append(network.filling(source, torch.float32 if part == "vae" else dtype, scheme))
        loaded[part] = network.network
    fill(source, fillings)
    noise = {**kind.scheduler(plans[family.backbone].config, source.shapes, path.stem), **scheduler_options}
    index = {"_class_name": pipeline, "_name_or_path": path.stem, **kind.index(plans[family.backbone].config, path.stem)}
    settings = sampling(path, noise, family.own_sigmas, family.mu(index))
    opened = assemble(path, family, index, noise, settings, plans[family.backbone].config, loaded)
    return replace(opened, weights={part: weights[part] for part in family.classes if part in weights})


def _checked(path: Path, options: ModelOptions) -> dict[str, Any]:
    """Values of the scheduler's config that the caller decides; ValueError for options that have nothing to do here."""
    rest = dict(options.model_options)
    prediction = rest.pop("prediction", None)
    if rest or prediction not in (None, *PREDICTIONS):
        given = next(iter(rest)) if rest else f"prediction = {prediction!r}"
        raise ValueError(f"model_options has {given}; for {path.name} it takes prediction, {' or '.join(PREDICTIONS)}.")
    if options.native or options.variant:
        name = "native" if options.native else "variant"
        raise ValueError(f"{path.name} is one file, opened in diffusers' network with its own weights; leave {name} out.")
    return {} if prediction is None else {"prediction_type": PREDICTIONS[prediction]}


def _check_leftover(source: TensorSource, kind: Kind, family: Family, plans: Mapping[str, Planned]) -> None:
    """CheckpointError for a tensor of the denoiser that has no place in it."""
    backbone = plans[family.backbone]
    prefix = backbone.holder.prefix(source.shapes)
    if not prefix:
        return
    used = {piece.source for pieces in backbone.plan.values() for piece in pieces}
    left = [name for name in source.shapes if name.startswith(prefix) and name not in used]
    if left := [name for name in left if not name.endswith(("norm_final.weight", "logvar_linear.weight"))]:
        raise CheckpointError(source.path, f"does not fit {kind.name}: it has unknown {', '.join(sorted(left)[:3])}.")


def _check_missing(path: Path, kind: Kind, family: Family, plans: Mapping[str, Planned], options: ModelOptions) -> None:
    """ValueError that names every part which is neither in the file nor given."""
    encoders = [part for part in family.classes if part.startswith("text_encoder") and part not in family.optional]
    lacking = [part for part in encoders if part not in plans and options.text_encoder is None]
    needs = []
    if lacking:
        needs.append(f"text_encoder= (--text-encoder), a pipeline's folder or hub id with {', '.join(lacking)} and tokenizers")
    if "vae" not in plans and options.vae is None:
        needs.append("vae= (--vae), a folder, hub id or file of its autoencoder")
    if needs:
        raise ValueError(f"{path} holds {', '.join(plans)} of {kind.name}; give {' and '.join(needs)}.")


def _latents(kind: Kind) -> dict[str, Any] | None:
    """scaling_factor and shift_factor of the kind's latents; None where its autoencoder is none that a file may hold."""
    if not kind.parts["vae"]:
        return None
    holder: Any = kind.parts["vae"][0].config
    return {"scaling_factor": holder.keywords["scaling"], "shift_factor": holder.keywords["shift"]}


def _without(part: str, family: Family, loaded: Mapping[str, Any]) -> bool:
    """Is this an optional text encoder whose tokenizer could not be had?"""
    tokenizer = part.replace("text_encoder", "tokenizer")
    return part in family.optional and tokenizer in family.classes and loaded[tokenizer] is None


def _read_elsewhere(
    path: Path,
    kind: Kind,
    family: Family,
    plans: Mapping[str, Planned],
    options: ModelOptions,
    dtype: torch.dtype,
    loaded: dict[str, Any],
    weights: dict[str, str],
) -> None:
    """Tokenizers, and the text encoders and autoencoder that are not the file's."""
    from gen.models.bridge.files.elsewhere import END, WORDS, clip_tokenizer, pipeline_part
    from gen.models.bridge.parts import open_autoencoder

    for part, allowed in family.classes.items():
        if "tokenizer" in part:
            if options.text_encoder is not None:
                folder = pipeline_part(options.text_encoder, part, family.optional)
                loaded[part] = None if folder is None else load_tokenizer(folder, allowed[0])
            elif allowed[0] == "CLIPTokenizer":
                encoder = plans[part.replace("tokenizer", "text_encoder")]
                words = encoder.config["vocab_size"]
                if words != WORDS:
                    raise CheckpointError(path, f"has a text encoder of {words} words, and CLIP knows {WORDS}.")
                larger = encoder.holder.convert is layouts.open_clip or part == "tokenizer_2"
                loaded[part] = clip_tokenizer("!" if larger else END)
            if loaded[part] is None and part in family.optional and part.replace("tokenizer", "text_encoder") in plans:
                warnings.warn(
                    f"{path.name} holds a text encoder whose vocabulary is not in it; give text_encoder= (--text-encoder), a "
                    f"pipeline's folder or hub id with {part}, or prompts are read without it.",
                    stacklevel=6,
                )
        elif part.startswith("text_encoder") and part not in plans and options.text_encoder is not None:
            if (folder := pipeline_part(options.text_encoder, part, family.optional)) is not None:
                loaded[part], weights[part] = load_network(folder, allowed[0], dtype, variants=variants_for(None, dtype))
        elif part == "vae" and part not in plans:
            assert options.vae is not None
            swapped, weights[part] = open_autoencoder(options.vae, like=_latents(kind))
            loaded[part] = swapped.vae
    if None in (loaded[part] for part in family.classes if "tokenizer" in part and part not in family.optional):
        raise ValueError(
            f"{path} needs vocabularies that are in no such file; give text_encoder= (--text-encoder), a pipeline's folder or "
            "hub id, from which they are taken."
        )
