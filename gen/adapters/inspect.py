"""What is in an adapter file, as plain values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gen.adapters.adapter import Adapter
from gen.adapters.delta import AdapterError
from gen.adapters.model import other_names
from gen.adapters.peft_config import BESIDE, IN_FILE
from gen.adapters.resolve import Index, resolve
from gen.adapters.words import misfits

WORDS = 12  # of the words a file was trained with, the most frequent
# what metadata says about where an adapter comes from: our name -> theirs, the first that is there counts
METADATA = {
    "title": ("modelspec.title", "ss_output_name", "name"),
    "base_model": (
        "modelspec.architecture",
        "ss_base_model_version",
        "baseModel",
        "base_model",
        "base_model_name_or_path",
        "ss_sd_model_name",
    ),
    "trained_from": ("ss_sd_model_name", "base_model_name_or_path"),
    "trained_with": ("ss_network_module", "software", "modelspec.implementation"),
    "author": ("modelspec.author",),
    "license": ("modelspec.license",),
}


def describe(adapter: Adapter, path: Path | None = None) -> dict[str, Any]:
    """Format, layers by part, kind, rank, alpha and scale, what the metadata tell, and, with its path, the size on disk."""
    groups: Counter[tuple] = Counter()
    for layer, delta in adapter.layers.items():
        alpha = None if delta.rank is None else _round(delta.scale * delta.rank)
        groups[layer.partition(".")[0], delta.type, delta.rank, alpha, _round(delta.scale)] += 1
    names = ("part", "kind", "rank", "alpha", "scale")
    numbers = [f for d in adapter.layers.values() for name, f in d.factors.items() if name != "alpha"]
    dtypes = {str(f.dtype).removeprefix("torch.") for f in numbers}
    metadata = _metadata(adapter.metadata)
    return {
        "name": adapter.name,
        "format": adapter.format,
        "bytes": None if path is None else path.stat().st_size,
        "sha256": adapter.sha256,
        "parameters": sum(f.numel() for d in adapter.layers.values() for n, f in d.factors.items() if n != "alpha"),
        "dtypes": sorted(dtypes),
        "layers": len(adapter.layers),
        "groups": [dict(zip(names, group, strict=True)) | {"layers": count} for group, count in groups.items()],
        **{name: metadata.get(name) for name in METADATA},
        "trained_words": metadata["trained_words"],
        "learned_words": {word: len(next(iter(parts.values()))) for word, parts in adapter.words.items()},
        "notes": list(adapter.notes),
    }


def match(adapter: Adapter, parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Which layers fit a model: matched, unmatched (each with the nearest module's name) and mismatched, with reasons.

    parts: its networks by part, as `gen.models.skeleton` gives them."""
    if adapter.words and not adapter.layers:
        problems = misfits(adapter.words, parts)
        return {"complete": not problems, "matched": {}, "unmatched": {}, "mismatched": {}, "problems": "; ".join(problems)}
    try:
        _, report = resolve(adapter, {part: Index(network) for part, network in parts.items()}, False, other_names(parts))
    except AdapterError as error:
        return {"complete": False, "matched": {}, "unmatched": {}, "mismatched": {}, "problems": str(error)}
    return {
        "complete": report.complete,
        "matched": {layer: list(modules) for layer, modules in report.matched.items()},
        "unmatched": report.unmatched,
        "mismatched": report.mismatched,
        "problems": report.problems(),
    }


def _round(number: float) -> float:
    return float(f"{number:.6g}")


def _metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, str] = dict(metadata)
    for source in (IN_FILE, BESIDE):  # peft's config names the base model
        values |= {str(k).rpartition(".")[2]: v for k, v in _object(metadata.get(source)).items() if isinstance(v, str)}
    selected: dict[str, Any] = {}
    for name, keys in METADATA.items():
        value = next((values[key] for key in keys if isinstance(values.get(key), str) and values[key].strip()), None)
        selected[name] = None if value in (None, "None", "null") else str(value)[:300]
    return selected | {"trained_words": _words(metadata)}


def _words(metadata: Mapping[str, str]) -> list[str]:
    """The trigger phrase, then the most frequent words of the captions; where there are none, the names of the folders
    ("10_sks dog")."""
    phrase = metadata.get("modelspec.trigger_phrase") or metadata.get("trigger_word") or ""
    triggers = [word.strip() for word in phrase.split(",") if word.strip()]
    counts: Counter[str] = Counter()
    for folder, tags in _object(metadata.get("ss_tag_frequency")).items():
        for word, count in tags.items() if isinstance(tags, Mapping) else ():
            if isinstance(count, int | float) and word.strip():
                counts[word.strip()] += int(min(max(count, 0), 10**9))
        if not tags and folder.partition("_")[2]:
            counts[folder.partition("_")[2]] += 1
    triggers += [word for word, _ in counts.most_common(WORDS)]
    return [word[:100] for word in dict.fromkeys(triggers)][:WORDS]


def _object(text: str | None) -> dict[str, Any]:
    """A JSON object in the metadata; empty where it is none."""
    try:
        value = json.loads(text) if text and len(text) < 4_000_000 else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
