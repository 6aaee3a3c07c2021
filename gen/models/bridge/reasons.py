"""What went wrong in a library, as part of a sentence of ours."""

from __future__ import annotations

import re

# diffusers on a tensor of another shape, before it advises on how to leave it out
_SHAPE = re.compile(r"because (\S+) expected shape torch\.Size\((\[.*?\])\), but got torch\.Size\((\[.*?\])\)")


def first_line(error: Exception) -> str:
    """The first line of an error's text, with a full stop; of a tensor's shape that is wrong, no more than that."""
    if found := _SHAPE.search(str(error)):
        name, needed, given = found.groups()
        return f"{name} is {given} in the file, and {needed} in the network that its config describes."
    text = str(error).strip().splitlines()
    return (text[0][:300] if text else type(error).__name__).rstrip(".:") + "."
