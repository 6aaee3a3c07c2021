"""The texts in the header of an adapter that was made of others, and kohya's keys for its layers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gen.adapters import Adapter, Delta
from gen.adapters.keys import SUFFIXES, spell
from gen.adapters.peft_config import BESIDE, IN_FILE, read_configs

HISTORY = "fewstep.made_from"
# what holds for the weights of the old file alone
STALE = {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256", IN_FILE, BESIDE, HISTORY}
JOINED = {
    "modelspec.title": " + ",
    "ss_output_name": " + ",
    "modelspec.author": ", ",
    "modelspec.license": ", ",
    "modelspec.trigger_phrase": ", ",
    "modelspec.usage_hint": "; ",
    "modelspec.tags": ", ",
}
TAGS = "ss_tag_frequency"


def merged_metadata(
    adapters: Sequence[Adapter], layers: Mapping[str, Delta], made: Mapping[str, Any], weights: Sequence[float] | None = None
) -> dict[str, str]:
    """Texts that all adapters agree on are kept, titles, authors, licences and trained words are joined, counts of tags added.

    made: how the result was made; kept as JSON under "fewstep.made_from", with the histories of the adapters themselves.
    """
    tables = [{name: text for name, text in adapter.metadata.items() if name not in STALE} for adapter in adapters]
    for table, weight in zip(tables, [1.0] * len(tables) if weights is None else weights, strict=True):
        if weight == 0:  # what its words ask for is not in the result
            table.pop("modelspec.trigger_phrase", None)
    for table, adapter in zip(tables, adapters, strict=True):
        for config in read_configs(adapter.metadata).values():
            if isinstance(base := config.get("base_model_name_or_path"), str):
                table.setdefault("base_model_name_or_path", base)
    merged: dict[str, str] = {}
    for name in dict.fromkeys(name for table in tables for name in table):
        texts = list(dict.fromkeys(table[name] for table in tables if name in table))
        if len(texts) == 1 and (name in JOINED or name == TAGS or all(name in table for table in tables)):
            merged[name] = texts[0]
        elif name in JOINED:
            merged[name] = JOINED[name].join(texts)
        elif name == TAGS:
            merged |= _tags(texts)
    if len(adapters) > 1 and any(name.startswith("modelspec.") for name in merged):
        merged["modelspec.merged_from"] = ", ".join(
            adapter.metadata.get("modelspec.title") or adapter.name for adapter in adapters
        )
    sources = [{"name": adapter.name, "sha256": adapter.sha256, **_history(adapter)} for adapter in adapters]
    merged[HISTORY] = json.dumps({**made, "adapters": sources}, ensure_ascii=False)
    return merged | network_texts(merged, layers)


def network_texts(metadata: Mapping[str, str], layers: Mapping[str, Delta]) -> dict[str, str]:
    """kohya's texts for rank, alpha and kind of network, where there are such: one number for all layers, or Dynamic."""
    if not any(name in metadata for name in ("ss_network_dim", "ss_network_alpha")):
        return {}
    ranked = [delta for delta in layers.values() if delta.rank is not None]
    ranks = {str(delta.rank) for delta in ranked}
    alphas = {f"{delta.scale * (delta.rank or 1):.9g}" for delta in ranked}
    texts = {
        "ss_network_dim": ranks.pop() if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": alphas.pop() if len(alphas) == 1 else "Dynamic",
    }
    if all(delta.kind == "lora" for delta in ranked) and "lycoris" in metadata.get("ss_network_module", ""):
        texts["ss_network_module"] = "networks.lora"
    return texts


def _history(adapter: Adapter) -> dict[str, Any]:
    """What the adapter itself was made from, as far as it says so in a way that can be read."""
    try:
        value = json.loads(adapter.metadata.get(HISTORY, "")[:100_000])
    except ValueError:
        return {}
    return {"made_from": value} if isinstance(value, dict) else {}


def _tags(texts: Sequence[str]) -> dict[str, str]:
    """Folder -> tag -> count, added up; nothing where one of them is no such table."""
    total: dict[str, dict[str, int]] = {}
    for text in texts:
        try:
            table = json.loads(text)
        except (ValueError, RecursionError):
            return {}
        if not isinstance(table, dict) or not all(isinstance(tags, dict) for tags in table.values()):
            return {}
        for folder, tags in table.items():
            counts = total.setdefault(folder, {})
            for tag, count in tags.items():
                if not isinstance(count, int | float):
                    return {}
                counts[tag] = int(counts.get(tag, 0) + count)
    return {TAGS: json.dumps(total, ensure_ascii=False)}


def kohya_keys(adapters: Sequence[Adapter], layers: Mapping[str, Delta]) -> dict[tuple[str, str], str]:
    """Keys for layers named with underscores, with each layer's own beginning (lora_te1_, lora_transformer_, lycoris_)."""
    stems: dict[str, str] = {}
    for adapter in adapters:
        if adapter.format == "kohya":
            for (layer, _), key in adapter.keys.items():
                stem, _, end = key.partition(".")
                if end in SUFFIXES:
                    stems.setdefault(layer, stem)
    keys = {}
    for layer, delta in layers.items():
        if layer in stems:
            for factor in {*delta.factors, "alpha"} - ({"alpha"} if delta.kind in ("full", "bias") else set()):
                keys[layer, factor] = f"{stems[layer]}.{spell('kohya', layer, factor).partition('.')[2]}"
    return keys
