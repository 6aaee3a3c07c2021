"""The server as a process: uvicorn around the application, and how it stops."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from gen.serve.engine import ServingEngine
from gen.serve.http.app import create_app
from gen.serve.http.settings import ServerSettings


class GracefulServer(uvicorn.Server):
    """A server whose first signal refuses new jobs at once and lets running ones be done within the settings' grace."""

    def __init__(self, config: uvicorn.Config, engine: ServingEngine) -> None:
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.engine.refuse()
        super().handle_exit(sig, frame)


def make_server(engine: ServingEngine, settings: ServerSettings, log_level: str = "warning") -> GracefulServer:
    config = uvicorn.Config(
        create_app(engine, settings),
        host=settings.host,
        port=settings.port,
        log_level=log_level,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=max(int(settings.grace), 1),
        limit_concurrency=1000,
        h11_max_incomplete_event_size=64 << 10,
    )
    return GracefulServer(config, engine)


def run_server(engine: ServingEngine, settings: ServerSettings, say: Callable[[str], None], quiet: bool = False) -> int:
    """Serve until a signal. The exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    server = make_server(engine, settings, "warning" if quiet else "info")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    say(f"fewstep serves {', '.join(engine.pool.sources)} on http://{host}:{settings.port} (Ctrl-C stops)")
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return 0 if server.started else 2
