"""What every request passes first: the host it names, the page it comes from, its key, and the size of its body."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gen.io.hosts import host_name
from gen.serve.http.errors import answer, answer_error
from gen.serve.http.settings import ServerSettings

OPEN = ("/health", "/health/live", "/health/ready")  # without a key, for load balancers
BODY_SECONDS = 60.0  # in which the body of a request arrives
SEND_SECONDS = 60.0  # in which a client takes a part of an answer


class BodyTooLarge(Exception):
    """The body went beyond what is allowed while it was read."""


class BodyTooSlow(Exception):
    """The body did not arrive in time."""


class ClientTooSlow(Exception):
    """What was sent was not taken in time."""


class RequestGuard:
    """Middleware. A request that passes has `scope["state"]["client"]`: its key's number, or its address without keys.

    answered: told the path of the route and the status of every answer to such a request.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, answered: Callable[[str, int], None]) -> None:
        self.app, self.settings, self.answered = app, settings, answered
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused is not None:
            status, message, more = refused
            await answer(scope["path"], status, message, headers=more)(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self.answered(getattr(scope.get("route"), "path", "other"), message["status"])
            try:
                await asyncio.wait_for(send(message), SEND_SECONDS)
            except TimeoutError:
                raise ClientTooSlow from None

        try:
            await self.app(scope, self._counted(receive), watched)
        except (BodyTooLarge, BodyTooSlow) as error:
            if started:
                return
            large = isinstance(error, BodyTooLarge)
            await answer(scope["path"], 413 if large else 408, self._too_large() if large else _SLOW)(scope, receive, watched)
        except ClientTooSlow:
            return
        except Exception as error:
            if started:
                raise
            await answer_error(scope["path"], error)(scope, receive, watched)

    def _refused(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str, dict[str, str]] | None:
        """(status, sentence, headers), None for a request that may pass."""
        host = host_name(headers.get("host", ""))
        if "*" not in self.settings.hosts and host not in self.settings.hosts:
            return 400, f"The server does not go by the name {host[:100]!r}; start it with --allow-host to have it.", {}
        origin = headers.get("origin")
        if origin is not None and not self._is_own(origin, headers.get("host", "")):
            return 403, f"Pages of {origin[:200]!r} may not ask here; start the server with --cors to let them.", {}
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length[:20]) > self.settings.max_body:
            return 413, self._too_large(), {"Connection": "close"}
        client = scope.get("client") or ("unknown", 0)
        name = f"address {client[0]}"
        preflight = scope["method"] == "OPTIONS" and origin is not None  # a browser asks first, without a key
        if self._keys and scope["path"] not in OPEN and not preflight:
            number = self._key(headers)
            if number is None:
                basic = {"WWW-Authenticate": 'Basic realm="fewstep"'} if scope["path"].startswith("/sdapi") else {}
                return 401, _NO_KEY, basic
            name = f"key {number}"
        scope.setdefault("state", {})["client"] = name
        return None

    def _key(self, headers: Mapping[str, str]) -> int | None:
        """The number of the key that a request carries. All are compared, each in the same time."""
        kind, _, value = headers.get("authorization", "").partition(" ")
        given = [value.strip()] if kind.lower() == "bearer" else []
        if kind.lower() == "basic":
            try:
                user, _, password = base64.b64decode(value, validate=True).decode("utf-8").partition(":")
            except (binascii.Error, ValueError):
                user = password = ""
            given = [password, f"{user}:{password}"]
        given += [headers[name] for name in ("x-api-key",) if name in headers]
        found: int | None = None
        for digest in map(_digest, given):
            for number, key in enumerate(self._keys):
                if hmac.compare_digest(digest, key):
                    found = number
        return found

    def _is_own(self, origin: str, host: str) -> bool:
        allowed = self.settings.origins
        return origin.partition("://")[2].lower() == host.lower() or origin in allowed or "*" in allowed

    def _counted(self, receive: Receive) -> Receive:
        """Receive, of a body within its bounds of size and time."""
        size, whole, end = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS

        async def counted() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()
            try:
                message: Any = await asyncio.wait_for(receive(), max(end - asyncio.get_running_loop().time(), 0.01))
            except TimeoutError:
                raise BodyTooSlow from None
            size += len(message.get("body", b""))
            if size > self.settings.max_body:
                raise BodyTooLarge
            whole = not message.get("more_body", False)
            return message

        return counted

    def _too_large(self) -> str:
        return f"The request is larger than {self.settings.max_body / 2**20:g} MiB, which is the most that is read; send less."


_NO_KEY = "An API key is needed: Authorization: Bearer KEY, or as the password of basic authentication."
_SLOW = f"The request did not arrive within {BODY_SECONDS:g} seconds; send it again."


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
