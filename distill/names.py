"""Names that are nearly right: what was probably meant."""

from __future__ import annotations

from collections.abc import Iterable

from samplers.lookup import nearest


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "did you mean 'nearest'? ", to stand before the list of what is known; "" where no known name is near."""
    near = nearest(name, known)
    return f"did you mean {near!r}? " if near else ""
