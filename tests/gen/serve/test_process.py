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
from gen.pipeline.png import read_recipe
from gen.ui.gallery import Gallery


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
    check_whole(tmp_path)


def check_whole(folder):
    """Every file that bears a picture's name is one, with its recipe."""
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            image.load()
        assert read_recipe(path).prompt == "a red heart"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_server_goes_on_in_its_folder(tmp_path, seed):
    """Pictures that a client saw finished are there after a kill -9 and a restart, beside what is made then; nothing half
    written bears a picture's name, in the folder or in the gallery; jobs of before are told of in a sentence."""
    draw = random.Random(seed)
    body = {"prompt": "a red heart", "num_images_per_prompt": 4, "num_inference_steps": 4, "wait": False}
    with process("--save", str(tmp_path)) as (server, url), httpx.Client(timeout=60) as http:
        jobs = [http.post(f"{url}/v1/pictures", json={**body, "seed": 10 * number}).json()["id"] for number in range(6)]
        seen: dict[tuple[str, int], bytes] = {}
        until = time.monotonic() + 0.2 + draw.random()
        while time.monotonic() < until or not seen:
            for job in jobs:
                for made in http.get(f"{url}/v1/jobs/{job}").json()["pictures"]:
                    seen[job, made["index"]] = base64.b64decode(made["image"])
        server.send_signal(signal.SIGKILL)
        server.wait(60)
    assert len(seen) < 24, "the server was done before it was killed"
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    assert set(seen.values()) <= set(before.values())
    check_whole(tmp_path)
    with process("--save", str(tmp_path)) as (server, url), httpx.Client(timeout=60) as http:
        for job in jobs:
            gone = http.get(f"{url}/v1/jobs/{job}")
            assert gone.status_code == 404 and gone.json()["error"]["message"].startswith("There is no job")
        again = http.post(f"{url}/v1/pictures", json={**body, "seed": 0, "wait": True}).json()
        assert again["status"] == "done" and len(again["pictures"]) == 4
        after = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
        assert before.items() <= after.items() and len(after) == len(before) + 4
        check_whole(tmp_path)
    files = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert {entry.name for entry in Gallery(tmp_path).entries()} == set(after) == files
