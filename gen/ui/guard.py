"""Who may talk to the page: programs of this machine's own browser, or whoever knows the token.

A browser sends requests for any site that it has open. So a request's Host must be one of this machine's names (else a site
could have its own name lead here: DNS rebinding), and its Origin, where it has one, must be the page itself. Both hold for
websockets too, which browsers let any site open.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from gen.io.hosts import LOOPBACK, host_name

Scope = MutableMapping[str, Any]
Messages = Callable[..., Awaitable[Any]]

COOKIE = "fewstep_token"
MOST = 80 * 1024 * 1024  # bytes of a request
HEADERS = (
    (b"x-frame-options", b"DENY"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class Guard:
    """Around an ASGI application: refuses with a sentence, or hands on.

    token: what a request must bring, in the address once and in a cookie from then on; None: the Host must be a loopback name.
    """

    def __init__(self, app: Any, token: str | None = None):
        self.app, self.token = app, token

    async def __call__(self, scope: Scope, receive: Messages, send: Messages) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status, message = self._refusal(scope, headers)
        if status:
            await _refuse(scope, receive, send, status, message)
            return
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        if self.token is not None and scope["type"] == "http" and "token" in query:
            rest = urlencode([pair for pair in parse_qsl(scope["query_string"].decode("latin-1")) if pair[0] != "token"])
            place = scope["path"] + (f"?{rest}" if rest else "")
            cookie = f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Lax"
            await _answer(send, 303, b"", [(b"location", place.encode()), (b"set-cookie", cookie.encode())])
            return

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message.get("headers", ())}
                message["headers"] = [*message.get("headers", ()), *(one for one in HEADERS if one[0] not in names)]
            await send(message)

        await self.app(scope, receive, guarded if scope["type"] == "http" else send)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str]:
        """(status, sentence) of what is refused; (0, "") for what may pass."""
        host = headers.get("host", "")
        if self.token is None and host_name(host) not in LOOPBACK:
            return 421, f"The page answers at 127.0.0.1 and localhost only, not at {host[:80]!r}."
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return 403, "Requests come from the page itself only, not from another site."
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
            return 403, "Another site may link to the page, and not read or embed what it serves."
        if self.token is not None and not self._knows_token(scope, headers):
            return 401, "Open the address that `fewstep ui` printed: it carries the token."
        length = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not length.isdecimal() or int(length) > MOST:
            return 413, f"A request has at most {MOST >> 20} MiB, and says how many."
        return 0, ""

    def _knows_token(self, scope: Scope, headers: dict[str, str]) -> bool:
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1")))
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        given = (query.get("token", ""), cookie.value if cookie is not None else "")
        assert self.token is not None
        return any(hmac.compare_digest(one.encode(), self.token.encode()) for one in given)


async def _refuse(scope: Scope, receive: Messages, send: Messages, status: int, message: str) -> None:
    if scope["type"] == "websocket":
        await receive()  # the request to connect
        await send({"type": "websocket.close", "code": 1008, "reason": message[:120]})
        return
    await _answer(send, status, message.encode(), [])


async def _answer(send: Messages, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    plain = (b"content-type", b"text/plain; charset=utf-8")
    size = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [plain, size, *HEADERS, *headers]})
    await send({"type": "http.response.body", "body": body})
