"""What the subcommands of `fewstep lora` do: files in, algebra, one file out. Nothing is written where anything is wrong."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from customization.algebra.extract import extract as extract_layers
from customization.algebra.factors import rounded
from customization.algebra.interpolate import interpolate_weights
from customization.algebra.metadata import network_texts
from customization.algebra.plot import plot_spectra
from customization.algebra.sparse import Sparse, sparse_merge
from customization.algebra.spectrum import SHARES, spectra
from customization.algebra.sum import LayerReport, Track, weighted_sum
from customization.algebra.svd import Keep
from gen.adapters import FORMATS, Adapter, Delta, read_adapter, renamed, write_adapter
from gen.adapters.model import other_names
from gen.cli.lora import parse_lora
from gen.cli.output import check_writable, say
from gen.cli.show import table
from gen.io.errors import printable
from gen.models.options import DTYPES
from gen.models.pretrained import find_model
from gen.models.skeleton import skeleton
from samplers.atomic import written
from samplers.lookup import nearest


def merge(given: argparse.Namespace) -> int:
    _check_output(given)
    keep = _keep(given, needed=False)
    sparse = None if given.method == "sum" else Sparse(given.method, *_sparse(given))
    if sparse is None and (given.density is not None or given.seed is not None):
        raise ValueError("--density and --seed belong to --method ties, dare and dare_ties; a sum is exact.")
    if sparse is not None and given.block:
        raise ValueError("--block belongs to --method sum; scale the files first, then merge them.")
    blocks = _blocks(given.block)
    specs = [parse_lora(text) for text in given.files]
    adapters, first = _read([path for path, _ in specs], given.model)
    weights = [1.0 if weight is None else weight for _, weight in specs]
    name, track, dtype = given.output.stem, _track(given, "merging"), _dtype(given)
    if sparse is not None:
        made, reports = sparse_merge(
            adapters, weights, sparse, keep=keep, name=name, disjoint=given.disjoint, dtype=dtype, track=track
        )
    else:
        made, reports = weighted_sum(
            adapters, weights, keep=keep, blocks=blocks, name=name, disjoint=given.disjoint, dtype=dtype, track=track
        )
    return _write(given, made, reports, first)


def resize(given: argparse.Namespace) -> int:
    _check_output(given)
    keep = _keep(given)
    adapters, first = _read([Path(given.file)], given.model)
    options: dict[str, Any] = {"name": given.output.stem, "dtype": _dtype(given), "track": _track(given, "resizing")}
    return _write(given, *weighted_sum(adapters, keep=keep, **options), first)


def extract(given: argparse.Namespace) -> int:
    _check_output(given)
    keep: Any = _keep(given)
    base = find_model(given.base)[1]
    tuned = Path(given.tuned) if Path(given.tuned).is_file() else find_model(given.tuned)[1]
    made = extract_layers(
        tuned, base, keep, others=given.others, name=given.output.stem, dtype=_dtype(given), track=_track(given, "extracting")
    )
    if made.unchanged:
        say(f"{made.unchanged} layers are the same in both.", given.quiet)
    if made.left:
        worst = max(made.left, key=lambda layer: made.left[layer])
        say(
            f"Note: {len(made.left)} biases, norms or embeddings changed too and are not in it (most, by "
            f"{made.left[worst]:.2%}, {worst}); --others keeps them.",
            given.quiet,
        )
    return _write(given, made.adapter, made.reports, "diffusers", {"unchanged": made.unchanged, "left": made.left})


def spectrum(given: argparse.Namespace) -> int:
    if given.plot is not None:
        _check_new(given.plot)
        if given.plot.suffix.lower() != ".png":
            raise ValueError(f"{given.plot}: the plot is a PNG; give a name that ends in .png.")
    adapter = read_adapter(given.file, strict=False)
    layer_spectra = spectra(adapter, _track(given, "decomposing"))
    if given.json:
        print(json.dumps({"name": adapter.name, "layers": [one.values() for one in layer_spectra]}, indent=2))
    else:
        rows = [
            (one.layer, one.kind, "" if one.rank is None else str(one.rank), f"{one.norm:.4g}", f"{one.spectral:.4g}",
             f"{one.stable_rank:.1f}", *map(str, one.needed if one.s else ("", "")))
            for one in layer_spectra
        ]  # fmt: skip
        header = ("layer", "kind", "rank", "norm", "largest", "stable rank", *(f"rank for {share:.0%}" for share in SHARES))
        print(printable(table(header, rows)))
    if given.plot is not None:
        image = plot_spectra(layer_spectra, printable(adapter.name))
        with written(given.plot) as temporary:
            image.save(temporary, "PNG")
        say(str(given.plot), given.quiet)
    return 0


def interpolate(given: argparse.Namespace) -> int:
    check_writable(given.output.parent)
    print(interpolate_weights(given.first, given.second, given.output, given.share, _track(given, "interpolating")))
    return 0


def _check_new(path: Path) -> None:
    if os.path.lexists(path):
        raise ValueError(f"{path} exists, and nothing is overwritten; give another name.")
    check_writable(path.parent)


def _check_output(given: argparse.Namespace) -> None:
    _check_new(given.output)
    if given.to is not None and given.to not in FORMATS:
        near = nearest(given.to, FORMATS)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"Unknown adapter format {given.to!r}; known: {', '.join(FORMATS)}.{hint}")
    if given.to not in (None, "peft") and given.output.suffix != ".safetensors":
        raise ValueError(f"{given.output}: adapters are written as safetensors; give a name that ends in .safetensors.")
    _dtype(given)


def _dtype(given: argparse.Namespace) -> torch.dtype | None:
    if given.dtype is not None and given.dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {given.dtype!r}; give {', '.join(DTYPES)}, or leave it out.")
    return DTYPES[given.dtype] if given.dtype else None


def _keep(given: argparse.Namespace, needed: bool = True) -> Keep | None:
    rules = {"rank": given.rank, "sv_ratio": given.sv_ratio, "sv_fro": given.sv_fro, "sv_cumulative": given.sv_cumulative}
    return Keep(**rules) if needed or any(value is not None for value in rules.values()) else None


def _sparse(given: argparse.Namespace) -> tuple[float, int]:
    return 0.5 if given.density is None else given.density, 0 if given.seed is None else given.seed


def _blocks(texts: Sequence[str]) -> dict[str, float]:
    blocks = {}
    for text in texts:
        name, equals, value = text.rpartition("=")
        try:
            blocks[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise ValueError(f"--block {text!r} is not NAME=WEIGHT, such as mid_block=0.5.")
    return blocks


def _track(given: argparse.Namespace, what: str) -> Track:
    """A progress bar on a terminal."""

    def track(items: Sequence[Any]) -> Iterable[Any]:
        return tqdm(items, desc=what, unit=" layers", leave=False, disable=True if given.quiet else None)

    return track


def _read(paths: Sequence[Path], model: str | None) -> tuple[list[Adapter], str]:
    """The adapters, with the names of a model's layers if one is given, and the format of the first."""
    adapters = [read_adapter(path) for path in paths]
    first = adapters[0].format
    if model is not None:
        parts: Mapping[str, nn.Module] = skeleton(find_model(model)[1])
        adapters = [renamed(adapter, parts, other_names(parts)) for adapter in adapters]
    return adapters, first


def written_as(adapter: Adapter, format: str, dtype: torch.dtype | None) -> Adapter:
    """With scales multiplied in where a format has no place for them, and factors in a dtype."""
    layers: dict[str, Delta] = {}
    for layer, delta in adapter.layers.items():
        if delta.scale != 1 and (format == "ai-toolkit" or (format == "kohya" and delta.kind == "lokr" and delta.rank is None)):
            delta = delta.folded()
        if dtype is not None:
            delta = replace(delta, factors={n: f if n == "alpha" else rounded(f, dtype) for n, f in delta.factors.items()})
        layers[layer] = delta
    words = adapter.words
    if dtype is not None:
        words = {word: {part: rounded(v, dtype) for part, v in parts.items()} for word, parts in words.items()}
    metadata = {**adapter.metadata, **network_texts(adapter.metadata, layers)}
    return replace(adapter, layers=layers, metadata=metadata, words=words)


def _write(
    given: argparse.Namespace, made: Adapter, reports: Sequence[LayerReport], first: str, more: Mapping[str, Any] | None = None
) -> int:
    to = given.to or first or "diffusers"
    if made.format == "kohya" and to != "kohya":
        if given.to is not None:
            raise ValueError(
                f"The layers are named with underscores, as kohya does; give the model that they are for with --model, whose "
                f"names {to} needs."
            )
        to = "kohya"
    if to != "peft" and given.output.suffix != ".safetensors":
        raise ValueError(f"{given.output}: adapters are written as safetensors; give a name that ends in .safetensors.")
    ready = written_as(made, to, _dtype(given))
    given.output.parent.mkdir(parents=True, exist_ok=True)
    write_adapter(ready, given.output, to)
    for note in ready.notes:
        say(f"Note: {printable(note)}.", given.quiet)
    summary = _summary(ready, reports)
    if given.json:
        layers = [asdict(report) for report in reports]
        print(json.dumps({"file": str(given.output), "format": to, **summary, **(more or {}), "layers": layers}, indent=2))
        return 0
    ranks = "/".join(map(str, summary["ranks"]))
    kinds = ", ".join(f"{count} {kind}" for kind, count in ready.types.items())
    error = f", relative error {summary['error']:.3g} ({summary['worst_error']:.3g} in {summary['worst']})"
    learned = f", and the learned word{'s' * (len(ready.words) > 1)} {', '.join(ready.words)}" if ready.words else ""
    text = f"{len(ready.layers)} layers ({kinds}), rank {ranks or 'none'}{error if summary['error'] else ', exact'}{learned}."
    say(printable(text), given.quiet)
    print(given.output)
    return 0


def _summary(adapter: Adapter, reports: Sequence[LayerReport]) -> dict[str, Any]:
    """Ranks, and the error over all layers together and in the layer where it is largest, relative to the change's norm."""
    whole = sum(report.norm**2 for report in reports)
    lost = sum((report.error * report.norm) ** 2 for report in reports)
    worst = max(reports, key=lambda report: report.error)
    return {
        "ranks": list(adapter.ranks),
        "words": list(adapter.words),
        "error": (lost / whole) ** 0.5 if whole else 0.0,
        "worst": worst.layer,
        "worst_error": worst.error,
    }
