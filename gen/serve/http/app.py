"""The server as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from prometheus_client import CONTENT_TYPE_LATEST

from gen.io.version import __version__
from gen.serve.front import EngineFront
from gen.serve.http import openai, pictures, webui, webui_lists
from gen.serve.http.errors import AsciiJSON
from gen.serve.http.guard import RequestGuard
from gen.serve.http.handlers import add_handlers
from gen.serve.http.service import Service
from gen.serve.http.settings import ServerSettings
from gen.serve.http.webui_options import WebUISessions
from gen.serve.notes import notes_kept


def create_app(engine: EngineFront, settings: ServerSettings) -> FastAPI:
    """The application; the engine starts and closes with it."""
    service = Service(engine, settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        with notes_kept():
            engine.start()
            yield
        await anyio.to_thread.run_sync(engine.close, engine.rest_of(settings.grace))
        await service.board.close()

    app = FastAPI(
        title="fewstep",
        version=__version__,
        summary="Pictures over HTTP: OpenAI's image endpoints, AUTOMATIC1111's, and fewstep's own.",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
        default_response_class=AsciiJSON,
    )
    app.state.service = service
    add_handlers(app)
    sessions = WebUISessions(service.models)
    for api in (openai.router(service), pictures.router(service), webui.router(service, sessions)):
        app.include_router(api)
    app.include_router(webui_lists.router(service, sessions))
    app.include_router(webui_lists.controlnet_router(service))
    _add_own(app, service)
    if settings.origins:
        app.add_middleware(CORSMiddleware, allow_origins=list(settings.origins), allow_methods=["*"], allow_headers=["*"])
    answers = service.metrics.answers
    app.add_middleware(RequestGuard, settings=settings, answered=lambda path, status: answers.labels(path, str(status)).inc())
    return app


def _add_own(app: FastAPI, service: Service) -> None:
    engine, metrics = service.engine, service.metrics

    @app.get("/health", tags=["state"])
    @app.get("/health/live", tags=["state"])
    @app.head("/health", include_in_schema=False)
    @app.head("/health/live", include_in_schema=False)
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @app.get("/health/ready", tags=["state"], response_model=None)
    @app.head("/health/ready", include_in_schema=False, response_model=None)
    async def ready() -> Any:
        """Requests are taken, and a model is open."""
        if engine.is_closing:
            return AsciiJSON({"status": "stopping"}, 503)
        if not (there := engine.open_models):
            return AsciiJSON({"status": "opening"}, 503)
        return {"status": "ready", "models": there}

    @app.get("/metrics", tags=["state"], response_model=None)
    async def numbers() -> Response:
        """For Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)
