"""Writing a `Generator` to disk: as our folder, as a diffusers pipeline, or its network alone in a published format."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gen.io.weights import read_json, system_errors, write_bytes, write_json
from gen.models.card import model_card
from gen.models.folder import Pipeline, VariancePreservingPath, write_model, writing
from gen.nn.quantized import is_quantized

if TYPE_CHECKING:
    from gen.models.model import Model

OWN, THEIRS = "fewstep", "diffusers"
# how noise and sampler are spelled in a scheduler's config
BETAS = {"linear": ("linear", 1e-4, 0.02), "scaled_linear": ("scaled_linear", 0.00085, 0.012)}
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}


def save_model(model: Model, folder: Path, dtype: torch.dtype | None, format: str | None, overwrite: bool) -> Path:
    """See `Generator.save_pretrained`."""
    if getattr(model.network, "whole", False):
        raise ValueError(f"{model.network.call.name} runs as a whole; save it with the pipeline's own save_pretrained.")
    if is_quantized(model.network):
        raise ValueError(
            f"The model {model.name!r} holds its weights in fewer bits, which no format of ours or of diffusers' keeps; open "
            "it without quantize to save it, or convert the file that it is from elsewhere."
        )
    bridged = getattr(model.network, "bridged", False)
    format = (THEIRS if bridged else OWN) if format is None else format
    if format == OWN:
        if bridged:
            raise ValueError(
                f"The model {model.name!r} runs in diffusers' network, which a folder of ours cannot hold; save it with "
                'format="diffusers".'
            )
        parts = model.network, model.autoencoder, model.text_encoder
        card = model_card(model, folder.absolute().name, OWN)
        return write_model(folder, model.config, *parts, dtype=dtype, readme=card, overwrite=overwrite)
    if format == THEIRS:
        pipeline = model.pipeline or assembled(model)
        with writing(folder, overwrite) as new:
            _write_pipeline(model, pipeline, new, dtype)
            write_bytes(new / "README.md", model_card(model, folder.absolute().name, THEIRS).encode())
        return folder.absolute()
    from gen.models.formats.registry import FORMATS
    from gen.models.formats.table import nearest
    from gen.models.formats.write import write_checkpoint

    if format not in FORMATS:
        known = [OWN, THEIRS, *FORMATS]
        raise ValueError(f"Unknown format {format!r}{nearest(format, known)}; known: {', '.join(known)}.")
    if bridged:
        raise ValueError(f"The format {format} is of our own networks; the model {model.name!r} runs in diffusers'.")
    if folder.exists() and not overwrite:
        raise ValueError(f"{folder} exists already; choose another name, or pass overwrite=True to replace it.")
    return write_checkpoint(model.network, folder, format, dtype=dtype).absolute()


def _write_pipeline(model: Model, pipeline: Pipeline, folder: Path, dtype: torch.dtype | None) -> None:
    import diffusers

    from gen.models.bridge.load import library_name
    from gen.models.bridge.parts import save_foreign

    index = {"_class_name": pipeline.index["_class_name"], "_diffusers_version": diffusers.__version__}
    for name, value in pipeline.index.items():
        pair = isinstance(value, list) and len(value) == 2
        if not name.startswith("_") and not (pair and name != "scheduler" and name not in pipeline.parts):
            index[name] = value
        elif pair:
            index[name] = [None, None]  # a part that is not opened, such as a safety checker
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    for name, part in pipeline.parts.items():
        if part is None:
            index[name] = [None, None]
        elif part is model.network:
            index[name] = ["diffusers", _write_native(model.network, folder / name, dtype, model.text_encoder is not None)]
        elif isinstance(part, torch.nn.Module):
            save_foreign(part, folder / name, dtype)
            index[name] = [library_name(part), type(part).__name__]
        else:
            with system_errors(folder / name):
                part.save_pretrained(folder / name)
            # a processor has more than the tokenizer that is opened of it
            given = (pipeline.index.get(name) or [None, None])[1] or ""
            index[name] = [library_name(part), given if "Tokenizer" in given else type(part).__name__]
    scale = getattr(model.autoencoder, "latent_scale", None)
    if scale is not None:
        config = folder / "vae" / "config.json"
        write_json(config, {**read_json(config), "scaling_factor": scale})
    (folder / "scheduler").mkdir()
    noise = json.dumps(dict(pipeline.scheduler), indent=2)  # may hold infinities, which diffusers writes and reads
    write_bytes(folder / "scheduler" / "scheduler_config.json", f"{noise}\n".encode())
    write_json(folder / "model_index.json", index)


def _write_native(network: Any, folder: Path, dtype: torch.dtype | None, reads: bool) -> str:
    """Our network as diffusers' transformer; returns the name of its class. reads: a text encoder goes with it, which gives the
    features of no text again."""
    from gen.models.formats.registry import their_format
    from gen.models.formats.write import write_checkpoint

    with warnings.catch_warnings():
        if reads:
            warnings.filterwarnings("ignore", message=r".*no place for null_(text|pooled)")
        write_checkpoint(network, folder, their_format(network).name, dtype=dtype)
    return read_json(folder / "config.json")["_class_name"]


def assembled(model: Model) -> Pipeline:
    """A pipeline around a DiT or PixArt opened from a checkpoint. ValueError for what diffusers has no pipeline for."""
    network: Any = model.network
    config, noise = network.config, model.config.path
    kind = None
    if type(config).__name__ == "DiTConfig":
        if config.modulation == "adaln" and config.num_classes and not config.text_dim:
            kind = "DiTPipeline"
        elif config.modulation == "adaln_single" and config.text_dim and not config.num_classes:
            kind = "PixArtSigmaPipeline" if config.text_tokens > 120 else "PixArtAlphaPipeline"
    reader = model.text_encoder
    foreign = hasattr(model.autoencoder, "vae") and (reader is None or hasattr(reader, "reader"))
    if kind is None or not foreign or not isinstance(noise, VariancePreservingPath) or noise.betas not in BETAS:
        raise ValueError(
            f'diffusers has no pipeline for the model {model.name!r}; save it as our folder (format="fewstep"), or '
            "its network alone in a published format."
        )
    betas, start, end = BETAS[noise.betas]
    scheduler = {
        "_class_name": "DPMSolverMultistepScheduler",
        "num_train_timesteps": noise.steps,
        "beta_schedule": betas,
        "beta_start": noise.start or start,
        "beta_end": noise.end or end,
        "prediction_type": PREDICTIONS[model.config.prediction],
        "timestep_spacing": "linspace",
        "rescale_betas_zero_snr": noise.zero_terminal_snr,
    }
    index: dict[str, Any] = {"_class_name": kind, "scheduler": ["diffusers", scheduler["_class_name"]]}
    parts: dict[str, Any] = {"transformer": network, "vae": model.autoencoder.vae}
    if reader is not None:
        parts |= {"text_encoder": reader.reader.encoder, "tokenizer": reader.reader.tokenizer}
        index["tokenizer"] = ["transformers", "T5Tokenizer"]
    if model.config.classes is not None:
        index["id2label"] = {str(i): name for i, name in enumerate(model.config.classes)}
    return Pipeline(index, scheduler, parts)
