"""Names of files from a template: "{index:06d}-{slug}-{seed}.png"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from gen.calls.names import slug
from gen.pipeline.exif import FORMATS
from samplers.lookup import nearest

FIELDS = ("index", "thousand", "line", "seed", "slug")
LONGEST = 200  # bytes of one part of a path
_FIELD = re.compile(r"\{(\w+)(?::(0?\d{1,2}d?))?\}")


@dataclass(frozen=True)
class NameTemplate:
    """Names with fields in braces: index (of the picture, from 0), thousand (index // 1000, for folders), line (of the source),
    seed, slug (of the prompt), and any column that is carried along.

    Raises ValueError for a name without {index}, which alone tells all pictures apart, that does not end as a format does which
    holds recipes, or that leads out of the folder.
    """

    text: str
    columns: tuple[str, ...] | None = None  # that there are; None: any

    def __post_init__(self) -> None:
        said = f"--name {self.text!r}"
        names = [match[1] for match in _FIELD.finditer(self.text)]
        if PurePosixPath(self.text).suffix.lower() not in FORMATS:
            raise ValueError(
                f"{said}: pictures are saved as PNG, JPEG, WebP or AVIF, which hold their recipe; let it end in .png, .jpg, "
                ".webp or .avif."
            )
        if "index" not in names:
            raise ValueError(f"{said}: without {{index}} two pictures could have one name; put {{index:06d}} into it.")
        rest = _FIELD.sub("x", self.text)
        if any(c in rest for c in "{}\\\0") or any(ord(c) < 32 or c in ':*?"<>|' for c in rest):
            raise ValueError(
                f"{said}: a field is written {{name}} or {{name:06d}}, and other signs like these are not used in names."
            )
        parts = rest.split("/")
        if any(not part or part.startswith(".") for part in parts):
            raise ValueError(
                f"{said}: a name stays in the folder of the batch; leave out leading slashes, and parts that begin with a dot."
            )
        if self.columns is not None and (unknown := next((n for n in names if n not in (*FIELDS, *self.columns)), None)):
            near = nearest(unknown, [*FIELDS, *self.columns])
            hint = f" Did you mean {{{near}}}?" if near else ""
            raise ValueError(f"{said}: there is no {{{unknown}}}; there are {', '.join((*FIELDS, *self.columns))}.{hint}")

    def fill(self, index: int, line: int, seed: int, prompt: str, extra: Mapping[str, Any]) -> str:
        """The name of a picture, with / between folders. ValueError for a column that this row has not."""
        values = {"index": index, "thousand": index // 1000, "line": line, "seed": seed, "slug": slug(prompt)}

        def put(match: re.Match[str]) -> str:
            name, form = match[1], match[2]
            if name not in values and name not in extra:
                raise ValueError(f"its file's name needs the column {name!r}, which it has not")
            value = values[name] if name in values else extra[name]
            if isinstance(value, int) and not isinstance(value, bool):
                return format(value, form or "d")
            return slug(str(value))

        parts = _FIELD.sub(put, self.text).split("/")
        return "/".join(_short(part) for part in parts)


def _short(part: str) -> str:
    """A part of a path that file systems take; its ending stays."""
    stem, dot, ending = part.rpartition(".")
    return part if len(part.encode()) <= LONGEST else stem.encode()[: LONGEST - 10].decode(errors="ignore") + dot + ending
