"""Make the emoji archives from the packages: `python -m distill.data.emoji.build [--out FOLDER] [--packages FOLDER]`.

Writes emoji-train.zip, emoji-evaluator.zip, emoji-test.zip and emoji-lora.zip: RGBA pictures rendered from SVG, with names
and licences. The same packages give the same bytes.
"""

from __future__ import annotations

import io
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from distill.data.emoji.archive import DrawingRecord, write_archive
from distill.data.emoji.concepts import Concept, Matcher, read_concepts
from distill.data.emoji.packs import FAMILIES, KEYWORDS, NAMES, PACKS, Pack, fetch, locate, read_members
from distill.data.errors import DataError
from gen.cli.parser import Parser
from gen.io.extras import install
from gen.io.weights import sha256

MARGIN = 0.05  # of the longer side, added on each side: some packs draw to the very edge
MIN_ALPHA = 8.0  # mean alpha (0..255) below which a picture counts as empty
MAX_BODY = 1 << 20  # characters

# Anything that could make the renderer open a file, run a script or expand entities. Icons need none of it.
_UNSAFE = re.compile(
    r"<!|<\?|<\s*(image|feimage|text|script|style|foreignobject)\b|href\s*=\s*[\"'](?!#)|url\(\s*[\"']?(?!#)", re.IGNORECASE
)


@dataclass(frozen=True)
class Job:
    """One picture to render."""

    record: DrawingRecord
    svg: str


def svg_document(icon: dict[str, Any], default_width: float, default_height: float) -> str | None:
    """A square SVG document around an icon's body, or None where the icon is not a plain drawing."""
    body = icon.get("body")
    box = [icon.get("left", 0), icon.get("top", 0), icon.get("width", default_width), icon.get("height", default_height)]
    if not isinstance(body, str) or len(body) > MAX_BODY or _UNSAFE.search(body):
        return None
    if not all(isinstance(v, int | float) and math.isfinite(v) for v in box) or min(box[2:]) <= 0:
        return None
    left, top, width, height = box
    side = max(width, height) * (1 + 2 * MARGIN)
    view = f"{left + (width - side) / 2:g} {top + (height - side) / 2:g} {side:g} {side:g}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="{view}">{body}</svg>'


def render(svg: str, size: int) -> bytes | str:
    """The SVG as lossless WebP bytes of a size x size RGBA picture, or the reason why there is none."""
    import resvg_py

    try:
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
        picture = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGBA")
    except Exception:  # the renderer raises several unrelated types for a bad drawing
        return "not renderable"
    if picture.size != (size, size):
        return "not renderable"
    histogram = picture.getchannel("A").histogram()
    if sum(value * count for value, count in enumerate(histogram)) < MIN_ALPHA * size * size:
        return "empty"
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=True, quality=80, method=4)
    return file.getvalue()


def _render_job(job: tuple[str, int]) -> bytes | str:
    return render(*job)


def read_pack(pack: Pack, folder: Path) -> dict[str, Any]:
    """icons.json (icons, width, height) and chars.json ({} where the pack has none) of a pack."""
    members = read_members(locate(pack, folder), ["icons.json"], ["chars.json"])
    icons = members["icons.json"]
    if not isinstance(icons, dict) or not isinstance(icons.get("icons"), dict):
        raise DataError(f"{pack.file}: icons.json holds no icons.")
    return {**icons, "chars": members.get("chars.json") or {}}


def plan(
    packs: Sequence[Pack], contents: dict[str, dict[str, Any]], concepts: dict[str, Concept]
) -> tuple[list[Job], dict[str, Counter]]:
    """The pictures to render, and per pack why icons were dropped."""
    matcher = Matcher(concepts, [content["chars"] for content in contents.values()])
    jobs, dropped = [], {}
    for pack in packs:
        content = contents[pack.slug]
        reasons: Counter[str] = Counter()
        visible = [name for name, icon in content["icons"].items() if not icon.get("hidden")]
        reasons["hidden alias"] = len(content["icons"]) - len(visible)
        if pack.numbered:
            matched = matcher.match_numbered(visible)
        else:
            matched = [(name, code, 1) for name, code in matcher.match(visible, content["chars"]).items()]
        reasons["skin tone, alternative or unknown"] = len(visible) - len(matched)
        for name, code, number in matched:
            concept = concepts.get(code)
            if concept is None or concept.excluded:
                reason = concept.excluded if concept else None
                reasons[reason or "skin tone, alternative or unknown"] += 1
                continue
            svg = svg_document(content["icons"][name], content.get("width", 16), content.get("height", 16))
            if svg is None:
                reasons["unsafe or malformed drawing"] += 1
                continue
            record = DrawingRecord(
                file_name=f"images/{pack.slug}{f'-{number}' if number > 1 else ''}/{code}.webp",
                pack=pack.slug,
                family=pack.family,
                style=pack.style,
                licence=pack.licence,
                **{key: getattr(concept, key) for key in Concept.__dataclass_fields__},
            )
            jobs.append(Job(record, svg))
        dropped[pack.slug] = reasons
    return jobs, dropped


def build(folder: Path, out: Path, families: Sequence[str] = FAMILIES, size: int = 128, packs: Sequence[Pack] = PACKS) -> None:
    """Render the packs of `families` from the packages in `folder` into archives in `out`; prints what was kept and why not.

    The concepts are those that a pack of the train family draws, whichever families are built.
    """
    concepts = read_concepts(folder)
    contents = {pack.slug: read_pack(pack, folder) for pack in packs}
    jobs, dropped = plan(packs, contents, concepts)
    labels = sorted({job.record.label for job in jobs if job.record.family == "train"})
    known = set(labels)
    for job in jobs:
        if job.record.label not in known:
            dropped[job.record.pack]["not drawn by any train pack"] += 1
    jobs = [job for job in jobs if job.record.label in known and job.record.family in families]

    with ProcessPoolExecutor(os.cpu_count()) as pool:
        rendering = pool.map(_render_job, [(job.svg, size) for job in jobs], chunksize=32)
        results = list(tqdm(rendering, total=len(jobs), desc="Rendering", unit="picture"))
    pictures: dict[str, bytes] = {}
    for job, result in zip(jobs, results, strict=True):
        if isinstance(result, str):
            dropped[job.record.pack][result] += 1
        else:
            pictures[job.record.file_name] = result

    out.mkdir(parents=True, exist_ok=True)
    for family in families:
        records = [job.record for job in jobs if job.record.family == family and job.record.file_name in pictures]
        path = out / f"emoji-{family}.zip"
        write_archive(path, records, pictures, labels)
        count = len({record.label for record in records})
        megabytes = path.stat().st_size / 1e6
        print(f"{path}: {len(records)} pictures of {count} concepts, {megabytes:.1f} MB, sha256 {sha256(path)}")
    for pack in packs:
        if pack.family in families:
            kept = sum(job.record.pack == pack.slug and job.record.file_name in pictures for job in jobs)
            reasons = ", ".join(f"{count} {reason}" for reason, count in dropped[pack.slug].most_common() if count)
            print(f"  {pack.slug:18} {pack.licence:13} kept {kept:5}; dropped: {reasons or 'none'}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = Parser(prog="python -m distill.data.emoji.build", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/emoji"), help="folder for the archives (default data/emoji)")
    parser.add_argument("--packages", type=Path, help="folder with the .tgz files; without it they are fetched with npm")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels (default 128)")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="which archives to make")
    options = parser.parse_args(arguments)
    if not 8 <= options.size <= 1024:
        parser.error(f"--size is {options.size}; it must lie between 8 and 1024")
    try:
        if options.packages is not None:
            build(options.packages, options.out, options.families, options.size)
        else:
            with tempfile.TemporaryDirectory() as folder:
                fetch([*PACKS, NAMES, KEYWORDS], Path(folder))
                build(Path(folder), options.out, options.families, options.size)
    except (DataError, ImportError) as error:
        hint = f" Install it: {install('data')}." if isinstance(error, ImportError) else ""
        print(f"fewstep: {error}{hint}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
