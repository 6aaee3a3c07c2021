"""Host headers: what names this machine, and what only looks as if."""

from __future__ import annotations

import pytest

from gen.io.hosts import LOOPBACK, host_name


@pytest.mark.parametrize(("header", "name"), [
    ("localhost", "localhost"), ("LocalHost:8188", "localhost"), (" 127.0.0.1:80 ", "127.0.0.1"), ("[::1]:8188", "::1"),
    ("[::1]", "::1"), ("evil.example", "evil.example"), ("localhost.evil.example:80", "localhost.evil.example"),
    ("localhost:80:evil.example", ""), ("localhost:80@evil.example", ""), ("::1", ""), ("[::1", ""), ("[::1]evil", ""),
    ("localhost:", "localhost"), ("localhost:٣", ""), ("", ""), ("localhost, evil.example", "localhost, evil.example"),
])  # fmt: skip
def test_the_name_in_a_host_header(header, name):
    assert host_name(header) == name
    assert (name in LOOPBACK) == (name in ("localhost", "127.0.0.1", "::1"))
