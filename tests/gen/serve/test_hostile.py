"""A hostile client: what it sends is refused, what it never finishes is given up, and others are served on."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import struct
import time
import zlib

import pytest
from PIL import Image

from gen.serve.http import guard, protocol, uploads
from gen.serve.http.settings import ServerSettings
from tests.gen.serve.test_http import png, sentence_of, square


def received(connection):
    try:
        return connection.recv(65536)
    except ConnectionResetError:  # by a server that read no further
        return b""


def answer_of(connection):
    """One answer, or what came before the connection's end."""
    found = b""
    while more := received(connection):
        found += more
        head, end, body = found.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        if end and lengths and len(body) >= int(lengths[0]):
            break
    return found


def ask(address, data):
    """What comes back of bytes that are sent as they are."""
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(data)
        return answer_of(connection)


def get(path=b"/v1/models", host=b"localhost", head=b"", method=b"GET"):
    return method + b" " + path + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + head + b"\r\n"


def post(body, head=b"", path=b"/v1/pictures"):
    length = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return get(path, head=length + head, method=b"POST") + body


@pytest.mark.parametrize(("data", "status"), [
    (get(host=b"evil.example"), 400),
    (get(host=b"localhost:80@evil.example"), 400),
    (get(host=b"localhost:80:evil.example"), 400),
    (get(host=b"localhost", head=b"Host: evil.example\r\n"), 400),
    (b"GET /v1/models HTTP/1.0\r\n\r\n", 400),
    (get(head=b"Origin: null\r\n"), 403),
    (get(head=b"Origin: http://localhost.evil.example\r\n"), 403),
    (get(head=b"Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n", method=b"OPTIONS"), 403),
    (get(head=b"X-A: " + b"a" * 200_000 + b"\r\n"), 400),
    (get(head=b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
              b"Sec-WebSocket-Version: 13\r\n"), 403),
    (get(method=b"TRACE"), 405),
    (get(b"/v1/models/%ff%00"), 404),
    (get(b"/v1/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd/0.png"), 404),
    (get(b"/v1/jobs/a/1e5.png"), 400),
    (b"\x16\x03\x01\x02\x00\x01\x00\xfc\r\n\r\n", 400),
    (post(b"{}", head=b"Content-Length: 90\r\n"), 400),
    (post(b'{"prompt": "\xff\xfe"}'), 400),
    (post(b'{"prompt":"a","seed":' + b"9" * 100_000 + b"}"), 400),
    *((post(b'{"prompt":"a","layout":' + b'{"a":' * deep + b"1" + b"}" * deep + b"}"), 400)
      for deep in (300, 900, 3000, 100_000)),
    *((post(b'{"prompt":"a","override_settings":{"a":' + b"[" * deep + b"]" * deep + b"}}", path=b"/sdapi/v1/txt2img"), 422)
      for deep in (300, 900)),
    (post(json.dumps({f"k{i}": 1 for i in range(20_000)}).encode()), 400),
    (post(zlib.compress(b"0" * 10**6), head=b"Content-Encoding: deflate\r\n"), 400),
])  # fmt: skip
def test_what_is_refused(live, data, status):
    answer = ask(live, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"Traceback" not in answer
    assert ask(live, get(b"/health/live")).endswith(b'{"status":"ok"}')


def test_probes_by_head(live):
    for path in (b"/health", b"/health/live"):
        with socket.create_connection(live, timeout=60) as connection:
            connection.sendall(get(path, head=b"Connection: close\r\n", method=b"HEAD"))
            found = b"".join(iter(lambda: connection.recv(65536), b""))
        assert found.startswith(b"HTTP/1.1 200 ") and found.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"])
def test_heads_that_never_end_are_given_up(live, monkeypatch, begun):
    """Also those of which something comes."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with socket.create_connection(live, timeout=60) as connection:
        connection.sendall(begun)
        assert connection.recv(1) == b""  # the end, and no timeout


def test_a_request_under_way_is_not_given_up(live, monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.05)
    answer = ask(live, post(json.dumps({"prompt": "a cat", "num_inference_steps": 60}).encode()))
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_connection_s_later_requests_have_their_own_time(live, monkeypatch):
    """The first one's time does not end the connection, and one that was long under way does not leave the next without."""
    monkeypatch.setattr(protocol, "HEAD_SECONDS", 0.5)
    with socket.create_connection(live, timeout=30) as connection:
        connection.sendall(get(b"/health/live"))
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
        time.sleep(1.0)
        connection.sendall(post(json.dumps({"prompt": "a cat", "num_inference_steps": 150}).encode()))
        assert answer_of(connection).startswith(b"HTTP/1.1 200 ")
        connection.sendall(b"GET /hea")
        assert connection.recv(1) == b""  # and no timeout


def test_bodies_and_answers_that_stall_are_given_up(monkeypatch):
    """A body that does not come on is 408; an answer that is not taken ends the connection."""
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(guard, "SEND_SECONDS", 0.05)

    async def app(scope, receive, send):
        if scope["path"] == "/body":
            await receive()
        for part in (b"a", b"b"):
            await send({"type": "http.response.start" if part == b"a" else "http.response.body", "status": 200, "body": part})

    async def never(*message):
        await asyncio.Event().wait()

    guarded = guard.RequestGuard(app, ServerSettings(), lambda path, status: None)

    def scope(path):
        return {
            "type": "http",
            "path": path,
            "method": "POST",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
        }

    sent = []

    async def take(message):
        sent.append(message)

    async def both():
        await guarded(scope("/body"), never, take)
        await guarded(scope("/answer"), never, never)

    asyncio.run(asyncio.wait_for(both(), 60))
    assert sent[0]["status"] == 408


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of(width, height, more=b"", pixels=b"\0" * 200):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def scans(count):
    """A progressive JPEG with so many scans more, each of which is a pass over all of it."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(file, "JPEG", progressive=True)
    data = file.getvalue()
    last = data.rfind(b"\xff\xda")
    head = data[last : last + 2 + struct.unpack(">H", data[last + 2 : last + 4])[0]]
    return data[:-2] + (head + b"\0") * count + b"\xff\xd9"


@pytest.mark.parametrize("data", [
    png_of(60_000, 60_000), png_of(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"0" * 10**7))),
    png_of(8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"0" * 10**7))), scans(2000),
])  # fmt: skip
def test_bombs_of_pictures(client, data):
    picture = base64.b64encode(data).decode()
    for path, body in (
        ("/v1/pictures", {"prompt": "a", "image": picture}),
        ("/sdapi/v1/png-info", {"image": picture}),
        ("/sdapi/v1/img2img", {"init_images": [picture]}),
    ):
        refused = client.post(path, json=body)
        assert refused.status_code == 400 and "image" in sentence_of(refused), (path, refused.text)
    form = {"image": ("a.png", data, "image/png")}
    assert client.post("/v1/images/edits", data={"prompt": "a"}, files=form).status_code == 400


def test_scans_of_ordinary_pictures_are_read(client):
    assert uploads.open_upload("image", scans(0), 4096).size == (64, 64)


def test_a_job_is_cancelled_once_however_often_it_is_asked(client):
    job = client.post("/v1/pictures", json={"prompt": "a cat", "wait": False, "num_inference_steps": 50}).json()
    before = client.engine.counts.cancelled
    states = {client.delete(f"/v1/jobs/{job['id']}").json()["status"] for _ in range(5)}
    assert len(states) == 1 and client.engine.counts.cancelled - before in (0, 1)


def test_many_refusals_leave_nothing_behind(client):
    kept = len(client.app.state.service.board.jobs)
    for _ in range(300):
        assert client.post("/v1/pictures", json={"prompt": 5}).status_code == 400
    assert len(client.app.state.service.board.jobs) == kept and not client.engine.jobs()
    assert client.post("/v1/images/edits", data={"prompt": "a"}, files={"image": png(square())}).status_code == 200
