"""Members of zip files that nobody vouches for."""

from __future__ import annotations

import zipfile
from pathlib import Path


def read_member(file: zipfile.ZipFile, name: str, limit: int, path: Path, kind: str, error: type[Exception]) -> bytes:
    """The bytes of a member, at most `limit`, whatever the file says of its size.

    path, kind: of the file, in words such as "OpenRaster file". error: what is raised where the member is missing or larger.
    """
    try:
        info = file.getinfo(name)
    except KeyError:
        raise error(f"{path} has no {name!r:.80}; it is no {kind}, or is damaged.") from None
    if info.file_size <= limit:
        with file.open(info) as stream:
            data = stream.read(limit + 1)
        if len(data) <= limit:
            return data
    raise error(f"{path}: {name!r:.80} is larger than {limit:,} bytes.")
