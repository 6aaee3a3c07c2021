"""`fewstep gallery`: the pictures of a folder as one HTML page, with their recipes, and as a contact sheet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gen.cli.options import Quiet
from gen.cli.output import check_png, check_writable, save_free, say
from gen.cli.spoken import SpokenCommand

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".gif")
MOST = 5000  # pictures of a page
SIDE = 256  # pixels of the longer side of a small copy


def add(app: typer.Typer) -> None:
    """Make it part of the program."""
    app.command(cls=SpokenCommand)(gallery)


def gallery(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Of pictures.")] = Path(),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The page. [default: gallery.html in the folder]")
    ] = None,
    sheet: Annotated[Path | None, typer.Option(metavar="FILE", help="Also save a contact sheet.")] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Folders within the folder too.")] = False,
    quiet: Quiet = False,
) -> int:
    """Make an HTML page of a folder's pictures and their recipes, to look through and search."""
    from gen.cli.gallery_page import MARK, page

    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give one of pictures.")
    target = folder / "gallery.html" if output is None else output
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{target}: a gallery is a page; give a name that ends in .html.")
    if os.path.lexists(target) and not _ours(target, MARK):
        raise ValueError(f"{target} exists and is no gallery of fewstep's, so it stays; choose another name with -o.")
    check_writable(target.parent)
    if sheet is not None:
        check_png(sheet)
    files = pictures_in(folder, recursive)
    if not files:
        raise ValueError(f"{folder} holds no pictures ({', '.join(ENDINGS)}); give another folder, or --recursive.")
    entries: list[tuple[Path, Image, dict[str, str]]] = []
    for file in files:
        try:
            entries.append((file, *_opened(file)))
        except ValueError as error:
            say(f"Note: left out: {error}", quiet)
    if not entries:
        raise ValueError(f"None of the {len(files)} pictures in {folder} can be opened.")
    _write(target, page(folder.resolve().name, target.parent, entries))
    print(target, flush=True)
    if sheet is not None:
        from gen.io.contact_sheet import contact_sheet

        captions = [rows.get("prompt", rows.get("Prompt", file.name)) for file, _, rows in entries]
        print(save_free(contact_sheet([small for _, small, _ in entries], captions), sheet), flush=True)
    say(f"{len(entries)} picture{'s' * (len(entries) > 1)}.", quiet)
    return 0


def pictures_in(folder: Path, recursive: bool) -> list[Path]:
    """Newest first. Hidden files and folders, and links, are passed over; ValueError for more than MOST."""
    found: list[tuple[int, str, Path]] = []
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        for name in names:
            path = Path(where, name)
            if path.suffix.lower() in ENDINGS and not name.startswith(".") and path.is_file() and not path.is_symlink():
                found.append((path.stat().st_mtime_ns, str(path), path))
        if len(found) > MOST:
            raise ValueError(f"{folder} holds more than {MOST} pictures, too many for a page; give a folder in it.")
    return [path for _, _, path in sorted(found, reverse=True)]


def _opened(file: Path) -> tuple[Image, dict[str, str]]:
    """(a small copy, the recipe's rows). ValueError for a file that is no picture."""
    from PIL.Image import Resampling

    from gen.cli.show import recipe_rows
    from gen.io.errors import RecipeError
    from gen.io.images import PictureError, flat, open_picture
    from gen.pipeline.png import READ

    try:
        with open_picture(file, READ) as picture:
            small = flat(picture)
    except (OSError, SyntaxError, PictureError) as error:
        raise ValueError(f"{file} is damaged or cannot be shown ({error}).") from None
    small.thumbnail((SIDE, SIDE), Resampling.LANCZOS)
    try:
        return small, recipe_rows(file)
    except RecipeError as error:
        return small, {"recipe": str(error)}


def _ours(target: Path, mark: str) -> bool:
    try:
        with target.open("rb") as file:
            return target.is_file() and not target.is_symlink() and file.read(200).decode("utf-8", "replace").find(mark) >= 0
    except OSError:
        return False


def _write(target: Path, text: str) -> None:
    from samplers.atomic import written

    target.parent.mkdir(parents=True, exist_ok=True)
    with written(target) as temporary:
        temporary.write_text(text, "utf-8")
