"""Transparent pictures on the command line: `--transparent`, and `fewstep layers`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.groups import grouped
from gen.cli.lora import OpenOptions
from gen.cli.options import Device, Dtype, PlaceOptions, Quiet, RuleOptions, Steps
from gen.cli.output import check_writable, say

ONE_FILE = (".ora", ".psd")  # formats that hold all layers
Network = Annotated[
    Path | None, typer.Option("--transparency", metavar="FOLDER", help="The network that finds it. [default: the shipped one]")
]


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`."""

    transparent: Annotated[
        bool | None, typer.Option("--transparent", help="The thing alone, with alpha: a PNG, WebP or AVIF.")
    ] = None
    transparency: Network = None

    def keywords(self) -> dict[str, Any]:
        """Of a call."""
        return asdict(self)


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    transparency: Network = None

    def keywords(self) -> dict[str, Any]:
        """Of a replay."""
        return asdict(self)


@grouped
def layers(
    *,
    picture: Annotated[Path, typer.Argument(help="The picture (PNG, JPEG, WebP, ...); or a file of layers (.ora).")],
    mask: Annotated[Path | None, typer.Option(metavar="FILE", help="The thing: white where it is. [default: found]")] = None,
    prompt: Annotated[str | None, typer.Option(help="Of several things those that this names, in quotes.")] = None,
    fill: Annotated[
        str, typer.Option(metavar="smooth|model", help="How what was hidden is made: colours that run on, or by the model.")
    ] = "smooth",
    background: Annotated[
        str | None, typer.Option(help="What the model is to paint there, in quotes; for --fill model.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the model. [default: random]")] = None,
    steps: Steps = None,
    rules: RuleOptions,
    transparency: Network = None,
    flatten: Annotated[bool, typer.Option("--flatten", help="Of a file of layers: what all look like together.")] = False,
    model: OpenOptions,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "--out", "-o", metavar="FILE|DIR", help="An .ora, a .psd, or a folder. [default: PICTURE.ora]"
        ),
    ] = None,
    device: Device = None,
    dtype: Dtype = None,
    quiet: Quiet = False,
) -> int:
    """Take a picture apart into a thing with alpha and what is behind it; or read such layers again."""
    if picture.suffix.lower() == ".ora":
        options = {"--mask": mask, "--prompt": prompt, "--background": background, "--seed": seed, "--steps": steps}
        if other := next((name for name, value in options.items() if value is not None), None):
            raise ValueError(f"{picture} is a file of layers, which is read as it is; leave {other} out.")
        return _read(picture, flatten, output, quiet)
    if flatten:
        raise ValueError("--flatten is for a file of layers (.ora).")
    target = picture.with_suffix(".ora") if output is None else output
    check_place(target)

    from gen.tasks.transparent.decompose import decompose

    generator = model.opened(PlaceOptions(device=device, dtype=dtype, quiet=quiet))
    own = {"seed": seed, "num_inference_steps": steps, **rules.keywords()}
    call = {name: value for name, value in own.items() if value is not None and value != {}}
    found = decompose(generator, picture, mask, prompt, background, fill, transparency, progress=not quiet, **call)
    stack = found.stack(prompt or picture.stem)
    for path in write_layers(target, stack):
        print(path, flush=True)
    share = float((found.layer[:, 3] > 0).double().mean())
    say(f"The thing covers {share:.0%} of the picture; together the layers differ from it by {_levels(found, stack)}.", quiet)
    return 0


def _levels(found: Any, stack: Any) -> str:
    """How far the layers of a file are from the picture, in words."""
    from gen.io.openraster import to_tensor

    error = (to_tensor(stack.flatten())[:, :3] - found.picture).abs()
    return f"{255 * float(error.mean()):.3f} of 255 levels, at most {255 * float(error.max()):.1f}"


def check_place(target: Path) -> None:
    """ValueError for a name that layers are not written under, and for a place that cannot be written to."""
    one = target.suffix.lower() in ONE_FILE
    if target.suffix and not one and not target.is_dir():
        raise ValueError(f"{target}: layers are written as .ora or .psd, or as PNGs into a folder; give such a name.")
    check_writable(target.parent if one else target)


def write_layers(target: Path, stack: Any) -> list[Path]:
    """Write layers as one file where `target` ends in .ora or .psd, else as PNGs in a folder; nothing is overwritten. The
    paths."""
    from gen.cli.output import save_free, slug
    from gen.io.openraster import write_openraster
    from gen.io.photoshop import write_psd
    from gen.pipeline.png import free_name

    if target.suffix.lower() in ONE_FILE:
        target.parent.mkdir(parents=True, exist_ok=True)
        write = write_psd if target.suffix.lower() == ".psd" else write_openraster
        return [write(free_name(target), stack)]
    check_place(target)
    names = [f"{number}-{slug(layer.name)}.png" for number, layer in enumerate(stack.layers)]
    return [save_free(layer.picture, target / name) for name, layer in zip(names, stack.layers, strict=True)]


def _read(file: Path, flatten: bool, output: Path | None, quiet: bool) -> int:
    """A file of layers: listed, as one picture, or as PNGs in a folder."""
    from gen.cli.output import save_free
    from gen.io.openraster import read_openraster

    stack = read_openraster(file)
    if flatten:
        whole = stack.flatten()
        if not any(whole.getchannel("A").histogram()[:255]):
            whole = whole.convert("RGB")  # which a JPEG may hold
        print(save_free(whole, file.with_suffix(".png") if output is None else output), flush=True)
    elif output is not None:
        for path in write_layers(output, stack):
            print(path, flush=True)
    for layer in reversed(stack.layers):
        size = f"{layer.picture.width} x {layer.picture.height} at {layer.x}, {layer.y}"
        hidden = "" if layer.visible else ", hidden"
        say(f"{layer.name or 'without a name'}: {size}, opacity {layer.opacity:g}{hidden}", quiet)
    return 0


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, (layers,)
