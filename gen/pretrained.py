"""Finding a model and opening it: by the name of the packaged one, by folder, or by hub id; and where it should run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from gen.checkpoints import CheckpointError, sha256
from gen.model_folder import PARTS, ModelConfig, read_model_config, read_parts

DEFAULT = Path(__file__).parent / "default"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_FILES = ("*.json", "*.safetensors", "*.md")


def find_model(model: str | Path, revision: str | None = None) -> tuple[str, Path]:
    """(name for recipes, folder) of "default", a folder, or a hub id, which is downloaded into the hub's own cache."""
    if not isinstance(model, str | Path) or not str(model):
        raise ValueError(f'The model is {model!r}; give "default", a model folder, or a hub id such as "owner/name".')
    if model == "default":
        if not (DEFAULT / "config.json").is_file():
            raise ValueError("This installation has no default model in gen/default; give a model folder or a hub id.")
        return "default", DEFAULT
    folder = Path(model)
    if folder.is_dir():
        return folder.resolve().name, folder
    parts = str(model).split("/")
    if isinstance(model, Path) or folder.exists() or len(parts) != 2 or not all(parts) or parts[0] in (".", "..", "~"):
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f'{model} {what}; give "default", a model folder, or a hub id such as "owner/name".')
    return str(model), download(str(model), revision)


def download(repository: str, revision: str | None = None) -> Path:
    """A hub repository's model files; its config is checked before the weights are fetched."""
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError:
        raise ValueError("Models from the hub need the package huggingface_hub; install it, or give a folder.") from None
    try:
        try:
            config = hf_hub_download(repository, "config.json", revision=revision)
        except (EntryNotFoundError, LocalEntryNotFoundError):
            return _download_pipeline(repository, revision)
        read_model_config(Path(config).parent)
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(HUB_FILES)))
    except CheckpointError as error:
        raise ValueError(f"{repository} on the hub is not a model that fewstep can open: {error}") from None
    except HFValidationError:
        raise ValueError(f"{repository!r} is neither a folder nor a valid hub id (owner/name).") from None
    except LocalEntryNotFoundError:
        raise ValueError(
            f"{repository} is no folder here and the hub cannot be reached; check the name or the network."
        ) from None
    except (HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{repository} cannot be had from the hub: {reason.rstrip('.')}. Is it a folder's name?") from None


def _download_pipeline(repository: str, revision: str | None) -> Path:
    """A diffusers pipeline: its index is checked, then only what we read of it is fetched, all of one commit."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    from gen.bridge.pipeline import INDEX, needed_files, read_index

    folder = Path(hf_hub_download(repository, INDEX, revision=revision)).parent
    _, classes, _ = read_index(folder)
    try:
        info = HfApi().repo_info(repository, revision=revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    names = [file.rfilename for file in info.siblings or []]
    return Path(snapshot_download(repository, revision=info.sha, allow_patterns=needed_files(names, classes)))


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[ModelConfig, dict[str, nn.Module], dict[str, str]]:
    """(config, networks by part, sha256 of each part's weights) of a model folder or a diffusers pipeline.

    dtype: what a pipeline's large networks are read as; a model of ours is read as float32.
    """
    if (folder / "model_index.json").is_file() and not (folder / "config.json").exists():
        from gen.bridge.pipeline import open_pipeline

        return open_pipeline(folder, dtype)
    config, parts = read_model_config(folder), read_parts(folder)
    return config, parts, {name: sha256(folder / name / "model.safetensors") for name in PARTS if name in parts}


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the best one present."""
    if device is None or device == "auto":
        mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError):
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
    """The dtype asked for, or the device's fast one."""
    if dtype is None or dtype == "auto":
        return torch.bfloat16 if fast_bfloat16(device) else torch.float32
    chosen = DTYPES.get(dtype, dtype) if isinstance(dtype, str) else dtype
    if chosen not in DTYPES.values():
        raise ValueError(f"Unknown dtype {dtype!r}; give auto, {', '.join(DTYPES)}.")
    return chosen
