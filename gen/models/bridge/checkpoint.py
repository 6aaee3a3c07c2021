"""The checkpoint of one network as a whole model: U-ViT, DiT, PixArt or ADM as published, with the parts that it lacks.

A file holds weights and no more. What the network was trained with, its authors' code says, and the tables here repeat: the
noise, the clock, the scale of the latents, how strongly it is guided.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gen.io.weights import CheckpointError, read_json
from gen.models.bridge.load import digest
from gen.models.components import component_digest, load_component
from gen.models.folder import PARTS, Opened, model_config
from gen.models.formats.files import open_checkpoint
from gen.models.formats.read import configure, read_checkpoint
from gen.models.formats.table import nearest

if TYPE_CHECKING:
    from gen.models.options import ModelOptions

TOLD = ("format", "heads", "size", "position_scale", "null_label", "text_tokens")  # arguments of read_checkpoint
OPTIONS = (*TOLD, "latent_scale")
ALONE = ("uvit", "dit", "adm")  # networks that open by themselves, with an autoencoder and one text encoder
COCO_SCALE = (
    0.23010  # of the latents that the text-to-image U-ViTs learned; the others learned their autoencoder's own, 0.18215
)
STABLE_DIFFUSION = {"type": "variance_preserving", "betas": "scaled_linear", "start": 0.00085, "end": 0.012}
LINEAR = {"type": "variance_preserving", "betas": "linear", "start": 1e-4, "end": 0.02}


def sampled_as(config: Any) -> dict[str, Any]:
    """Noise, clock and defaults of a published kind of network, as values of a `ModelConfig`; ValueError for other kinds.

    config: of a U-ViT, DiT or ADM. U-ViT on latents counts timesteps from 1 to 1000 and on pixels reads 999 t of the VP SDE;
    DiT, PixArt and ADM count from 0 to 999.
    """
    kind = type(config).__name__
    if kind == "UViTConfig":
        if config.channels == 3:
            return _sampled({"type": "variance_preserving_sde"}, "999t", 50, 1.0, "uniform")
        scale = 2.0 if config.text_dim else 1.7 if config.size > 32 else 1.4
        return _sampled(STABLE_DIFFUSION, "1000t", 50, scale, "uniform")
    if kind == "DiTConfig" and config.modulation == "adaln" and config.num_classes and not config.text_dim:
        return _sampled(LINEAR, "index", 30, 4.0, "sgm_uniform")
    if kind == "DiTConfig" and config.modulation == "adaln_single" and config.text_dim and not config.num_classes:
        return _sampled(LINEAR, "index", 20, 4.5, "sgm_uniform")
    if kind == "ADMConfig":
        return _adm(config)
    raise ValueError(
        "is not a network of a published kind (U-ViT, DiT, PixArt, ADM), so how it was trained is not known; put it into "
        "a model folder, whose config.json says so"
    )


def _adm(config: Any) -> dict[str, Any]:
    """ADM by the flags of its README: cosine noise at 64 pixels, else linear; 250 ancestral steps of its own variance."""
    path = {"type": "variance_preserving", "betas": "cosine"} if config.size == 64 and not config.beside else LINEAR
    values = _sampled(path, "index", 250, 1.0, "linspace")
    sampler: dict[str, Any] = {"sampler": "ddpm"}
    if config.learned_variance:
        sampler["sampler_options"] = {"variance": "learned_range"}
    return {**values, "defaults": {**values["defaults"], **sampler}}


def _sampled(path: dict[str, Any], clock: str, steps: int, scale: float, schedule: str) -> dict[str, Any]:
    defaults = {"num_inference_steps": steps, "guidance_scale": scale, "sampler": "dpmpp_2m", "schedule": schedule}
    return {"path": path, "prediction": "eps", "clock": clock, "defaults": defaults}


def open_network(path: Path, dtype: torch.dtype, options: ModelOptions) -> Opened:
    """A checkpoint and what belongs to it, opened as a model. Sizes and parts are checked before any weights are read."""
    overrides = _checked(options)
    our_folder = path.is_dir() and "type" in _config(path)
    if our_folder and overrides.keys() - {"latent_scale"}:
        raise ValueError(f"{path} says all of its sizes itself; leave {', '.join(sorted(overrides))} out of model_options.")
    config = _sizes(path, our_folder, overrides)
    _check_parts(path, config, options)
    if options.native is False:
        raise ValueError(f"{path} is opened in our own network only; diffusers' needs a pipeline's folder. Leave native out.")
    try:
        values = sampled_as(config)
    except ValueError as error:
        raise CheckpointError(path, f"{error}.") from None

    parts: dict[str, nn.Module] = {}
    weights: dict[str, str] = {}
    text: dict[str, Any] = {}
    if config.text_dim:
        from gen.models.bridge.native import null_of
        from gen.models.bridge.parts import open_text_encoder

        kind = "clip" if type(config).__name__ == "UViTConfig" else "t5"
        assert options.text_encoder is not None
        reader, weights["text_encoder"] = open_text_encoder(
            options.text_encoder, kind, config.text_tokens, config.text_dim, dtype
        )
        parts["text_encoder"], text = reader, null_of(reader)
    if config.channels != 3:
        from gen.models.bridge.parts import open_autoencoder

        usual = COCO_SCALE if type(config).__name__ == "UViTConfig" and config.text_dim else None
        assert options.vae is not None
        parts["autoencoder"], weights["autoencoder"] = open_autoencoder(
            options.vae, config.channels, overrides.pop("latent_scale", usual)
        )
    parts["denoiser"], weights["denoiser"] = _network(path, our_folder, overrides, text, dtype)
    factor: Any = parts["autoencoder"].factor if "autoencoder" in parts else 1
    classes = None
    if config.num_classes == 1000:
        from gen.models.imagenet import names

        classes = names()
    from gen.models.bridge.pipeline import binned

    size = config.size * factor
    # PixArt was trained at a list of sizes
    bins = binned(size, True if config.text_dim and type(config).__name__ == "DiTConfig" else None)
    values["defaults"] = {**values["defaults"], **bins["defaults"]}
    values |= {"sample_size": size, "classes": classes, "size_bins": bins["size_bins"]}
    return Opened(model_config(values), parts, weights)


def _config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _checked(options: ModelOptions) -> dict[str, Any]:
    overrides = dict(options.model_options)
    for name in overrides:
        if name not in OPTIONS:
            raise ValueError(f"model_options has no {name!r}{nearest(name, OPTIONS)}; it takes {', '.join(OPTIONS)}.")
    for name, kinds, what in (
        ("heads", int, "a whole number"),
        ("size", int, "a whole number, in latent pixels"),
        ("text_tokens", int, "a whole number"),
        ("position_scale", int | float, "a number"),
        ("latent_scale", int | float, "a number"),
        ("null_label", bool, "True or False"),
        ("format", str, "a name from `gen.models.formats.FORMATS`"),
    ):
        value = overrides.get(name)
        if value is None:
            continue
        wrong = not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool)
        if wrong or (isinstance(value, int | float) and kinds is not bool and not 0 < value < 1e6):
            raise ValueError(f"model_options has {name} = {value!r}; give {what}{'' if kinds in (bool, str) else ' above 0'}.")
    return overrides


def _sizes(path: Path, our_folder: bool, overrides: dict[str, Any]) -> Any:
    """The config of the network, from headers."""
    from gen.nn.registry import COMPONENTS, from_registry

    if our_folder:
        values = _config(path)
    else:
        sizes = {name: value for name, value in overrides.items() if name in TOLD and name != "format"}
        source = open_checkpoint(path)
        _, values = configure(source, overrides.get("format"), sizes)
    if (kind := values.get("type")) in PARTS["denoiser"] and kind not in ALONE:
        raise CheckpointError(
            path, f"is a network alone, of type {kind}; open the folder of its pipeline (native=True takes our network for it)."
        )
    try:
        return from_registry({name: COMPONENTS[name] for name in ALONE}, "network type", values)[1]
    except ValueError as error:
        raise CheckpointError(path, str(error)) from None


def _check_parts(path: Path, config: Any, options: ModelOptions) -> None:
    """ValueError for a part that is missing, or that has nothing to do here."""
    latent, text = config.channels != 3, bool(config.text_dim)
    encoder = "CLIP ViT-L/14" if type(config).__name__ == "UViTConfig" else "T5 v1.1 XXL, as in a PixArt pipeline"
    for value, needed, name, what in (
        (options.vae, latent, "vae", "autoencoder: a diffusers folder or hub id (Stable Diffusion's for published networks)"),
        (options.text_encoder, text, "text_encoder", f"text encoder: a transformers folder or hub id ({encoder})"),
    ):
        option = f"{name}= (--{name.replace('_', '-')})"
        if needed and value is None:
            raise ValueError(f"{path} is a network alone; give {option}, its {what}.")
        if not needed and value is not None:
            reads = "works on pixels" if name == "vae" else "reads no text"
            raise ValueError(f"{path} {reads}; leave {option} out.")


def _network(
    path: Path, our_folder: bool, overrides: dict[str, Any], text: dict[str, Any], dtype: torch.dtype
) -> tuple[nn.Module, str]:
    if our_folder:
        return load_component(path, *ALONE), component_digest(path)
    files = open_checkpoint(path)
    kind, _ = configure(files, overrides.get("format"), {name: value for name, value in overrides.items() if name in TOLD[1:]})
    if not kind.absent:  # the file has its own features of no text
        text = {}
    elif "null_text" in text and kind.kind == "uvit":
        text.pop("null_length", None)
    sizes_and_text = {**overrides, **text}
    return read_checkpoint(path, dtype=dtype, **sizes_and_text), digest(file.path for file in files.files)
