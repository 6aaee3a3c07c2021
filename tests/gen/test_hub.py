"""The hub: one brief attempt where it does not answer, and what was fetched before is found all the same."""

from __future__ import annotations

import socket

import pytest

from gen.models.hub import TIMEOUT, hub_errors, reachable
from gen.models.pretrained import find_model


@pytest.fixture
def silent(monkeypatch):
    """No host answers; the attempts that were made."""
    attempts = []

    def refuse(address, timeout=None, *_):
        attempts.append((address, timeout))
        raise OSError("no route")

    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.example")
    return attempts


def test_a_hub_that_does_not_answer_is_asked_once(silent, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr("httpx.Client.send", lambda *_, **__: pytest.fail("asked for a file"))
    with pytest.raises(ValueError, match="the hub cannot be reached; check the name or the network"):
        find_model("someone/no-such-model-anywhere")
    assert silent == [(("hub.example", 443), TIMEOUT)] and constants.HF_HUB_OFFLINE is False


def test_what_was_fetched_before_is_found(silent, tmp_path, monkeypatch):
    from huggingface_hub import constants, hf_hub_download

    cached = tmp_path / "models--a--b"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    (cached / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (cached / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with hub_errors("a/b"):
        assert hf_hub_download("a/b", "config.json", cache_dir=tmp_path).endswith("config.json")
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False


def test_proxies_and_offline_mode_are_left_alone(silent, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    assert reachable() and silent == []
    monkeypatch.delenv("HTTPS_PROXY")
    assert not reachable() and len(silent) == 1
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert reachable() and len(silent) == 1
