"""What the endpoints have in common."""

from __future__ import annotations

import base64
import time
from dataclasses import dataclass, field

from starlette.requests import Request

from gen.serve.front import EngineFront
from gen.serve.http.board import FinishedPicture, FollowedJob, JobBoard
from gen.serve.http.errors import BadRequest
from gen.serve.http.metrics import EngineMetrics
from gen.serve.http.requests import Intake, PictureRequest
from gen.serve.http.settings import ServerSettings


@dataclass(eq=False)
class Service:
    """engine and settings of a server, and what is made of them. created: when it began, in seconds of 1970."""

    engine: EngineFront
    settings: ServerSettings
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        self.intake = Intake(self.engine, self.settings)
        self.metrics = EngineMetrics(self.engine)
        self.board = JobBoard(self.engine, self.settings, self.metrics.ended)

    @property
    def models(self) -> list[str]:
        return list(self.engine.models)

    def submit(self, asked: PictureRequest, request: Request) -> FollowedJob:
        return self.board.submit(self.intake.job(asked, client_of(request)), asked.format)

    async def make(self, asked: PictureRequest, request: Request) -> tuple[list[FinishedPicture], list[str]]:
        """The pictures of a request, once they are all there, and what was said of them."""
        followed = self.submit(asked, request)
        return await self.board.result(followed, request), followed.job.notes


def client_of(request: Request) -> str:
    return request.state.client


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def read_size(size: str | None) -> tuple[int, int] | None:
    """(width, height) of "WIDTHxHEIGHT"; None for "auto"."""
    if size is None or size == "auto":
        return None
    width, cross, height = size.partition("x")
    if not cross or not all(side.isascii() and side.isdigit() and 0 < len(side) < 6 for side in (width, height)):
        raise BadRequest(f"size is {size[:40]!r}; give WIDTHxHEIGHT in pixels, such as 512x512, or auto.", "size")
    return int(width), int(height)
