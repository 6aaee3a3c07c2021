"""Replicas on Ray Serve: the bytes of one process, also where a replica is killed; nothing is left running afterwards."""

from __future__ import annotations

import base64
import os
import pickle
import signal
import threading
import time
from pathlib import Path

import pytest

from gen.batch.ray_pool import RayOptions, cluster
from gen.io.errors import CheckpointError
from gen.serve.collector import Passes
from gen.serve.failures import said
from gen.serve.jobs import DeadlineExceeded, JobEvent, NoSuchModel, QueueFull, ServeJob
from gen.serve.replicas import PictureReplica, RemoteFailure, ReplicaEvent, ReplicatedEngine, portable, sum_of
from tests.gen.batch.test_ray import descendants
from tests.gen.serve.conftest import client_of, make_engine
from tests.gen.serve.test_http import events, sentence_of


class OneCluster:
    """What an engine asks of Ray before it begins."""

    @staticmethod
    def cluster_resources():
        return {"CPU": 4.0}


class Handle:
    """A deployment of two replicas, the first of which dies after `told` events."""

    def __init__(self, told, pictures=2):
        self.told, self.pictures, self.asked, self.interrupted = told, pictures, [], []

    def options(self, **options):
        return self

    def broadcast(self, method, *arguments):
        self.interrupted += arguments

    def remote(self, asked, seconds):
        self.asked.append((asked, seconds))
        return self.answer(dies=len(self.asked) == 1)

    def answer(self, dies):
        happens = [JobEvent("started"), *(JobEvent("picture", i, image=f"{i}", recipe=None) for i in range(self.pictures))]
        for number, event in enumerate([*happens, JobEvent("done")]):
            if dies and number == self.told:
                from ray.exceptions import RayActorError

                raise RayActorError
            yield ReplicaEvent(event, number, 3, ("a note",))


def engine_with(handle, **limits):
    engine = ReplicatedEngine(OneCluster, ["tiny"], ["tiny"], {}, RayOptions("local", 2), **limits)
    engine._handle = handle
    engine._ready.set()
    return engine


@pytest.mark.parametrize("told", range(4))
def test_another_replica_goes_on_where_one_died(told):
    pytest.importorskip("ray")
    seen, handle = [], Handle(told)
    engine = engine_with(handle)
    job = engine.submit(ServeJob("tiny", "one", {"prompt": "a"}, [5, 6], deadline=engine.clock() + 60, listener=seen.append))
    assert [image for image, _ in job.result(60)] == ["0", "1"] and job.state == "done" and job.notes == ["a note"]
    assert len(handle.asked) == 2 and handle.asked[0][0] == handle.asked[1][0] and 0 < handle.asked[1][1] <= 60
    assert [event.index for event in seen if event.kind == "picture"] == [0, 1]  # each once
    assert [event.kind for event in seen].count("done") == 1


def test_the_front_bounds_the_queue():
    pytest.importorskip("ray")
    engine = engine_with(None, max_queue=3, max_rows=2)
    engine._ready.clear()
    for _ in range(5):  # three that wait, and one picture at work in each replica
        engine.submit(ServeJob("tiny", "one", {}, [1]))
    with pytest.raises(QueueFull, match="3 pictures wait and 3 may"):
        engine.submit(ServeJob("tiny", "one", {}, [1]))
    with pytest.raises(NoSuchModel, match="Did you mean 'tiny'"):
        engine.submit(ServeJob("tinny", "one", {}, [1]))
    assert len(engine.jobs()) == 5
    engine._ready.set()


def test_jobs_that_wait_for_replicas_end_in_time_or_when_they_are_dropped():
    pytest.importorskip("ray")
    engine = engine_with(None)
    engine._ready.clear()
    late = engine.submit(ServeJob("tiny", "one", {}, [1], deadline=engine.clock() + 0.05))
    with pytest.raises(DeadlineExceeded, match="not done by its deadline"):
        late.result(30)
    dropped = engine.submit(ServeJob("tiny", "one", {}, [1], deadline=engine.clock() + 600))
    engine.cancel(dropped)
    assert dropped.finished.wait(30) and dropped.state == "cancelled"


@pytest.mark.parametrize(("error", "status"), [
    (ValueError("No such thing."), 400), (QueueFull(3, 3, 5), 429), (RuntimeError("secret"), 500),
    (CheckpointError("/secret/place", "is damaged"), 500), (OSError(2, "No such file", "/secret"), 500),
    (TypeError("'int' object is not iterable"), 400),
    (RuntimeError("DefaultCPUAllocator: not enough memory"), 503),
])  # fmt: skip
def test_errors_cross_processes(error, status):
    found = said(pickle.loads(pickle.dumps(portable(error))))
    assert found[0] == status == said(error)[0] and "secret" not in found[1]
    assert found[1] == said(error)[1]


def test_sums():
    one, other = Passes(1, 4, 2, {"hooks": 1}), Passes(2, 8, 6, {"hooks": 2, "shapes": 1})
    assert sum_of(one, other) == Passes(3, 12, 8, {"hooks": 3, "shapes": 1})
    assert portable(None) is None and RemoteFailure("a").status == 400 and PictureReplica.__doc__


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for replicas in /proc")
def test_two_replicas_one_of_them_killed(tiny_model, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # the paths of its sockets must be short
    bodies = [{"prompt": "a cat", "seed": seed, "num_inference_steps": 4 + seed % 2} for seed in range(8)]
    bodies += [
        {"prompt": "a dog", "seed": 1, "sampler": "euler_a", "num_images_per_prompt": 2},
        {"prompt": "a", "hires": 2, "seed": 2},
    ]
    with client_of(make_engine(tiny_model, names=("tiny",))) as client:
        expected = [pictures_of(client.post("/v1/pictures", json=body)) for body in bodies]
    seen: dict[int, str] = {}
    arguments = {"device": "cpu", "dtype": "float32"}
    options = RayOptions("local", actors=2)
    with cluster(options) as module:
        assert ray.cluster_resources()["CPU"] == max(os.cpu_count() or 1, 2) + 2
        engine = ReplicatedEngine(module, ["tiny"], [f"tiny={tiny_model}"], arguments, options)
        with client_of(engine) as client:
            while client.get("/health/ready").status_code != 200:
                time.sleep(0.2)
            made: dict[int, list[bytes]] = {}

            def ask(number):
                made[number] = pictures_of(client.post("/v1/pictures", json=bodies[number]))

            together(ask, range(len(bodies)))
            assert [made[number] for number in range(len(bodies))] == expected
            refused = client.post("/v1/pictures", json={"prompt": "a cat", "sampler": "eulr"})
            assert refused.status_code == 400 and "did you mean 'euler'" in sentence_of(refused)
            long = {"prompt": "a cat", "num_inference_steps": 200, "seed": 1}
            job = client.post("/v1/pictures", json={**long, "wait": False}).json()
            assert client.delete(f"/v1/jobs/{job['id']}").json()["status"] == "cancelled"
            found = events(client.post("/v1/pictures", json={**long, "num_inference_steps": 3, "stream": True, "previews": 1}))
            assert [name for name, _ in found] == ["queued", "started", "step", "step", "step", "picture", "done"]
            seen.update(descendants())
            replicas = [pid for pid, title in seen.items() if "ServeReplica" in title]
            assert len(replicas) == 2
            killer = threading.Timer(0.5, os.kill, (replicas[0], signal.SIGKILL))
            killer.start()
            made.clear()
            together(ask, range(len(bodies)))
            killer.join()
            together(ask, range(len(bodies)))
            assert [made[number] for number in range(len(bodies))] == expected
            end = time.monotonic() + 30
            while engine.numbers().pictures < 1 and time.monotonic() < end:
                time.sleep(0.2)
            assert engine.numbers().passes["tiny"].rows > 0
    assert not ray.is_initialized()
    end = time.monotonic() + 60
    while (left := [pid for pid in seen if Path(f"/proc/{pid}").exists()]) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left


def pictures_of(answer):
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(one["image"]) for one in answer.json()["pictures"]]


def together(work, numbers):
    threads = [threading.Thread(target=work, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
