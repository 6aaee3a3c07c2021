"""Finding a model and opening it: by the name of the packaged one, by folder, or by hub id; and where it should run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gen.io.folders import recover
from gen.io.weights import PICKLES, read_json
from gen.models.components import component_digest
from gen.models.folder import Opened, part_folders, read_model_config, read_parts
from gen.models.hub import hub_errors, is_hub_id
from gen.models.options import DTYPES, ModelOptions
from gen.nn.initialisation import wants_sizes_only
from gen.nn.quantized import check_scheme, is_quantized, quantize_network
from samplers.lookup import nearest

DEFAULT = Path(__file__).parents[1] / "weights" / "default"
FAST = (
    Path(__file__).parents[1] / "weights" / "fast"
)  # its student for few steps: a config and a denoiser; the other parts are the default's
UPSCALE = Path(__file__).parents[1] / "weights" / "upscale"  # makes pictures larger, and draws nothing by itself
PACKAGED = {"default": DEFAULT, "fast": FAST, "upscale": UPSCALE}
_SINGLE_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
WEIGHT_FILES = (*_SINGLE_FILES, *(f"{name}.index.json" for name in _SINGLE_FILES))
FILES = (".safetensors", ".safetensors.index.json", ".gguf")
HUB_FILES = ("*.json", "*.safetensors", "*.md")


def find_model(
    model: str | Path, revision: str | None = None, variant: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[str, Path]:
    """(name for recipes, folder or file) of "default", "fast", "upscale", a folder, a checkpoint's file, or a hub id, which is
    downloaded into the hub's own cache. variant, dtype: which of a pipeline's weights are fetched
    (`gen.models.bridge.load.variants_for`)."""
    if not isinstance(model, str | Path) or not str(model):
        raise ValueError(f'The model is {model!r}; give "default", "fast", a model folder, or a hub id such as "owner/name".')
    if isinstance(model, str) and model in PACKAGED:
        if not (PACKAGED[model] / "config.json").is_file():
            raise ValueError(f"This installation has no {model} model in gen/{model}; give a model folder or a hub id.")
        return model, PACKAGED[model]
    folder = Path(model)
    recover(folder)  # where a crash fell into the replacement of a model
    if folder.is_dir():
        return folder.resolve().name, folder
    if folder.is_file() and folder.name.endswith(FILES):
        return folder.name.split(".safetensors")[0].removesuffix(".gguf"), folder
    if isinstance(model, Path) or folder.exists() or not is_hub_id(model):
        what = "is neither a folder nor a safetensors or GGUF file" if folder.exists() else "does not exist"
        hint = " Convert it first (`fewstep convert --from-pickle`)." if folder.suffix in PICKLES and folder.is_file() else ""
        near = nearest(model, PACKAGED)
        hint = f' Did you mean "{near}"?' if near and not folder.exists() else hint
        raise ValueError(
            f'{model} {what}; give "default", "fast", a model folder, a checkpoint, or a hub id such as "owner/name".{hint}'
        )
    return str(model), download(str(model), revision, variant, dtype)


def download(
    repository: str, revision: str | None = None, variant: str | None = None, dtype: torch.dtype = torch.float32
) -> Path:
    """A hub repository's model files; its config is checked before the weights are fetched."""
    with hub_errors(repository):
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            config = hf_hub_download(repository, "config.json", revision=revision)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return _download_pipeline(repository, revision, variant, dtype)
        if not is_checkpoint(Path(config).parent):
            read_model_config(Path(config).parent)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES)))


def _download_pipeline(repository: str, revision: str | None, variant: str | None, dtype: torch.dtype) -> Path:
    """A diffusers pipeline: its index is checked, then only what we read of it is fetched, all of one commit."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    from gen.models.bridge.generic.folder import classes_of
    from gen.models.bridge.pipeline import INDEX, needed_files

    folder = Path(hf_hub_download(repository, INDEX, revision=revision)).parent
    classes = classes_of(folder)
    try:
        info: Any = HfApi().repo_info(repository, revision=revision)
    except GatedRepoError:
        raise
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    names = [file.rfilename for file in info.siblings or []]
    return Path(snapshot_download(repository, revision=info.sha, allow_patterns=needed_files(names, classes, variant, dtype)))


def load_model(folder: Path, dtype: torch.dtype = torch.float32, options: ModelOptions | None = None) -> Opened:
    """The networks and config of a model folder, a diffusers pipeline or a network's checkpoint.

    dtype: what the large networks of others are read as; networks of ours are read as float32.
    """
    options = options or ModelOptions()
    check_scheme(options.quantize)
    opened = _opened(folder, dtype, options)
    if options.quantize is not None:
        denoiser = opened.parts["denoiser"]
        if not quantize_network(denoiser, options.quantize) and not is_quantized(denoiser):
            raise ValueError(f"{folder} has no layer that quantize={options.quantize!r} is for; leave quantize out.")
    return opened


def _opened(folder: Path, dtype: torch.dtype, options: ModelOptions) -> Opened:
    if is_checkpoint(folder):
        from gen.models.bridge.files.open import is_whole_model, open_file

        if folder.is_file() and is_whole_model(folder):
            return open_file(folder, dtype, options)
        from gen.models.bridge.checkpoint import open_network

        return open_network(folder, dtype, options)
    if options.model_options:
        raise ValueError(f"{folder} is a whole model, so model_options are not needed; leave them out.")
    if (folder / "model_index.json").is_file() and not (folder / "config.json").exists():
        from gen.models.bridge.generic.folder import is_whole, open_whole
        from gen.models.bridge.pipeline import open_pipeline

        if is_whole(folder):
            return open_whole(folder, dtype, options)
        given = (options.native, options.vae, options.variant, options.quantize, options.text_encoder)
        return open_pipeline(folder, dtype, *given)
    if options.text_encoder is not None:
        raise ValueError(f"{folder} is a whole model with its own text encoder, if it reads text; leave text_encoder out.")
    if options.variant is not None:
        raise ValueError(f"{folder} is a model folder of fewstep, which has one set of weights; leave variant out.")
    if options.vae is not None or options.native is False:
        name = "vae" if options.vae is not None else "native=False"
        raise ValueError(f"{folder} is a model folder of fewstep, complete as it is; leave {name} out.")
    config, folders = read_model_config(folder), part_folders(folder, DEFAULT if folder == FAST else None)
    parts = read_parts(folders, dtype)
    return Opened(
        config, parts, {} if wants_sizes_only() else {name: component_digest(where) for name, where in folders.items()}
    )


def is_checkpoint(path: Path) -> bool:
    """Is this the checkpoint of one network: a file, or a folder that is neither a model of ours nor a pipeline?"""
    if path.is_file():
        return True
    config = path / "config.json"
    if not config.is_file():
        return not (path / "model_index.json").exists() and any((path / name).is_file() for name in WEIGHT_FILES)
    value = read_json(config)
    return "format" not in value and ("_class_name" in value or "type" in value)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best one present."""
    if device is None or device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device or "")
    except (RuntimeError, TypeError, IndexError, ValueError):
        raise ValueError(f"Unknown device {device!r}; give auto, cpu, cuda, cuda:1 or mps.") from None
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(chosen.type, True):
        raise ValueError(f"The device {device!s} is not available here; `fewstep env` lists what is.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"There is no {chosen}: this machine has {torch.cuda.device_count()} CUDA device(s).")
    return chosen


def fast_bfloat16(device: torch.device) -> bool:
    """Does the device multiply bfloat16 matrices in hardware?"""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in names)


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """The dtype asked for, or the device's fast one: bfloat16 where it multiplies that in hardware, else float16 on GPUs (CUDA
    before Ampere, Apple's) and float32 on CPUs."""
    if dtype is None or dtype == "auto":
        if fast_bfloat16(device):
            return torch.bfloat16
        return torch.float16 if device.type in ("cuda", "mps") else torch.float32
    chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if not isinstance(chosen, torch.dtype) or chosen not in DTYPES.values():
        raise ValueError(f"Unknown dtype {dtype!r}; give auto, {', '.join(DTYPES)}.")
    return chosen
