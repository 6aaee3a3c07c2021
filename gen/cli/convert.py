"""`fewstep convert`: published checkpoint formats into each other, and pickles into safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gen.cli.options import Quiet, Written
from gen.cli.output import say
from gen.cli.parser import chosen_output
from gen.cli.spoken import SpokenCommand
from gen.io.errors import printable

if TYPE_CHECKING:
    from torch import nn

OWN = "fewstep"


def add(app: typer.Typer) -> None:
    """Make it part of the program."""
    app.command(cls=SpokenCommand)(convert)


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A safetensors file, an index of several, or a folder.")],
    target: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="What to write; nothing is overwritten. Or -o OUT.", show_default=False)
    ] = None,
    output: Written = None,
    to: Annotated[
        str | None, typer.Option(metavar="FORMAT", help="uvit, dit, pixart, diffusers-dit, diffusers-pixart, fewstep.")
    ] = None,
    from_pickle: Annotated[
        bool, typer.Option("--from-pickle", help="IN is a .pt or .pth file; write its tensors as safetensors.")
    ] = False,
    key: Annotated[str | None, typer.Option(help="The entry of the pickle that holds the weights.")] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads, where neither width nor config tells them.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width in latent pixels, where the file does not tell.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16. [default: the file's]")] = None,
    quiet: Quiet = False,
) -> int:
    """Convert checkpoints: between published formats, and from pickle to safetensors."""
    target = chosen_output(target, output)
    return run(source, target, to=to, from_pickle=from_pickle, key=key, heads=heads, size=size, dtype=dtype, quiet=quiet)


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
    from gen.models.folder import PARTS
    from gen.models.formats.read import read_checkpoint

    config = source / "config.json"
    if source.is_dir() and config.is_file() and "type" in read_json(config):
        return load_component(source, *PARTS["denoiser"])
    return read_checkpoint(source, dtype=None, heads=heads, size=size)
