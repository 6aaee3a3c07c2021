"""Where a part of a model is: in a folder, in a pipeline's folder, or in a hub repository of either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gen.io.weights import CheckpointError
from gen.models.bridge.load import STEMS, weight_files

WORDS = (".json", ".txt", ".model")  # endings of configs and vocabularies


def part_folder(source: str | Path, part: str, needed: Sequence[str], also: Sequence[str] = ()) -> Path:
    """The folder of a part such as "vae": the source itself where it holds the files `needed`, or the folder of that name in
    it. A hub repository is fetched as far as the part needs it, with the folders `also`. ValueError says what is missing.
    """
    if not isinstance(source, str | Path) or not str(source):
        raise ValueError(f"The {part} is {source!r}; give a folder or a hub id such as 'owner/name'.")
    folder = Path(source)
    if not folder.is_dir():
        from gen.models.hub import is_hub_id

        if isinstance(source, Path) or folder.exists() or not is_hub_id(source):
            raise ValueError(f"{source} is no folder; give the folder or the hub id of the {part}.")
        folder = _fetched(source, part, also)
    for place in (folder / part, folder):
        if all((place / name).is_file() for name in needed):
            return place
    raise CheckpointError(folder, f"has no {part}: neither {needed[0]} nor {part}/{needed[0]} is there.")


def _fetched(repository: str, part: str, also: Sequence[str]) -> Path:
    from gen.models.hub import hub_errors

    with hub_errors(repository):
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

        try:
            info: Any = HfApi().repo_info(repository)
        except GatedRepoError:
            raise
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
            return Path(snapshot_download(repository, local_files_only=True))
        names = [file.rfilename for file in info.siblings or []]
        return Path(snapshot_download(repository, revision=info.sha, allow_patterns=needed_files(names, part, also)))


def needed_files(names: Sequence[str], part: str, also: Sequence[str] = ()) -> list[str]:
    """Of a repository's file names those of one part: its config and one kind of weights, and vocabularies in `also` or beside.

    CheckpointError for a part that is not there, or not as safetensors.
    """
    prefix = f"{part}/" if f"{part}/config.json" in names else ""
    part_files = {
        name.removeprefix(prefix) for name in names if name.startswith(prefix) and name.count("/") == prefix.count("/")
    }
    _, files, listing = weight_files(part_files, STEMS["diffusers" if part == "vae" else "transformers"])
    if "config.json" not in part_files or not files:
        raise CheckpointError(part, "has no config.json and safetensors in this repository, and other formats are not read.")
    folders = {prefix, *(f"{name}/" for name in also)} if also else set()
    words = [
        name for name in names if name.endswith(WORDS) and any(name == folder + name.rpartition("/")[2] for folder in folders)
    ]
    return sorted({*(prefix + name for name in ("config.json", *files, *([listing] if listing else []))), *words})
