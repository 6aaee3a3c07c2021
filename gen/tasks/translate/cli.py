"""Translation on the command line: `fewstep translate`, and the options of `fewstep image` and `fewstep replay`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gen.cli.groups import grouped
from gen.cli.options import PartOptions, PlaceOptions, SizeOptions
from gen.cli.output import OutputTarget, check_png, make_and_save, save_free, say

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff")  # of a folder that is translated

Picture = Annotated[Path | None, typer.Option(metavar="FILE", help="A picture to translate in one step (docs/translate.md).")]
Folder = Annotated[str | None, typer.Option(metavar="FOLDER", help='The translator; "default" if left out.')]


@dataclass(frozen=True)
class ImageOptions:
    """Of `fewstep image`."""

    translate: Picture = None
    translator: Folder = None
    translate_direction: Annotated[str | None, typer.Option(help="What it makes: a name that the translator has.")] = None
    translate_strength: Annotated[float | None, typer.Option(help="How much of the picture is kept, 0 to 1. [default: 1]")] = (
        None
    )


@dataclass(frozen=True)
class ReplayOptions:
    """Of `fewstep replay`."""

    translate: Picture = None
    translator: Folder = None


@grouped
def translate(
    *,
    pictures: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    prompt: Annotated[str | None, typer.Option(help="What they show, in quotes.")] = None,
    direction: Annotated[str | None, typer.Option(help="What is made of them: a name that the translator has.")] = None,
    strength: Annotated[float, typer.Option(help="How much of the picture is kept, 0 to 1; the rest is from noise.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Of the noise, which a strength of 1 has none of.")] = 0,
    number: Annotated[int, typer.Option("--number", "-n", help="Pictures for each, with seeds one after another.")] = 1,
    model: Annotated[str, typer.Option(metavar="FOLDER", help='The translator: "default", or a folder that you trained.')] = (
        "default"
    ),
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model that it changes, where that is no packaged one.")
    ] = None,
    size: SizeOptions,
    parts: PartOptions,
    grid: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a sheet of before and after.")] = None,
    place: PlaceOptions,
) -> int:
    """Make pictures of pictures in one step, such as icons of outline drawings; see docs/translate.md."""
    files = pictures_in(pictures)
    target = place.target()
    if len(files) > 1 and target.name is not None:
        raise ValueError(f"{len(files)} pictures are translated; give a folder with -o, not the name of one file.")
    sheet = None if grid is None else check_png(grid)

    from gen.generator import Generator
    from gen.io.validators import check_float
    from gen.models.translation.files import find_direction, find_translator, read_translator_config

    check_float("--strength", strength, 0, 1)
    folder = find_translator(model)
    config = read_translator_config(folder)
    named = find_direction(config, direction)
    generator = Generator.from_pretrained(base or base_of(config.model, model), place.device, place.dtype, **parts.arguments())
    call = {"translator": folder, "direction": named.name, "strength": strength, "seed": seed, **size.keywords()}
    call["num_images_per_prompt"] = number
    shown: list[tuple[Any, str]] = []
    for file in files:
        label = f"{file.stem}-{named.name}"
        own = OutputTarget(target.folder, target.name, target.suffix, target.quality)
        result, took = make_and_save(generator.translate, own, label, place.quiet, file, prompt, **call)
        say(f"{named.name} of {file.name}, {took}", place.quiet)
        if sheet is not None:
            shown += sheet_rows(file, result, named.name)
    if sheet is not None:
        from gen.io.contact_sheet import contact_sheet

        images, captions = [image for image, _ in shown], [caption for _, caption in shown]
        print(save_free(contact_sheet(images, captions, 1 + number if number > 1 else 8), sheet), flush=True)
    return 0


def pictures_in(given: Sequence[Path]) -> list[Path]:
    """The files that are given and, of folders, the pictures in them in the order of their names. ValueError for what is not
    there, and for a folder without pictures."""
    files: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(one for one in path.iterdir() if one.suffix.lower() in PICTURES and one.is_file())
            if not inside:
                raise ValueError(f"{path} has no picture in it ({', '.join(PICTURES)}); give another folder.")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"{path} does not exist; give a picture or a folder of pictures.")
    return files


def base_of(name: str, translator: str) -> str:
    """The model that a translator changes, where it may be opened by the name in its folder: a packaged one."""
    from gen.models.pretrained import PACKAGED

    if name not in PACKAGED:
        raise ValueError(
            f"The translator {translator} changes the model {name!r:.200}; give that model's folder or id with --base."
        )
    return name


def sheet_rows(file: Path, result: Any, direction: str) -> list[tuple[Any, str]]:
    """What went in, and what came out, with captions."""
    from gen.io.images import FORMATS, flat, open_picture

    first = result.images[0]
    with open_picture(file, FORMATS) as opened:
        before = flat(opened).resize(first.size)
    made = [(image, f"{direction}, seed {seed}") for image, seed in zip(result.images, result.seeds, strict=True)]
    return [(before, file.stem), *made]


IMAGE, REPLAY, COMMANDS = ImageOptions, ReplayOptions, (translate,)
