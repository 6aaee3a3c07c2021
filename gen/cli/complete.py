"""What can stand after an option, for completion in shells: names, read without torch. Each takes what is typed so far."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gen.cli.known_names import CACHES, GUIDANCE, SAMPLERS, SCHEDULES

MODELS = ("default", "fast", "upscale")
QUANTIZE = ("int8", "fp8", "int4", "nf4")
OFFLOAD = ("model", "group", "sequential", "disk")
DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = ("auto", "float32", "bfloat16", "float16")
FORMATS = ("png", "jpg", "webp", "avif")
_VARIED = {"sampler": SAMPLERS, "schedule": SCHEDULES, "guidance": GUIDANCE, "cache": CACHES}
_SETTINGS = (
    *_VARIED,
    *("steps", "guidance-scale", "seed", "width", "height", "strength", "variation-seed", "variation-strength", "hires"),
)


def among(names: Iterable[str], incomplete: str) -> list[str]:
    """Those that begin with what is typed."""
    return [name for name in names if name.startswith(incomplete)]


def samplers(incomplete: str) -> list[str]:
    return among(SAMPLERS, incomplete)


def schedules(incomplete: str) -> list[str]:
    return among(SCHEDULES, incomplete) + paths(incomplete, ".json")


def guidance(incomplete: str) -> list[str]:
    return _stacked(GUIDANCE, incomplete)


def caches(incomplete: str) -> list[str]:
    return _stacked(CACHES, incomplete)


def models(incomplete: str) -> list[str]:
    """The packaged ones, folders, and checkpoints' files."""
    return among(MODELS, incomplete) + paths(incomplete, ".safetensors", ".gguf")


def quantize(incomplete: str) -> list[str]:
    return among(QUANTIZE, incomplete)


def offload(incomplete: str) -> list[str]:
    return among(OFFLOAD, incomplete)


def devices(incomplete: str) -> list[str]:
    return among(DEVICES, incomplete)


def dtypes(incomplete: str) -> list[str]:
    return among(DTYPES, incomplete)


def formats(incomplete: str) -> list[str]:
    return among(FORMATS, incomplete)


def varied(incomplete: str) -> list[str]:
    """Of a sweep: a setting's name, then its values."""
    name, equals, values = incomplete.partition("=")
    if not equals:
        return [f"{one}=" for one in among(_SETTINGS, name)]
    before, comma, last = values.rpartition(",")
    return [f"{name}={before}{comma}{one}" for one in among(_VARIED.get(name, ()), last)]


def paths(incomplete: str, *endings: str) -> list[str]:
    """Folders, and files that end so, at the place that is typed."""
    folder, slash, begun = incomplete.rpartition("/")
    place = Path(f"{folder}{slash}" or ".").expanduser()
    try:
        found = sorted(entry for entry in place.iterdir() if entry.name.startswith(begun))
    except OSError:
        return []
    shown = [entry for entry in found if begun.startswith(".") or not entry.name.startswith(".")]
    names = [f"{entry.name}/" if entry.is_dir() else entry.name for entry in shown if entry.is_dir() or entry.suffix in endings]
    return [f"{folder}{slash}{name}" for name in names]


def _stacked(names: Iterable[str], incomplete: str) -> list[str]:
    """The last of several names with + between."""
    before, plus, last = incomplete.rpartition("+")
    spaces = " " * (len(last) - len(last.lstrip()))
    return [f"{before}{plus}{spaces}{name}" for name in among(names, last.lstrip())]
