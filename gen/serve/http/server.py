"""The server as a process: uvicorn around the application, and how it stops."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn

from gen.serve.front import EngineFront
from gen.serve.http.app import create_app
from gen.serve.http.protocol import TimedProtocol
from gen.serve.http.settings import ServerSettings


class GracefulServer(uvicorn.Server):
    """A server whose first signal refuses new jobs at once and lets running ones be done within the settings' grace."""

    def __init__(self, config: uvicorn.Config, engine: EngineFront) -> None:
        super().__init__(config)
        self.engine = engine

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.engine.refuse()
        super().handle_exit(sig, frame)


def make_server(engine: EngineFront, settings: ServerSettings, log_level: str = "warning") -> GracefulServer:
    config = uvicorn.Config(
        create_app(engine, settings),
        host=settings.host,
        port=settings.port,
        http=TimedProtocol,
        log_level=log_level,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=max(int(settings.grace), 1),
        limit_concurrency=1000,
        h11_max_incomplete_event_size=64 << 10,
    )
    return GracefulServer(config, engine)


def listening_socket(host: str, port: int) -> socket.socket:
    """Bound, before a model is opened. ValueError where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(
            f"The port {port} of {host} cannot be listened on ({error.strerror}); choose another with --port."
        ) from None
    return listener


def run_server(engine: EngineFront, settings: ServerSettings, say: Callable[[str], None], quiet: bool = False) -> int:
    """Serve until a signal. The exit code."""
    listener = listening_socket(settings.host, settings.port)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
    server = make_server(engine, settings, "warning" if quiet else "info")
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    models = ", ".join(engine.models)
    say(f"fewstep serves {models} on http://{host}:{listener.getsockname()[1]} (Ctrl-C stops)")
    with contextlib.suppress(KeyboardInterrupt):
        server.run([listener])
    return 0 if server.started else 2
