"""`fewstep serve` as a process: what is wrong is said at once, a signal ends it gracefully, and a kill loses no picture."""

from __future__ import annotations

import base64
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
from PIL import Image

from gen.cli.app import main


@pytest.mark.parametrize(("options", "says"), [
    (["--host", "0.0.0.0"], "give --api-key"),
    (["--model", "/no/such"], "does not exist"),
    (["--model", "fast", "--model", "fast"], "Two models are called 'fast'"),
    (["--memory", "much"], "such as 8GiB"),
    (["--model", "fast", "--memory", "1MiB"], r"needs [\d.]+ MiB for its weights, and --memory is 1 MiB"),
    (["--lora-dir", "/no/such"], "'/no/such' does not exist"),
    (["--save", "/proc/no"], "can be written to"),
    (["--api-key", "short"], "at least 8 printable"),
    (["--api-key-file", "/no/such"], "does not exist"),
    (["--controlnet", "edges=/no/such"], "--controlnet edges=/no/such: /no/such does not exist"),
    (["--ip-adapter", "a=/etc", "--ip-adapter", "a=/tmp"], "two are called 'a'"),
])  # fmt: skip
def test_what_is_wrong_is_said_at_once(options, says, capsys):
    assert main(["serve", *options]) == 2
    said = capsys.readouterr().err
    assert re.search(says, said), said
    assert said.count("\n") == 1 and said.endswith(".\n")


def test_a_port_that_is_taken(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["serve", "--model", "fast", "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another with --port" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["uvicorn", "fastapi", "python_multipart", "prometheus_client"])
def test_a_missing_package_names_its_extra(package, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("gen.serve.http", package))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["serve", "--model", "fast"]) == 2
    said = capsys.readouterr().err
    assert f"needs the package {package}, of the extra serve: " in said and "'.[serve]'" in said


@contextmanager
def process(*options):
    """(process, its address) of a server of the packaged student."""
    command = [sys.executable, "-m", "gen", "serve", "--model", "fast", "--port", "0", *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        assert server.stderr is not None
        line = server.stderr.readline()
        url = re.search(r"http://[\d.]+:\d+", line)[0]
        threading.Thread(target=server.stderr.read, daemon=True).start()
        end = time.monotonic() + 120
        while time.monotonic() < end:
            with suppress(httpx.TransportError):
                if httpx.get(f"{url}/health/ready").status_code == 200:
                    break
            time.sleep(0.1)
        yield server, url
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
def test_a_signal_ends_it_gracefully():
    with process("--grace", "60") as (server, url):
        made = []
        body = {"prompt": "a red heart", "seed": 1, "num_images_per_prompt": 4, "num_inference_steps": 8}
        thread = threading.Thread(target=lambda: made.append(httpx.post(f"{url}/v1/pictures", json=body, timeout=120)))
        thread.start()
        while "fewstep_running_pictures 0" in httpx.get(f"{url}/metrics").text:
            pass
        server.send_signal(signal.SIGTERM)
        thread.join(120)
        assert made[0].status_code == 200 and len(made[0].json()["pictures"]) == 4
        assert server.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_kill_loses_no_picture_that_was_sent(tmp_path, seed):
    draw = random.Random(seed)
    with process("--save", str(tmp_path)) as (server, url):
        sent = []

        def ask(number):
            with suppress(httpx.TransportError), httpx.Client(timeout=60) as http:
                while True:
                    body = {"prompt": "a red heart", "seed": number, "n": 2, "steps": 2}
                    answer = http.post(f"{url}/v1/images/generations", json=body)
                    sent.extend(base64.b64decode(item["b64_json"]) for item in answer.json()["data"])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        while not sent:
            time.sleep(0.01)
        time.sleep(draw.random())
        server.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join(60)
    files = {path.read_bytes() for path in tmp_path.glob("*.png")}
    assert sent and set(sent) <= files
    for path in tmp_path.glob("*.png"):
        with Image.open(path) as image:
            image.load()
