"""`fewstep convert`: published checkpoint formats into each other, and pickles into safetensors."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from gen.cli.output import say
from gen.io.errors import printable

OWN = "fewstep"


def run(
    source: Path,
    target: Path,
    *,
    to: str | None,
    from_pickle: bool,
    key: str | None,
    heads: int | None,
    size: int | None,
    dtype: str | None,
    quiet: bool,
) -> int:
    if target.exists() or target.is_symlink():
        raise ValueError(f"{target} exists, and nothing is overwritten; give another name.")
    if from_pickle:
        if to or heads or size or dtype:
            raise ValueError(
                "--from-pickle writes tensors as they are; leave out --to, --heads, --size and --dtype, and convert again."
            )
        from gen.models.formats.pickles import convert_pickle

        keys = convert_pickle(source, target, key)
        if keys:
            say(f"Took the entry {printable('/'.join(keys))}.", quiet)
    elif to is None:
        raise ValueError("Say what to write with --to FORMAT, or give --from-pickle for a .pt or .pth file.")
    elif key:
        raise ValueError("--key names an entry of a pickle; give it with --from-pickle.")
    else:
        _convert(source, target, to, heads, size, dtype)
    print(target)
    return 0


def _convert(source: Path, target: Path, to: str, heads: int | None, size: int | None, dtype: str | None) -> None:
    from gen.io.folders import written_folder
    from gen.models.components import save_component
    from gen.models.formats.registry import FORMATS
    from gen.models.formats.table import nearest
    from gen.models.formats.write import write_checkpoint
    from gen.models.options import DTYPES

    if to != OWN and to not in FORMATS:
        raise ValueError(f"Unknown format {to!r}{nearest(to, [*FORMATS, OWN])}; known: {', '.join([*FORMATS, OWN])}.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"Unknown dtype {dtype!r}; give {', '.join(DTYPES)}, or leave it out to keep the file's.")
    network = _read(source, heads, size)
    if to == OWN:
        with written_folder(target) as folder:
            save_component(network, folder, DTYPES[dtype] if dtype else None)
    else:
        write_checkpoint(network, target, to, dtype=DTYPES[dtype] if dtype else None)


def _read(source: Path, heads: int | None, size: int | None) -> nn.Module:
    """A network from a published checkpoint, or from a folder of our own."""
    from gen.io.weights import read_json
    from gen.models.components import load_component
    from gen.models.formats.read import read_checkpoint

    config = source / "config.json"
    if source.is_dir() and config.is_file() and "type" in read_json(config):
        return load_component(source, "uvit", "dit")
    return read_checkpoint(source, dtype=None, heads=heads, size=size)
