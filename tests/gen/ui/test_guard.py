"""Who may talk to the page, in requests and in websockets, and where it listens."""

from __future__ import annotations

import asyncio
import sys

import pytest

from gen.ui.guard import COOKIE, MOST, Guard
from gen.ui.server import check_token, is_loopback, listen

TOKEN = "a-token-of-16-ch"


async def inner(scope, receive, send):
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"page"})


def ask(kind="http", query="", token=None, path="/", **headers) -> tuple[int, dict[str, str], str]:
    """(status, headers, body); of a websocket 101 or its closing code."""
    given = {"host": "127.0.0.1:8180", **{name.replace("_", "-"): value for name, value in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in given.items() if value is not None]
    scope = {"type": kind, "path": path, "query_string": query.encode(), "headers": raw}
    sent: list[dict] = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(inner, token)(scope, receive, send))
    if kind == "websocket":
        return (101 if sent[0]["type"] == "websocket.accept" else sent[0]["code"]), {}, sent[0].get("reason", "")
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, sent[1]["body"].decode()


@pytest.mark.parametrize("kind, yes", [("http", 200), ("websocket", 101)])
def test_only_the_page_itself_may_ask(kind, yes):
    no = {"http": (403, 421, 413), "websocket": (1008,)}[kind]
    for host in ("127.0.0.1:8180", "localhost:8180", "LOCALHOST", "[::1]:8180", "127.0.0.1"):
        assert ask(kind, host=host)[0] == yes
    for host in ("evil.example:8180", "127.0.0.1.evil.example", "", None, "10.0.0.1:8180", "localhost.evil.example:80", "::1"):
        assert ask(kind, host=host)[0] in no, host
    assert ask(kind, origin="http://127.0.0.1:8180")[0] == yes
    for origin in ("http://evil.example", "null", "http://localhost:8180", "http://127.0.0.1:3000", "file://", ""):
        assert ask(kind, origin=origin)[0] in no, origin
    assert ask(kind, sec_fetch_site="cross-site", sec_fetch_mode="no-cors")[0] in no
    assert ask(kind, sec_fetch_site="cross-site", sec_fetch_mode="navigate")[0] == yes
    assert ask(kind, content_length=str(MOST + 1))[0] in no
    assert ask(kind, transfer_encoding="chunked")[0] in no
    assert ask(kind, content_length="-1")[0] in no


@pytest.mark.parametrize("kind, yes", [("http", 200), ("websocket", 101)])
def test_with_a_token_any_host_serves_and_nothing_without_it(kind, yes):
    no = (401, 403, 1008)
    for host in ("studio.example:8180", "10.0.0.1"):
        assert ask(kind, token=TOKEN, host=host)[0] in no
        assert ask(kind, token=TOKEN, host=host, cookie=f"other=1; {COOKIE}={TOKEN}")[0] == yes
    for cookie in (f"{COOKIE}={TOKEN[:-1]}", f"{COOKIE}=", "", f"{COOKIE}={TOKEN}x", "=;=\x7f"):
        assert ask(kind, token=TOKEN, cookie=cookie)[0] in no
    assert ask(kind, token=TOKEN, cookie=f"{COOKIE}={TOKEN}", origin="http://evil.example")[0] in no
    assert ask(kind, token=TOKEN, query="token=wrong")[0] in no


def test_the_token_of_the_address_becomes_a_cookie_that_scripts_cannot_read():
    status, headers, _ = ask(token=TOKEN, query=f"token={TOKEN}&a=1", path="/")
    assert (status, headers["location"]) == (303, "/?a=1")
    assert headers["set-cookie"] == f"{COOKIE}={TOKEN}; Path=/; HttpOnly; SameSite=Lax"


def test_answers_may_not_be_framed_or_guessed():
    for answer in (ask(), ask(host="evil.example")):
        assert answer[1]["x-frame-options"] == "DENY" and answer[1]["x-content-type-options"] == "nosniff"
        assert answer[1]["referrer-policy"] == "no-referrer"
    assert "127.0.0.1 and localhost only" in ask(host="evil.example")[2]


def test_another_host_needs_a_token():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.2", "studio.example", "")))
    check_token("127.0.0.1", None)
    check_token("0.0.0.0", TOKEN)
    for host, token in (("0.0.0.0", None), ("127.0.0.1", "short"), ("127.0.0.1", "a; Path=/; x=yyyyyy"), ("::", "ä" * 9)):
        with pytest.raises(ValueError, match="token"):
            check_token(host, token)


def test_a_taken_port_is_passed_over_or_said():
    first = listen("127.0.0.1", None)
    second = listen("127.0.0.1", None)
    try:
        assert first.getsockname()[1] != second.getsockname()[1]
        with pytest.raises(ValueError, match="choose another with --port"):
            listen("127.0.0.1", first.getsockname()[1])
        with pytest.raises(ValueError, match="no address"):
            listen("no.such.host.invalid", 1234)
    finally:
        first.close()
        second.close()


def test_without_its_packages_the_page_says_what_to_install(monkeypatch, tmp_path):
    from gen.ui.server import serve
    from gen.ui.studio import Studio

    monkeypatch.setitem(sys.modules, "nicegui", None)
    studio = Studio(tmp_path)
    with pytest.raises(ValueError, match=r"needs the package nicegui: .*pip install -e '\.\[ui\]'"):
        serve(studio, browser=False)
    studio.close()
