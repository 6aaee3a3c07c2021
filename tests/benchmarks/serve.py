"""Mixed clients against a server: python -m tests.benchmarks.serve [--clients 32] [--seconds 120] [--model default].

Says errors, requests that were never answered, pictures that are not those of their request, resident memory at the start, in
the middle and at the end, pictures a minute beside the same requests one at a time, the median latency, how many rows shared a
pass, and how much sharing can give on this machine: equal pictures in one batch beside one at a time. A number counts on
a quiet machine only. Clients are a process of their own, as they are for a server: their work takes the server's cores but not
its interpreter. The table of the engine's time says what a round is made of, and so what more sharing could save.
"""

from __future__ import annotations

import argparse
import base64
import io
import multiprocessing
import random
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from gen.generator import Generator
from gen.serve.collector import Collector
from gen.serve.engine import ServingEngine
from gen.serve.http.server import make_server
from gen.serve.http.settings import ServerSettings
from gen.serve.models import ModelSource

PROMPTS = ["a red heart", "a cat", "a blue car", "a tree", "a yellow flower", "a house on a hill"]
SAMPLE = 16  # pictures that are compared with those of direct calls, and timed beside them
WARM = 12.0  # seconds from the beginning to the first reading of memory: kernels are looked for, caches are filled
KEYS = tuple(f"client-key-{i}" for i in range(8))


@dataclass
class Outcome:
    """What the clients saw. asked: requests sent. done: seconds of each answer. sample: (body, picture in base64) of some, each
    answer as likely as another. wrong: mixed-up answers."""

    asked: int = 0
    refused: int = 0
    done: list[float] = field(default_factory=list)
    sample: list[tuple[dict[str, Any], str]] = field(default_factory=list)
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    errors: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def answered(self, body: dict[str, Any], seconds: float, picture: str) -> None:
        self.done.append(seconds)
        place = self.draw.randrange(len(self.done))  # reservoir sampling
        if len(self.sample) < SAMPLE:
            self.sample.append((body, picture))
        elif place < SAMPLE:
            self.sample[place] = body, picture


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


def client(url: str, number: int, seconds: float, seen: Outcome, lock: threading.Lock) -> None:
    draw, end = random.Random(number), time.monotonic() + seconds
    with httpx.Client(timeout=600, headers={"X-API-Key": KEYS[number % len(KEYS)]}) as http:
        while time.monotonic() < end:
            body, began = request(draw), time.monotonic()
            with lock:
                seen.asked += 1
            try:
                answer = http.post(f"{url}/v1/pictures", json=body)
            except httpx.HTTPError as error:
                seen.errors.append(type(error).__name__)
                continue
            if answer.status_code == 429:
                with lock:
                    seen.refused += 1
                time.sleep(min(float(answer.headers["Retry-After"]), 2.0))
            elif answer.status_code != 200:
                seen.errors.append(answer.text)
            else:
                made = answer.json()["pictures"][0]
                with lock:
                    seen.answered(body, time.monotonic() - began, made["image"])
                said = {name: made["recipe"][name] for name in ("prompt", "seed", "num_inference_steps")}
                if said != {name: body[name] for name in said}:
                    seen.wrong.append(f"{body} -> {said}")


def clients(url: str, count: int, seconds: float, outcome: Any) -> None:
    """All of them, in a process of their own. outcome: a queue."""
    seen, lock = Outcome(), threading.Lock()
    rows = [threading.Thread(target=client, args=(url, i, seconds, seen, lock)) for i in range(count)]
    for row in rows:
        row.start()
    for row in rows:
        row.join()
    outcome.put(seen)


class EngineTimes:
    """Seconds of the engine's thread by part: forward passes, decoding, and the runs' own code (solver, guidance, text)."""

    def __init__(self) -> None:
        self.spent = {"forward passes": 0.0, "decoding": 0.0, "the runs' own code": 0.0}
        self._watch(Collector, "_forward", "forward passes")
        self._watch(Collector, "_decode", "decoding")
        self._watch(ServingEngine, "_go_on", "the runs' own code")

    def _watch(self, owner: type, method: str, part: str) -> None:
        whole = getattr(owner, method)

        def timed(*given: Any) -> Any:
            began = time.perf_counter()
            try:
                return whole(*given)
            finally:
                self.spent[part] += time.perf_counter() - began

        setattr(owner, method, timed)

    def report(self, seconds: float) -> None:
        print("the engine's time:")
        rest = seconds - sum(self.spent.values())
        for part, spent in {**self.spent, "joining, waiting for requests and for the interpreter": rest}.items():
            print(f"  {part:54} {spent / seconds:6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--model", default="default")
    parser.add_argument("--max-rows", type=int, default=32)
    asked = parser.parse_args()
    generator, times = Generator.from_pretrained(asked.model), EngineTimes()
    engine = ServingEngine({"default": ModelSource(lambda: generator)}, max_rows=asked.max_rows, max_queue=4 * asked.clients)
    server = make_server(engine, ServerSettings(port=0, api_keys=KEYS))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    readings: list[float] = []
    context = multiprocessing.get_context("spawn")
    outcome = context.Queue()
    process = context.Process(target=clients, args=(url, asked.clients, asked.seconds, outcome))
    process.start()
    began = time.monotonic()
    for moment in (min(WARM, asked.seconds / 4), asked.seconds / 2, asked.seconds * 0.95):
        threading.Timer(moment, lambda: readings.append(memory())).start()
    seen = outcome.get()
    spent = time.monotonic() - began
    process.join()
    outcome.close()
    passes = engine.pool.loaded["default"].collector.passes
    left = len(engine.jobs())
    server.should_exit = True
    thread.join()
    report(asked.clients, seen, spent, readings)
    print(f"{100 * passes.shared / passes.rows:.0f} % of rows shared a pass; {left} jobs left over")
    times.report(spent)
    compare(generator, seen, spent)
    bound(generator, asked.max_rows)


def report(clients: int, seen: Outcome, spent: float, readings: list[float]) -> None:
    lost = seen.asked - seen.refused - len(seen.done) - len(seen.errors)
    print(f"{len(seen.done)} pictures of {clients} clients in {spent:.0f} s; {seen.refused} refused by a full queue (429)")
    print(f"{len(seen.errors)} errors {seen.errors[:1]}, {lost} lost, {len(seen.wrong)} with another's recipe {seen.wrong[:1]}")
    print("memory " + ", ".join(f"{value:.0f} MB" for value in readings) + " (start, middle, end; resident)")
    print(f"latency {statistics.median(seen.done):.2f} s (median)")


def compare(generator: Generator, seen: Outcome, spent: float) -> None:
    """A sample against direct calls: their pixels, and their time one after another."""
    equal, alone = 0, []
    for body, file in seen.sample:
        start = time.monotonic()
        image = generator(**body, progress=False).images[0]
        alone.append(time.monotonic() - start)
        equal += np.array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(base64.b64decode(file)))))
    print(f"{equal} of {len(seen.sample)} compared are the direct pictures, to the pixel")
    print(f"{60 * len(seen.done) / spent:.1f} pictures a minute; one at a time {60 / statistics.mean(alone):.1f}")


def bound(generator: Generator, rows: int) -> None:
    """What one pass for many rows can give: equal pictures, `rows` in a batch beside one at a time, in turns."""
    rates: dict[int, list[float]] = {1: [], rows: []}
    for _ in range(3):
        for size, found in rates.items():
            start = time.monotonic()
            generator(PROMPTS[0], seeds=list(range(rows)), num_images_per_prompt=rows, batch_size=size, num_inference_steps=8,
                      progress=False)  # fmt: skip
            found.append(60 * rows / (time.monotonic() - start))
    one, many = (statistics.median(found) for found in rates.values())
    print(f"{rows} equal pictures in one batch: {many:.1f} a minute, one at a time {one:.1f}: {many / one:.2f} times")


if __name__ == "__main__":
    main()
