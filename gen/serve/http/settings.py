"""What a server is told at its start; no request changes any of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gen.io.errors import read_text
from gen.io.hosts import LOOPBACK

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@dataclass(frozen=True)
class ServerSettings:
    """host, port: where it listens.
    api_keys: of which every request needs one; none: whoever reaches the port may ask.
    allowed_hosts: names by which it may be called, beside its own (against DNS rebinding); "*": by any.
    origins: of web pages whose scripts may ask (CORS); none by default.
    save: a folder in which every picture is before it is sent; None: none is kept.
    max_pixels, max_steps, max_pictures: of one request.
    max_work: of one request, in pictures of the model's own size (`gen.serve.limits`).
    max_body: bytes of a request.
    max_inputs: pictures in a request.
    max_sent: bytes of the pictures, as they were sent, of jobs that are not over; a job alone may have more.
    timeout: seconds in which a job is done.
    grace: seconds in which what runs may finish when the server stops.
    kept_jobs: finished jobs that can be asked for, and kept_bytes: of their pictures.
    batch_invariant: of all pictures; None: as models are by default.
    controlnets, ip_adapters: name -> folder or file of those that requests may name.
    ip_adapter_encoder: folder of the vision encoder of these; None: beside each.
    """

    host: str = "127.0.0.1"
    port: int = 8188
    api_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    save: Path | None = None
    max_pixels: int = 4_194_304
    max_steps: int = 200
    max_pictures: int = 16
    max_work: float = 256.0
    max_body: int = 64 << 20
    max_inputs: int = 8
    max_sent: int = 1 << 30
    timeout: float = 600.0
    grace: float = 30.0
    kept_jobs: int = 100
    kept_bytes: int = 256 << 20
    batch_invariant: bool | None = None
    controlnets: Mapping[str, Path] = field(default_factory=dict)
    ip_adapters: Mapping[str, Path] = field(default_factory=dict)
    ip_adapter_encoder: Path | None = None

    def __post_init__(self) -> None:
        if self.host not in LOOPBACK and not self.api_keys:
            raise ValueError(
                f"The host {self.host!r} can be reached from other machines: give --api-key (or --api-key-file) too, or leave "
                "--host out."
            )
        for key in self.api_keys:
            if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
                raise ValueError("An API key has at least 8 printable ASCII characters and no spaces; give a longer one.")

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names in `Host` that are answered, in lower case."""
        if self.host not in LOOPBACK and not self.allowed_hosts:
            return ("*",)  # whoever asks has a key, which a page in a browser has not
        return tuple(dict.fromkeys(name.lower() for name in (*LOOPBACK, self.host, *self.allowed_hosts)))


def read_keys(keys: Sequence[str], file: Path | None) -> tuple[str, ...]:
    """Keys as given and from a file, one a line; lines that begin with # are comments."""
    lines = [] if file is None else [line.strip() for line in read_text(file).splitlines()]
    found = tuple(dict.fromkeys([*keys, *(line for line in lines if line and not line.startswith("#"))]))
    if file is not None and not found:
        raise ValueError(f"{file} holds no API key; write one a line.")
    return found


def read_named_paths(option: str, texts: Sequence[str]) -> dict[str, Path]:
    """name -> path of NAME=PATH, or of PATH, which is called as its file or folder is. ValueError for one that is not there,
    and two of one name."""
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        path = Path(place if equals and name else text)
        name = name if equals and name else path.stem if path.is_file() else path.name
        if not path.exists():
            raise ValueError(f"{option} {text}: {path} does not exist; give NAME=PATH of a file or folder that does.")
        if name in found:
            raise ValueError(f"{option}: two are called {name!r}; call one otherwise: {option} other={path}.")
        found[name] = path
    return found


def read_bytes_count(text: str, name: str = "--memory") -> int:
    """A number of bytes from 8GiB, 512M or 1000000; ValueError for any other text."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"{name} is {text!r}; give a number of bytes such as 8GiB or 512MiB.")
    return int(float(match[1]) * _UNITS[match[2].lower()])
