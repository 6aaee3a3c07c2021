"""Folders that a config begins from and that are not there: which key names them, and the command that makes them.

Configs build on one another: a generator on the export of an autoencoder, a fast student on its slower brother.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.config import ConfigError, read_yaml
from distill.registry import OBJECTIVES

# keys whose values are weights to begin from, by the last part of the key
WEIGHTS = {"autoencoder", "text_encoder", "init_from", "frozen", "teacher"}
MODELS = {"model"}  # folders, or names of the hub
NAMED = {"features", "representations"}  # NAME or NAME:FOLDER
_COMMAND = re.compile(r"^#\s+((?:fewstep|python -m) .*)$", re.MULTILINE)
_OUTPUT = re.compile(r"(?:^|\s)(?:output=|--out )(\S+)")


def check_folders(values: Mapping[str, Any], source: Path | str) -> None:
    """ConfigError for the first weights that a config, read from the file `source`, names and that are not there."""
    for key, value in _flat(values):
        last = next(part for part in reversed(key.split(".")) if not part.isdigit())
        if last in NAMED:
            value = value.partition(":")[2]
        if last not in WEIGHTS | MODELS | NAMED or not value or Path(value).exists():
            continue
        command = made_by(Path(value), Path(source))
        if command is not None:
            raise ConfigError(f"{key}: {value} does not exist; `{command}` makes it.")
        if last not in MODELS or value.count("/") > 1 or value.startswith((".", "/", "~")):
            raise ConfigError(
                f"{key}: {value} does not exist; train what it should hold first, or give a folder that is there."
            )


def _flat(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """The texts in nested values with their keys, as overrides spell them."""
    if isinstance(values, Mapping):
        for name, value in values.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from _flat(value, f"{key}.{index}")
    elif isinstance(values, str | Path):
        yield key, str(values)


def made_by(folder: Path, source: Path) -> str | None:
    """The command whose run's folder holds `folder`, as the comments of the config at `source` or configs near it say."""
    try:
        lines = source.read_text("utf-8").replace("\\\n#", "")
    except (OSError, ValueError):
        lines = ""
    for command in _COMMAND.findall(lines):
        output = _OUTPUT.search(command)
        if output and _holds(Path(output[1]), folder):
            return re.sub(r"\s+", " ", command)
    for file in _configs_near(source):
        try:
            made = read_yaml(file)
        except (ConfigError, OSError, yaml.YAMLError):
            continue
        if isinstance(made.get("output"), str) and _holds(Path(made["output"]), folder):
            kind = (made.get("objective") or {}).get("type")
            command = "fewstep train" if kind in OBJECTIVES else "fewstep lora train"
            return f"{command} {shlex.quote(str(file))}"
    return None


def _holds(output: Path, folder: Path) -> bool:
    return output == folder or output in folder.parents


def _configs_near(source: Path) -> list[Path]:
    """The configs in the folder of one, and in those beside it where it is one of a tree named configs."""
    root = next((parent for parent in source.parents if parent.name == "configs"), None)
    others = root.glob("**/*.yaml") if root else source.parent.glob("*.yaml")
    return sorted(file for file in others if file != source)
