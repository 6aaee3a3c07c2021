"""A batch on Ray: the pictures of one process, also where an actor is killed on the way."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from gen.batch.ray_pool import RayOptions, run_on_ray, units_of
from gen.batch.rows import PictureJob
from gen.batch.settings import BatchSettings
from gen.calls.call import Call
from tests.gen.batch.common import PROMPTS, contents, make, mixed_rows, no_bar, write_rows


def test_units_hold_jobs_of_equal_settings():
    jobs = [PictureJob(i, i, Call({"prompt": f"{i}", "seed": i, "num_inference_steps": 1 + i % 2})) for i in range(40)]
    units = list(units_of(jobs, 8))
    assert sorted(job.index for unit in units for job in unit) == list(range(40))
    assert max(map(len, units)) == 8 and len(units) == 5
    assert sum(len({job.index % 2 for job in unit}) > 1 for unit in units) <= 1  # the one where the settings change


def test_what_ray_cannot_begin_is_said(tmp_path):
    for wrong in ({"actors": 0}, {"cpus_per_actor": 0}):
        with pytest.raises(ValueError, match="whole number"):
            RayOptions(**wrong)
    rows = write_rows(tmp_path / "rows.jsonl", mixed_rows())
    settings = BatchSettings(str(rows), tmp_path / "out", model="tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        with pytest.raises(ValueError, match=r"needs the package ray: .*\[ray\]"):
            run_on_ray(settings, RayOptions(), progress=no_bar, say=print)
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(ValueError, match=f"No Ray cluster answers at '127.0.0.1:{port}'"):
        run_on_ray(settings, RayOptions(f"127.0.0.1:{port}"), progress=no_bar, say=print)


def descendants() -> dict[int, str]:
    """pid -> title of every process that this one started, or that one of those did: others' are left alone."""
    parents, titles = dict[int, int](), dict[int, str]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            titles[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, more = {os.getpid()}, True
    while more:
        new = {pid for pid, parent in parents.items() if parent in found} - found
        found, more = found | new, bool(new)
    return {pid: titles[pid] for pid in found - {os.getpid()} if pid in titles}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for actors in /proc")
def test_two_actors_one_of_them_killed(tmp_path, tiny_model, monkeypatch):
    """The same files as one process makes; no process left afterwards."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # the paths of its sockets must be short
    prompts = [{"prompt": f"{PROMPTS[i % len(PROMPTS)]} {i}", "steps": 10 + i % 2} for i in range(150)]
    rows = write_rows(tmp_path / "rows.jsonl", [*mixed_rows(), *prompts])
    settings = {"model": str(tiny_model), "device": "cpu", "dtype": "float32", "seed": 5, "batch_size": 4}
    make(rows, tmp_path / "alone", None, **settings)
    killed: list[int] = []
    seen: dict[int, str] = {}

    def kill_one() -> None:
        """Once pictures come, the newest actor that is at work."""
        while not list((tmp_path / "ray").glob("*.png")):
            time.sleep(0.02)
        seen.update(descendants())
        actors = [pid for pid, title in seen.items() if title.startswith("ray::MapWorker")]
        if actors:
            os.kill(max(actors), signal.SIGKILL)
            killed.append(max(actors))

    killer = threading.Thread(target=kill_one, daemon=True)
    killer.start()
    options = RayOptions("local", actors=2)
    result = run_on_ray(BatchSettings(str(rows), tmp_path / "ray", **settings), options, progress=no_bar, say=print)
    killer.join(5)
    assert killed and (result.there, result.failed) == (157, 1)
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
    assert not ray.is_initialized()
    again = make(rows, tmp_path / "ray", None, **settings)  # one process goes on where actors began
    assert again.made == 0
    deadline = time.monotonic() + 60
    assert any("raylet" in title for title in seen.values())
    while (left := [pid for pid in seen if Path(f"/proc/{pid}").exists()]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left
