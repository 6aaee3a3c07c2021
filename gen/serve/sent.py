"""Pictures that clients sent, kept as they were sent until a job begins.

A waiting job holds a photograph's megabyte, not the sixteen of its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from PIL import Image

Read = Callable[[bytes], Image.Image]


@dataclass(frozen=True, eq=False)
class SentPicture:
    """A picture as bytes, and how pixels are made of them.

    data: of a file.
    read: makes the picture of `data`; a function, or a `partial` of one, that pickle can name, for engines elsewhere.
    size: (width, height) of what `read` makes.
    """

    data: bytes
    read: Read
    size: tuple[int, int]

    @classmethod
    def checked(cls, data: bytes, read: Read) -> Self:
        """Of bytes that `read` makes a picture of now, so that damaged ones are refused before their job waits."""
        return cls(data, read, read(data).size)


def opened(value: Any) -> Any:
    """A value of a keyword with its pictures decoded, in lists and tables too."""
    if isinstance(value, SentPicture):
        return value.read(value.data)
    if isinstance(value, Mapping):
        return {name: opened(one) for name, one in value.items()}
    return [opened(one) for one in value] if isinstance(value, list) else value


def sent_bytes(value: Any) -> int:
    """Bytes of the pictures in keywords, in lists and tables too; those that two pictures are made of count once."""
    return sum(_files(value).values())


def _files(value: Any) -> dict[int, int]:
    """Identity of a file's bytes -> how many they are."""
    if isinstance(value, SentPicture):
        return {id(value.data): len(value.data)}
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return {name: size for one in inner for name, size in _files(one).items()}
