"""Models that stay open between jobs, and the names that the page has for them."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gen.calls.call import Call
from gen.calls.choose import beyond_student

AUTOMATIC = "automatic"  # the student wherever it serves, else its teacher
PACKAGED = {"fast": "fast, 4 steps", "default": "default, 20 steps", "upscale": "upscale, for Enlarge"}
WARM = 3  # models that stay open
FILES = (".safetensors", ".gguf")
MOST_READ = 5000  # files of a folder that are looked at


class WarmModels:
    """`Generator`s by the model's name, the ones last used kept open.

    open: makes one; `Generator.from_pretrained` if None.
    prepare: told of every one that is opened.
    """

    def __init__(self, open: Callable[[str], Any] | None = None, prepare: Callable[[Any], None] | None = None):
        self._open, self._prepare = open, prepare
        self._warm: OrderedDict[str, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, model: str) -> Any:
        """The `Generator` of a model, opened where it is not."""
        with self._lock:
            if model not in self._warm:
                while len(self._warm) >= WARM:
                    self._warm.popitem(last=False)
                self._warm[model] = self._opened(model)
            self._warm.move_to_end(model)
            return self._warm[model]

    def is_open(self, model: str) -> bool:
        """It need not be opened any more."""
        return model in self._warm

    def _opened(self, model: str) -> Any:
        if self._open is None:
            from gen.generator import Generator

            generator: Any = Generator.from_pretrained(model)
        else:
            generator = self._open(model)
        if self._prepare is not None:
            self._prepare(generator)
        return generator


def chosen_model(call: Call) -> str:
    """What "automatic" comes to for a call."""
    plain = call.method == "image" and not call.adapters and beyond_student(call.arguments) is None
    return "fast" if plain else "default"


def models_in(folder: Path | None) -> dict[str, str]:
    """name -> path of every model in a folder: folders of ours and diffusers', and files of weights."""
    if folder is None:
        return {}
    found = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name.lower()):
        if path.name.startswith(".") or is_control(path) or is_adapter(path) or is_ip_adapter(path):
            continue
        if path.suffix in FILES or any((path / name).is_file() for name in ("config.json", "model_index.json")):
            found[path.name] = str(path)
    return found


def controlnets_in(folder: Path | None) -> dict[str, str]:
    """name -> path of every ControlNet in a folder, ours and T2I-Adapters among them."""
    paths = [] if folder is None else sorted(folder.iterdir())
    return {path.name: str(path) for path in paths if is_control(path)}


def adapters_in(folder: Path | None) -> dict[str, str]:
    """Name -> path of every adapter's file in a folder and those in it."""
    if folder is None:
        return {}
    files = sorted(folder.rglob("*.safetensors"), key=lambda path: str(path).lower())
    return {str(path.relative_to(folder).with_suffix("")): str(path) for path in files[:MOST_READ] if path.is_file()}


def ip_adapters_in(folder: Path | None) -> dict[str, str]:
    """Name -> path of every IP-Adapter's file in a folder and those in it."""
    if folder is None:
        return {}
    files = sorted(folder.rglob("*.safetensors"), key=lambda path: str(path).lower())
    return {str(path.relative_to(folder).with_suffix("")): str(path) for path in files[:MOST_READ] if is_ip_adapter(path)}


def is_control(path: Path) -> bool:
    """Is this folder a network that reads a picture to follow, by its config?"""
    kind = _class_of(path)
    return "ControlNet" in kind or kind in ("T2IAdapter", "dit_control")


def is_ip_adapter(path: Path) -> bool:
    """Is this file an IP-Adapter, by the names in its header?"""
    return any(name.startswith(("ip_adapter.", "image_proj.")) for name in _tensor_names(path))


def is_adapter(path: Path) -> bool:
    """Is this file a LoRA or the like, by the names in its header?"""
    marks = ("lora_", "lora.", "lokr_", "hada_", "oft_", "string_to_param", "emb_params")
    return any(mark in name.lower() for name in _tensor_names(path) for mark in marks)


def _tensor_names(path: Path) -> list[str]:
    """The first names in the header of a safetensors file; none for any other, and for one that is damaged."""
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            names = json.loads(file.read(length)) if length < 100_000_000 else {}
    except (OSError, ValueError, RecursionError):
        return []
    return [str(name) for name in list(names)[:20]] if isinstance(names, dict) else []


def _class_of(path: Path) -> str:
    """The class that a folder's config names, "" for none."""
    try:
        config = json.loads((path / "config.json").read_text()[:1_000_000])
        return str(config.get("_class_name", config.get("type", ""))) if isinstance(config, dict) else ""
    except (OSError, ValueError, RecursionError):
        return ""
