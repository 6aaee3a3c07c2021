"""The server of the page: which address it has, what it serves, how it begins and ends."""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gen.io.extras import install
from gen.io.hosts import LOOPBACK
from gen.ui.gallery import media_type
from gen.ui.guard import Guard
from gen.ui.studio import Studio

STATIC = Path(__file__).parent / "static"
PORT = 8180
AWAY = 600.0  # seconds that a page is kept for a browser that is not heard of: a phone that sleeps, a machine that is busy
TRIED = 20  # ports after the usual one, where that is taken


def make_app(studio: Studio, token: str | None = None) -> Any:
    """The ASGI application: pictures of the gallery, files of the page, and the page."""
    from fastapi import FastAPI, HTTPException
    from fastapi.responses import FileResponse
    from nicegui import ui

    from gen.ui.page import build_page

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/pictures/{name}")
    def picture(name: str) -> FileResponse:
        return served(lambda: studio.gallery.path(name), lambda path: media_type(path.name))

    @app.get("/given/{name}")
    def given(name: str) -> FileResponse:
        return served(lambda: studio.gallery.given(name), lambda _: "image/png")

    @app.get("/thumbnails/{name}")
    def thumbnail(name: str) -> FileResponse:
        return served(lambda: studio.gallery.thumbnail(name), lambda _: "image/webp")

    @app.get("/page/{name}")
    def file_of_page(name: str) -> FileResponse:
        known = {path.name: path for path in STATIC.iterdir()}
        if name not in known:
            raise HTTPException(404)
        return FileResponse(known[name], headers={"cache-control": "no-cache"})

    def served(find: Callable[[], Path], kind: Callable[[Path], str]) -> FileResponse:
        try:
            path = find()
            return FileResponse(path, media_type=kind(path), headers={"cache-control": "private, max-age=86400"})
        except (ValueError, OSError) as error:
            raise HTTPException(404, str(error)) from None

    ui.page("/", reconnect_timeout=AWAY)(lambda: build_page(studio))
    ui.run_with(
        app,
        title="fewstep",
        favicon=STATIC / "icon.svg",
        dark=None,
        tailwind=False,
        reconnect_timeout=20,
        show_welcome_message=False,
    )
    return Guard(app, token)


def serve(
    studio: Studio, host: str = "127.0.0.1", port: int | None = None, token: str | None = None, browser: bool = True
) -> int:
    """Serve the page until it is interrupted; the exit code.

    port: a free one from 8180 on, if None.
    token: needed for a host that other machines reach.
    browser: open the page in it.
    """
    check_token(host, token)
    try:
        import nicegui  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(f"The page needs the package {error.name}: {install('ui')}.") from None

    listening = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else "")
    config = uvicorn.Config(make_app(studio, token), log_level="warning", ws_max_size=MOST_MESSAGE, timeout_graceful_shutdown=3)
    server = _server(config, lambda: _begun(url, browser))
    studio.begin()
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass
    finally:
        studio.close()
        listening.close()
    return 0


MOST_MESSAGE = 4 * 1024 * 1024  # bytes of a websocket's message


def check_token(host: str, token: str | None) -> None:
    """ValueError where other machines could reach the page without one."""
    if token is not None and not re.fullmatch(r"[A-Za-z0-9_-]{8,200}", token):
        raise ValueError(
            "A token has 8 to 200 letters, digits, - and _; choose another, for example by `openssl rand -hex 16`."
        )
    if token is None and not is_loopback(host):
        raise ValueError(
            f"Other machines can reach {host}, so it needs --token TOKEN too: a word of your own, which the page's address "
            "then carries."
        )


def is_loopback(host: str) -> bool:
    """Is this an address that only this machine reaches?"""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() in LOOPBACK


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens; ValueError where none can."""
    problem: OSError | None = None
    for candidate in range(PORT, PORT + TRIED) if port is None else (port,):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            listening = socket.socket(family, kind, protocol)
        except (OSError, OverflowError) as error:
            raise ValueError(f"{host} is no address of this machine ({error}); choose another --host.") from None
        try:
            if sys.platform != "win32":
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)
            return listening
        except OSError as error:
            listening.close()
            problem = error
    assert problem is not None
    raise ValueError(f"Port {port or PORT} of {host} cannot be used ({problem.strerror}); choose another with --port.")


def _begun(url: str, browser: bool) -> None:
    print(f"fewstep is at {url} (Ctrl-C ends it)", file=sys.stderr, flush=True)
    if browser:
        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _server(config: Any, begun: Callable[[], None]) -> Any:
    """A uvicorn server that says when it has begun."""
    import uvicorn

    class Beginning(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets=sockets)
            begun()

    return Beginning(config)
