"""A model as a folder: `config.json`, one subfolder per network, `README.md`.

    config.json          the path, what the network predicts, its clock, the defaults (`ModelConfig`)
    denoiser/            a backbone (uvit, dit, mmdit and the like)
    autoencoder/         pictures <-> latents; models of pixels have none
    text_encoder/        class-conditional and unconditional models have none

Each subfolder is a component of `gen.nn.registry`. A folder is written beside its final name and renamed, so that a reader
sees a whole model or none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator
from torch import nn

from gen.io.folders import recover, written_folder
from gen.io.weights import CheckpointError, read_json, write_bytes, write_json
from gen.models.components import load_component, save_component
from gen.nn.registry import OWN_NETWORKS, describe
from samplers import path as paths
from samplers.denoiser import Network, NetworkDenoiser
from samplers.policy import Policy

PARTS: dict[str, tuple[str, ...]] = {
    "denoiser": ("uvit", "dit", "dimr", "mmdit", "flux", "qwen_image", "z_image", "adm", "upsampler", "positional_query"),
    "autoencoder": ("autoencoder", "diffusers_autoencoder"),
    "text_encoder": ("text_encoder", "t5", "clip"),
}


def types_of(part: str) -> tuple[str, ...]:
    """The network types that may be this part of a model."""
    return (*PARTS[part], *sorted(OWN_NETWORKS))


OWN_FILES = {"config.json", "README.md", "LICENSE", "NOTICE", ".gitattributes", *PARTS}

Option = bool | int | FiniteFloat | str | tuple[int | FiniteFloat, ...]


class Strict(BaseModel):
    """Unknown keys, NaN, and `true` for 1 are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RectifiedFlowPath(Strict):
    type: Literal["rectified_flow"]

    def build(self) -> paths.Path:
        return paths.RectifiedFlow()


class VarianceExplodingPath(Strict):
    type: Literal["variance_exploding"]
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def build(self) -> paths.Path:
        return paths.VarianceExploding(self.sigma_min, self.sigma_max)


class VariancePreservingSDEPath(Strict):
    type: Literal["variance_preserving_sde"]
    beta_min: float = Field(0.1, gt=0)
    beta_max: float = Field(20.0, gt=0)

    def build(self) -> paths.Path:
        return paths.VariancePreservingSDE(self.beta_min, self.beta_max)


class VariancePreservingPath(Strict):
    """Betas by rule; start, end and steps keep the rule's published values where not given."""

    type: Literal["variance_preserving"]
    betas: Literal["linear", "scaled_linear", "cosine"]
    start: float | None = Field(None, gt=0, lt=1)
    end: float | None = Field(None, gt=0, lt=1)
    steps: int = Field(1000, ge=2, le=100_000)
    zero_terminal_snr: bool = False

    @model_validator(mode="after")
    def _cosine_has_no_ends(self) -> VariancePreservingPath:
        if self.betas == "cosine" and (self.start is not None or self.end is not None or self.zero_terminal_snr):
            raise ValueError("cosine betas take steps only, no start, end or zero_terminal_snr")
        return self

    def build(self) -> paths.Path:
        options = {name: value for name in ("start", "end") if (value := getattr(self, name)) is not None}
        if self.betas != "cosine":
            options["zero_terminal_snr"] = self.zero_terminal_snr
        return getattr(paths.VariancePreserving, self.betas)(steps=self.steps, **options)


@lru_cache(maxsize=32)
def _built(config: Strict) -> paths.Path:
    """The path of a config, made once: training asks for it at every call, and a table takes milliseconds."""
    return config.build()  # type: ignore[attr-defined]


PathConfig = Annotated[
    RectifiedFlowPath | VariancePreservingPath | VariancePreservingSDEPath | VarianceExplodingPath, Field(discriminator="type")
]


class Defaults(Strict):
    """What a call uses where it says nothing."""

    num_inference_steps: int = Field(default=20, ge=1, le=1000)
    guidance_scale: float = Field(default=1.0, ge=0, le=100)
    guidance_interval: tuple[float, float] | None = None
    guidance: str = "cfg"
    guidance_options: dict[str, Option] = {}
    sampler: str = "dpmpp_2m"
    sampler_options: dict[str, Option] = {}
    schedule: str = "uniform"
    schedule_options: dict[str, Option] = {}
    use_resolution_binning: bool = False


class ModelConfig(Strict):
    """`config.json` of a model folder.

    prediction, clock, input_scale, sigma_data: as in `samplers.denoiser.NetworkDenoiser`.
    latent_scale: the denoiser sees latent_scale times the autoencoder's latents.
    sample_size: height and width in pixels of a picture by default.
    classes: the names of labels 0, 1, ... of a class-conditional model.
    size_bins: which list of `gen.models.buckets` it was trained at.
    """

    format: Literal["fewstep"] = "fewstep"
    version: Literal[1] = 1
    path: PathConfig
    prediction: Literal["eps", "x0", "v", "flow", "edm"]
    clock: Literal["t", "999t", "1000t", "index", "log_sigma/4"]
    input_scale: Literal["none", "edm"] = "none"
    sigma_data: float = Field(0.5, gt=0)
    latent_scale: float = Field(1.0, gt=0)
    sample_size: PositiveInt
    defaults: Defaults = Defaults()
    classes: tuple[str, ...] | None = None
    size_bins: Literal[256, 512, 1024, 2048] | None = None

    @model_validator(mode="after")
    def _bins_are_there(self) -> ModelConfig:
        if self.defaults.use_resolution_binning and self.size_bins is None:
            raise ValueError("use_resolution_binning needs size_bins, the list of sizes")
        return self

    def denoiser(self, network: Network, dtype: torch.dtype | None = None) -> NetworkDenoiser:
        """The network as a denoiser on this config's path."""
        return NetworkDenoiser(
            network,
            _built(self.path),
            self.prediction,
            self.clock,
            self.input_scale,
            dtype,
            self.sigma_data,
            learns_variance(network),
            policy_of(network),
        )


def policy_of(network: Any) -> Policy | None:
    """The policy that a network, or the one inside a wrapper, predicts; None for one that predicts an image."""
    config = next((config for config in configs_of(network) if hasattr(config, "policy")), None)
    return None if config is None or config.policy is None else config.policy.build()


def learns_variance(network: Any) -> bool:
    """Whether a network, or the one inside a wrapper, says in its config that half of its output is a variance."""
    for config in configs_of(network):
        if hasattr(config, "learned_variance"):
            return bool(config.learned_variance)
        if isinstance(config, Mapping) and config.get("in_channels"):  # of diffusers
            return config.get("out_channels") == 2 * config["in_channels"]
    return False


def configs_of(network: Any) -> Iterator[Any]:
    """The configs of a network's parts, its own first; of a LoRA those of its base."""
    while not isinstance(network, nn.Module) and hasattr(network, "network"):
        network = network.network
    for part in network.modules() if isinstance(network, nn.Module) else [network]:
        if isinstance(base := getattr(part, "base", None), nn.Module):  # of a LoRA, which has it not among its modules
            yield from configs_of(base)
            return
        if (config := getattr(part, "config", None)) is not None:
            yield config


@dataclass(frozen=True)
class Pipeline:
    """What a pipeline's folder consisted of, as needed to write it again: values of model_index.json and of the scheduler's
    config, networks and tokenizers by part name (None: the pipeline does without)."""

    index: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    parts: Mapping[str, Any]


@dataclass(frozen=True)
class Opened:
    """A model by our part names. weights: sha256 of each part's, by the names the model has for its parts."""

    config: ModelConfig
    parts: dict[str, nn.Module]
    weights: dict[str, str]
    pipeline: Pipeline | None = None


def model_config(value: Mapping[str, Any] | ModelConfig) -> ModelConfig:
    """A checked config from plain values; ValueError says which keys are wrong."""
    if isinstance(value, ModelConfig):
        return value
    try:
        return ModelConfig.model_validate_json(json.dumps(value))  # JSON mode: lists serve as tuples, all else is strict
    except (ValidationError, TypeError, ValueError) as error:
        reason = describe(error) if isinstance(error, ValidationError) else str(error)
        raise ValueError(f"The model config is not valid: {reason}.") from None


def read_model_config(folder: Path | str) -> ModelConfig:
    """`config.json` of a model folder, checked."""
    folder = Path(folder)
    recover(folder)
    if not folder.is_dir():
        raise CheckpointError(folder, "is not a folder; give a model folder, which holds config.json and denoiser/.")
    if not (folder / "config.json").exists() and (folder / "model_index.json").exists():
        raise CheckpointError(folder, "is a diffusers pipeline, not a fewstep model; Generator.from_pretrained opens those.")
    if not (folder / "config.json").exists():
        raise CheckpointError(folder, "is a folder without config.json or model_index.json, which models have; check the name.")
    value = read_json(folder / "config.json")
    if value.get("format") != "fewstep":
        raise CheckpointError(folder / "config.json", 'is not the config of a fewstep model (it lacks "format": "fewstep").')
    if isinstance(value.get("version"), int) and value["version"] > 1:
        raise CheckpointError(folder / "config.json", f"has version {value['version']}; this fewstep reads version 1.")
    try:
        return model_config(value)
    except ValueError as error:
        raise CheckpointError(folder / "config.json", str(error)) from None


def write_model_config(folder: Path | str, config: Mapping[str, Any] | ModelConfig) -> ModelConfig:
    """Check a config and write it as `config.json` of a folder."""
    checked = model_config(config)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", checked.model_dump(mode="json", exclude_none=True))
    return checked


def part_folders(folder: Path | str, lender: Path | None = None) -> dict[str, Path]:
    """Where the networks of a model folder are, by part name; `denoiser` is always among them. What it lacks otherwise is
    taken from the folder `lender`."""
    folder = Path(folder)
    if not (folder / "denoiser").is_dir():
        raise CheckpointError(folder, "has no denoiser/ folder; the model is incomplete.")
    places = [folder] if lender is None else [folder, lender]
    folders = {name: next((where / name for where in places if (where / name).is_dir()), None) for name in PARTS}
    return {name: where for name, where in folders.items() if where is not None}


def read_parts(folders: Mapping[str, Path], dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    """The networks of `part_folders` by part name. dtype: as of `load_component`."""
    return {name: load_component(where, *types_of(name), dtype=dtype) for name, where in folders.items()}


def _check_replaceable(folder: Path, overwrite: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or folder.is_symlink():
        raise ValueError(f"{folder} exists and is not a folder; choose another name for the model.")
    inside = {entry.name for entry in folder.iterdir()}
    if not inside:
        return
    if "config.json" in inside:
        read_model_config(folder)
        our_files = OWN_FILES
    elif "model_index.json" in inside:
        our_files = {*OWN_FILES - {*PARTS, "config.json"}, "model_index.json", *read_json(folder / "model_index.json")}
    else:
        raise ValueError(f"{folder} exists and is not a model; nothing was written. Choose a new or empty folder.")
    if foreign := sorted(inside - our_files):
        raise ValueError(f"{folder} also holds {foreign[0]!r}, which saving would delete; move it or choose another folder.")
    if not overwrite:
        raise ValueError(f"{folder} holds a model already; choose another folder, or pass overwrite=True to replace it.")


@contextmanager
def writing(folder: Path | str, overwrite: bool) -> Iterator[Path]:
    """A new folder to write a model into, which takes the place of `folder` once the block ends without an error.

    A model that is there already, of ours or of diffusers, is replaced if `overwrite` says so; any other content is never.
    """
    folder = Path(folder).absolute()
    recover(folder)
    _check_replaceable(folder, overwrite)
    with written_folder(folder) as new:
        yield new


def write_model(
    folder: Path | str,
    config: Mapping[str, Any] | ModelConfig,
    denoiser: nn.Module,
    autoencoder: nn.Module | None = None,
    text_encoder: nn.Module | None = None,
    *,
    dtype: torch.dtype | None = None,
    readme: str | None = None,
    overwrite: bool = True,
) -> Path:
    """Write a model folder in one piece; a model already there is replaced unless overwrite=False, any other folder refused.

    Floating weights are stored in `dtype` (as they are when None). `readme` is the text of README.md, the model card.
    """
    folder, config = Path(folder).absolute(), model_config(config)
    with writing(folder, overwrite) as new:
        write_model_config(new, config)
        for name, network in {"denoiser": denoiser, "autoencoder": autoencoder, "text_encoder": text_encoder}.items():
            if network is not None:
                save_component(network, new / name, dtype)
        write_bytes(new / "README.md", (readme or f"# {folder.name}\n\nA fewstep model.\n").encode())
    return folder
