"""A server of the tiny model: as an application in this process, and live on loopback."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from gen.adapters import Adapter, write_adapter
from gen.generator import Generator
from gen.serve.engine import ServingEngine
from gen.serve.http.app import create_app
from gen.serve.http.server import make_server
from gen.serve.http.settings import ServerSettings
from gen.serve.models import ModelSource
from tests.gen.test_adapters_generator import DENOISER, lora


def make_engine(folder, names=("tiny", "other"), **options):
    def open_it():
        return Generator.from_pretrained(folder, "cpu", "float32")

    return ServingEngine(dict.fromkeys(names, ModelSource(open_it)), **options)


@contextmanager
def client_of(engine, **settings):
    with TestClient(create_app(engine, ServerSettings(**settings)), base_url="http://127.0.0.1:8188") as client:
        client.engine = engine
        yield client


@pytest.fixture(scope="module")
def lora_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    return {"style": write_adapter(Adapter("style", lora(0, *DENOISER)), folder / "style.safetensors", "diffusers")}


@pytest.fixture(scope="module")
def client(tiny_model, lora_files):
    """Small limits: 64 x 64 pixels, 50 steps, 4 pictures, 2 MiB."""
    limits = {"max_pixels": 4096, "max_steps": 50, "max_pictures": 4, "max_body": 2 << 20}
    with client_of(make_engine(tiny_model, adapters=lora_files), **limits) as one:
        yield one


@contextmanager
def live_server(engine, **settings):
    """(host, port) of a server in a thread."""
    server = make_server(engine, ServerSettings(port=0, **settings))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + 60
    while not server.started and time.monotonic() < end:
        time.sleep(0.01)
    try:
        yield "127.0.0.1", server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="module")
def live(tiny_model, lora_files):
    with live_server(make_engine(tiny_model, adapters=lora_files)) as address:
        yield address
