"""`fewstep transport MODEL --from lines --to picture DRAWING.png`: a picture of one kind becomes another, by what the method
`multimarginal` has trained.

From noise it draws anew, -n pictures with seeds from --seed on.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gen.cli.output import save_free
from gen.cli.parser import Parser
from gen.io.images import read_picture
from gen.io.validators import check_int
from gen.models.components import load_component
from gen.nn.multimarginal import Multimarginal
from samplers.noise import normal
from samplers.simplex import SimplexPath, transport


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(prog="fewstep transport", description="Pictures of one kind as another, by a network of several kinds.")
    add = parser.add_argument
    add("model", type=Path, help="the export of a run of `multimarginal`")
    add("pictures", nargs="*", type=Path, help="pictures of the kind --from; none where that is noise")
    add("--from", dest="start", required=True, help="a kind that the model knows")
    add("--to", dest="end", required=True, help="another")
    add("--steps", type=int, default=20, help="of the way (default: 20)")
    add("-n", "--number", type=int, help="how many from noise (default: 1)")
    add("--seed", type=int, help="of the first from noise (default: 0)")
    add("-o", "--output", type=Path, default=Path("."), help="a folder (default: this one)")
    given = parser.parse_args(arguments)
    try:
        for path in run(given):
            print(path)
    except (ValueError, OSError) as error:
        print(f"fewstep: {error}", file=sys.stderr)
        return 2
    return 0


@torch.inference_mode()
def run(given: Any) -> list[Path]:
    """The files that were written."""
    check_int("--steps", given.steps, 1, 1000)
    if given.number is not None:
        check_int("--number", given.number, 1, 10_000)
    network: Any = load_component(given.model, "multimarginal")
    assert isinstance(network, Multimarginal)
    config = network.config
    if given.start == given.end:
        raise ValueError(f"--from and --to are both {given.start!r}; give two that differ, of {', '.join(config.marginals)}.")
    path = SimplexPath(network.number(given.start), network.number(given.end), len(config.marginals))
    if (given.start == "noise") == bool(given.pictures):
        raise ValueError(
            "From noise pictures are drawn anew, of none that there is; leave the pictures out." if given.pictures else
            f"No picture of the kind {given.start!r} was given; name one or more files."
        )  # fmt: skip
    if given.pictures:
        if given.number is not None or given.seed is not None:
            raise ValueError("-n and --seed are for drawing from noise, and each picture becomes one; leave them out.")
        names = [f"{picture.stem}-{given.end}.png" for picture in given.pictures]
        first = torch.cat([as_read(picture, config.size) for picture in given.pictures])
    else:
        first_seed = given.seed or 0
        seeds = range(first_seed, first_seed + (given.number or 1))
        names = [f"{given.end}-{seed}.png" for seed in seeds]
        first = normal(seeds, (config.channels, config.size, config.size))
    given.output.mkdir(parents=True, exist_ok=True)
    written = []
    for name, x in zip(names, first.split(1), strict=True):
        end = transport(network, x, path, given.steps)[0]
        written.append(save_free(to_image(end), given.output / name))
    return written


def as_read(picture: Path, size: int) -> torch.Tensor:
    """(1, 3, size, size) in [-1, 1]: the square in the middle, as training sees pictures."""
    pixels = read_picture(str(picture), picture, "RGB")
    side = min(pixels.shape[2:])
    top, left = ((length - side) // 2 for length in pixels.shape[2:])
    pixels = pixels[..., top : top + side, left : left + side]
    return 2 * F.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1) - 1


def to_image(x: torch.Tensor) -> Any:
    from PIL import Image

    pixels = ((x.clamp(-1, 1) + 1) * 127.5).round().byte()
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


if __name__ == "__main__":
    sys.exit(main())
