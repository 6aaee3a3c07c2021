"""Mixed clients against a server: python -m tests.benchmarks.serve [--clients 32] [--seconds 60] [--model fast].

Says errors, whether a sample equals the direct pictures, memory halfway and at the end, pictures a minute beside the same
requests one at a time, the median latency, and how many rows shared a pass. A number counts on a quiet machine only.
"""

from __future__ import annotations

import argparse
import base64
import io
import random
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from gen.generator import Generator
from gen.serve.engine import ServingEngine
from gen.serve.http.server import make_server
from gen.serve.http.settings import ServerSettings
from gen.serve.models import ModelSource

PROMPTS = ["a red heart", "a cat", "a blue car", "a tree", "a yellow flower", "a house on a hill"]
SAMPLE = 8  # pictures that are compared


def request(draw: random.Random) -> dict[str, Any]:
    """One of many kinds."""
    body: dict[str, Any] = {"prompt": draw.choice(PROMPTS), "seed": draw.randrange(1 << 30)}
    body["num_inference_steps"] = draw.choice([4, 6, 8, 12])
    body |= draw.choice([{}, {"sampler": "euler_a"}, {"sampler": "unipc"}, {"cache": "reuse"}, {"guidance_scale": 7.0}])
    return body


def memory() -> float:
    """Resident MB of this process."""
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def client(url: str, number: int, end: float, done: list, errors: list) -> None:
    draw = random.Random(number)
    with httpx.Client(timeout=600, headers={"X-API-Key": f"client-key-{number % 8}"}) as http:
        while time.monotonic() < end:
            body, began = request(draw), time.monotonic()
            answer = http.post(f"{url}/v1/pictures", json=body)
            if answer.status_code == 429:
                time.sleep(min(float(answer.headers["Retry-After"]), 2.0))
            elif answer.status_code != 200:
                errors.append(answer.text)
            else:
                done.append((body, time.monotonic() - began, answer.json()["pictures"][0]["image"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="default")
    parser.add_argument("--max-rows", type=int, default=32)
    asked = parser.parse_args()
    generator = Generator.from_pretrained(asked.model)
    engine = ServingEngine({"default": ModelSource(lambda: generator)}, max_rows=asked.max_rows, max_queue=4 * asked.clients)
    keys = tuple(f"client-key-{i}" for i in range(8))
    server = make_server(engine, ServerSettings(port=0, api_keys=keys))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    done: list = []
    errors: list = []
    began, halfway = time.monotonic(), []
    timer = threading.Timer(asked.seconds / 2, lambda: halfway.append(memory()))
    timer.start()
    rows = [threading.Thread(target=client, args=(url, i, began + asked.seconds, done, errors)) for i in range(asked.clients)]
    for row in rows:
        row.start()
    for row in rows:
        row.join()
    spent, after = time.monotonic() - began, memory()
    passes = engine.pool.loaded["default"].collector.passes
    server.should_exit = True
    thread.join()

    sample = random.Random(0).sample(done, min(SAMPLE, len(done)))
    equal, alone = 0, []
    for body, _, png in sample:
        start = time.monotonic()
        image = generator(**body, progress=False).images[0]
        alone.append(time.monotonic() - start)
        equal += np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))))
    print(f"{len(done)} pictures of {asked.clients} clients in {spent:.0f} s, {len(errors)} errors {errors[:1]}")
    print(f"{equal} of {len(sample)} compared are the direct pictures, to the pixel")
    print(f"{60 * len(done) / spent:.1f} pictures a minute; one at a time {60 / statistics.mean(alone):.1f}")
    print(f"latency {statistics.median(latency for _, latency, _ in done):.2f} s (median)")
    print(f"memory {halfway[0]:.0f} MB halfway, {after:.0f} MB at the end")
    print(f"{100 * passes.shared / passes.rows:.0f} % of rows shared a pass")


if __name__ == "__main__":
    main()
