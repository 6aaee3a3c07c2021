"""From the layers of an adapter to the modules of a network, by tables and exact names; nothing is guessed.

A module answers to its own name, to the same with underscores for dots (kohya), to the names that diffusers has for the parts
of our DiT, or the authors for those of diffusers' networks (`gen.adapters.originals`), and, where q, k and v are one
projection, to the names of the three, which are then rows of it. The other way round, a layer on a fused projection is cut
into the rows of three modules.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gen.adapters.adapter import Adapter
from gen.adapters.delta import AdapterError, Delta
from gen.adapters.join import joined
from gen.adapters.originals import composed, in_files, originals, side_by_side
from gen.adapters.report import SHOWN, LoadReport, nearest
from gen.adapters.targets import Target, stacked

# fused projection -> what its equal parts of rows are called elsewhere
FUSED: dict[str, tuple[tuple[str, ...], ...]] = {
    "qkv": (("to_q", "q_proj", "q"), ("to_k", "k_proj", "k"), ("to_v", "v_proj", "v")),
    "to_qkv": (("to_q", "q_proj", "q"), ("to_k", "k_proj", "k"), ("to_v", "v_proj", "v")),
    "kv": (("to_k", "k_proj", "k"), ("to_v", "v_proj", "v")),
    "to_kv": (("to_k", "k_proj", "k"), ("to_v", "v_proj", "v")),
}
# our DiT's names -> diffusers' (PixArtTransformer2DModel, DiTTransformer2DModel)
DIFFUSERS_DIT = (
    ("blocks.", "transformer_blocks."),
    (".attn.", ".attn1."),
    (".cross.", ".attn2."),
    (".mlp.fc1", ".ff.net.0.proj"),
    (".mlp.fc2", ".ff.net.2"),
)
WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm, nn.Embedding)


class Index:
    """The modules of a network that an adapter can change, by every name they answer to. Walks the network once."""

    def __init__(self, network: nn.Module):
        self.network = network
        self.modules = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, WEIGHTED) and isinstance(getattr(module, "weight", None), Tensor)
        }
        self.targets: dict[str, tuple[Target, ...]] = {name: (Target(name),) for name in self.modules}
        dit = type(network).__name__ == "DiT"
        for name in self.modules:
            for known in (name, _diffusers_name(name)) if dit else (name,):
                self._add(known, (Target(name),))
                self._fused(name, known, dit)
        for name, targets in originals(network, self.modules):
            self._add(name, targets)
        self._split()
        self._published(network)
        for name, targets in [*composed(network, self.targets, self.modules), *self._fused_elsewhere()]:
            self._add(name, targets)
        self.underscored: dict[str, set[tuple[Target, ...]]] = {}
        real = {name.replace(".", "_") for name in self.modules}
        for name, targets in self.targets.items():
            plain = name.replace(".", "_")
            if name in self.modules or plain not in real:  # an alias gives way to a module
                self.underscored.setdefault(plain, set()).add(targets)

    def _add(self, name: str, targets: tuple[Target, ...]) -> None:
        self.targets.setdefault(name, targets)

    def _fused(self, name: str, known: str, dit: bool) -> None:
        parent, _, last = known.rpartition(".")
        parts = FUSED.get(last)
        module = self.modules[name]
        if parts and isinstance(module, nn.Linear) and module.out_features % len(parts) == 0:
            size = module.out_features // len(parts)
            for i, names in enumerate(parts):
                for part in names:
                    self._add(f"{parent}.{part}".lstrip("."), (Target(name, (i * size, (i + 1) * size)),))
        if dit and last in ("proj", "q") and parent.rpartition(".")[2] in ("attn", "cross", "attn1", "attn2"):
            for other in {"proj": ("to_out.0", "to_out"), "q": ("to_q",)}[last]:
                self._add(f"{parent}.{other}", (Target(name),))

    def _published(self, network: Any) -> None:
        """The names that layers of our network have in published files, diffusers' and the authors'; of a DiT those that the
        rules above leave out. What a format repeats per block has no one name."""
        from gen.models.formats.registry import adapted_formats

        for slots in adapted_formats(network):
            times = Counter(slots.values())
            for theirs, pieces in slots.items():
                layers = [slot.name.rpartition(".")[0] for slot in pieces]
                if not theirs.endswith(".weight") or times[pieces] > 1 or not all(name in self.modules for name in layers):
                    continue
                targets, stop = [], 0
                for slot, name in zip(pieces, layers, strict=True):
                    size = self.modules[name].weight.shape[0] // slot.parts
                    rows = (slot.part * size, (slot.part + 1) * size) if slot.parts > 1 else None
                    targets.append(Target(name, rows, (stop, stop + size) if len(pieces) > 1 else None))
                    stop += size
                self._add(theirs.rpartition(".")[0], tuple(targets))

    def _fused_elsewhere(self) -> Iterator[tuple[str, tuple[Target, ...]]]:
        """Fused names for rows of our projections that published files have apart; of a DiT they are there already."""
        if not type(self.network).__module__.startswith("gen.nn.backbones.") or type(self.network).__name__ == "DiT":
            return
        for parent in {name.rpartition(".")[0] for name in self.targets if name.endswith(".to_v")}:
            for fused, parts in FUSED.items():
                rows = [
                    next((self.targets[f"{parent}.{n}"] for n in names if f"{parent}.{n}" in self.targets), ())
                    for names in parts
                ]
                if targets := side_by_side(rows, self.modules):
                    yield f"{parent}.{fused}", targets

    def _split(self) -> None:
        """Fused names for modules that are apart."""
        for parent in {name.rpartition(".")[0] for name in self.modules}:
            prefix = parent + "." if parent else ""
            for fused, parts in FUSED.items():
                names = [next((prefix + n for n in options if prefix + n in self.modules), None) for options in parts]
                if None not in names and (targets := stacked([n for n in names if n], self.modules)):
                    self._add(prefix + fused, targets)

    def find(self, path: str, underscored: bool = False) -> tuple[Target, ...]:
        """Where a layer goes; () if nowhere. underscored: the path is in kohya's spelling, where a_b may be a.b.

        AdapterError if two modules answer to the name.
        """
        if path in self.targets and (not underscored or "." in path):
            return self.targets[path]
        candidates = self.underscored.get(path, set())
        if len(candidates) > 1:
            names = " and ".join(sorted(targets[0].module for targets in candidates))
            raise AdapterError(f"could be any of {names}: with underscores their names are the same")
        return next(iter(candidates), ())


def _diffusers_name(name: str) -> str:
    for ours, theirs in DIFFUSERS_DIT:
        name = name.replace(ours, theirs, 1)
    return name


def resolve(
    adapter: Adapter, indices: Mapping[str, Index], strict: bool = True, same: Mapping[str, str] | None = None
) -> tuple[dict[str, list[tuple[Target, Delta]]], LoadReport]:
    """(part -> targets with what changes there, report).

    indices: part of the model -> its modules.
    same: other names of parts.

    AdapterError, with what was not found and the nearest names, if nothing matches, or, when strict, if anything is left over.
    """
    placed: dict[str, list[tuple[Target, Delta]]] = {part: [] for part in indices}
    matched: dict[str, tuple[str, ...]] = {}
    unmatched: dict[str, str] = {}
    mismatched: dict[str, str] = {}
    claimed: dict[str, dict[str, list[tuple[int, int, str]]]] = {}  # part -> module -> (first row, end, layer)
    wide = []
    for layer, delta in adapter.layers.items():
        part, _, path = layer.partition(".")
        part = (same or {}).get(part, part)
        if part not in indices:
            unmatched[layer] = f"this model has no {part.replace('_', ' ')}" if len(unmatched) < SHOWN else ""
            continue
        index = indices[part]
        try:
            targets = index.find(path, adapter.format == "kohya")
            if not targets:
                unmatched[layer] = nearest(path, list(index.targets)) if len(unmatched) < SHOWN else ""
                continue
            cut_rows = sum(target.cut[1] - target.cut[0] for target in targets if target.cut)
            if cut_rows and delta.dims[0] != cut_rows:
                raise AdapterError(f"changes {delta.dims[0]} rows where the model has {cut_rows}")
            of = (cut_rows, *index.modules[targets[0].module].weight.shape[1:])
            if cut_rows and delta.kind != "bias" and not delta.fits(of):
                raise AdapterError(f"is {delta.dims} where the model has {of}")
            pieces = [(t, _fitted(delta if t.cut is None else delta.select(*t.cut), t, index)) for t in targets]
            if other := _overlap(targets, claimed.setdefault(part, {}), layer):
                raise AdapterError(f"changes the same weights of {targets[0].module} as {other}")
        except AdapterError as error:
            mismatched[layer] = str(error).rstrip(".")
            continue
        placed[part] += pieces
        matched[layer] = tuple(target.module for target in targets)
        if delta.rank and delta.rank > _smaller_side(delta):
            wide.append(layer)
    notes = list(adapter.notes)
    if wide:
        notes.append(f"rank above what the weight can have in {len(wide)} of the layers, {wide[0]} for one")
    report = LoadReport(adapter, matched, unmatched, mismatched, tuple(notes))
    if not matched:
        raise AdapterError(f"{adapter.name} fits nothing in this model: {report.problems()}.")
    if strict and not report.complete:
        raise AdapterError(
            f"{adapter.name} does not fit this model: {report.problems()}. Load it with strict=False to use the "
            f"{len(matched)} that do."
        )
    return placed, report


def _overlap(targets: tuple[Target, ...], claimed: dict[str, list[tuple[int, int, str]]], layer: str) -> str | None:
    """An earlier layer of the same adapter that changes some of the same rows; if there is none, these are noted as taken."""
    for target in targets:
        start, stop = target.rows or (0, 1 << 62)
        for other_start, other_stop, other in claimed.get(target.module, ()):
            if start < other_stop and other_start < stop:
                return other
    for target in targets:
        claimed.setdefault(target.module, []).append((*(target.rows or (0, 1 << 62)), layer))
    return None


def _smaller_side(delta: Delta) -> int:
    return min(delta.dims[0], math.prod(delta.dims[1:]))


def _fitted(delta: Delta, target: Target, index: Index) -> Delta:
    module = index.modules[target.module]
    shape = tuple(module.weight.shape)
    if target.rows is not None:
        shape = (target.rows[1] - target.rows[0], *shape[1:])
    if not delta.fits(shape):
        raise AdapterError(f"is {delta.dims} where {target.module} is {shape}")
    if delta.rank and delta.rank > max(shape[0], math.prod(shape[1:])):
        raise AdapterError(f"has rank {delta.rank}, more than {target.module} has rows or columns, {shape}")
    if delta.kind not in ("full", "bias") and not isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise AdapterError(
            f"is a {delta.type} on {target.module}, a {type(module).__name__}, which only a full difference changes"
        )
    bias = delta.bias()
    if bias is not None and (
        getattr(module, "bias", None) is None and not isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ):
        raise AdapterError(f"changes a bias that {target.module} does not have")
    if bias is not None and bias.shape != shape[:1]:
        raise AdapterError(f"changes a bias of {bias.numel()} where {target.module} has {shape[0]} outputs")
    if "magnitude" in delta.factors and delta.factors["magnitude"].numel() != shape[delta.magnitude_axis]:
        raise AdapterError(
            f"has a DoRA magnitude of {delta.factors['magnitude'].numel()} values where {target.module} needs "
            f"{shape[delta.magnitude_axis]}"
        )
    return delta


def renamed(
    adapter: Adapter, networks: Mapping[str, nn.Module | Index], same: Mapping[str, str] | None = None, strict: bool = True
) -> Adapter:
    """The same adapter with the networks' own module names, so that it can be written with dots. A layer that several modules
    share becomes one for each, and layers that share a module, as q, k and v do, become one (`gen.adapters.join`). strict=False
    leaves out what has no module.

    networks: part -> network, {"denoiser": ...}. AdapterError if a layer has no module, or some cannot become one.
    """
    if adapter.words and not adapter.layers:
        return replace(adapter, format="", keys={})
    indices = {part: network if isinstance(network, Index) else Index(network) for part, network in networks.items()}
    _, report = resolve(adapter, indices, strict, same)
    full_layers: dict[tuple[str, str], list[tuple[Target, Delta]]] = {}
    for layer in report.matched:
        part, _, path = layer.partition(".")
        part = (same or {}).get(part, part)
        for target in indices[part].find(path, adapter.format == "kohya"):
            delta = adapter.layers[layer]
            piece = delta if target.cut is None else delta.select(*target.cut)
            full_layers.setdefault((part, target.module), []).append((target, piece))
    layers: dict[str, Delta] = {}
    for (part, module), pieces in full_layers.items():
        index = indices[part]
        try:
            delta = joined([(t.rows, delta) for t, delta in pieces], len(index.modules[module].weight))
        except AdapterError as error:
            raise AdapterError(f"{adapter.name}: what it changes of {module} {error}") from None
        layers[f"{part}.{in_files(index.network, module)}"] = delta
    return replace(adapter, layers=layers, format="", keys={})
