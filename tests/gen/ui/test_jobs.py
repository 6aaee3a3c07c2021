"""The queue by itself: order, progress, stopping, errors; no page and no model."""

from __future__ import annotations

import threading

import pytest

from gen.ui.jobs import JobQueue, JobState


class Worker:
    """Work that waits at every step until the test lets it go on."""

    def __init__(self):
        self.go = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)
        self.order: list[str] = []

    def __call__(self, call, watch):
        self.order.append(call)
        self.begun.release()
        for step in range(4):
            assert self.go.acquire(timeout=20)
            if watch.stopped:
                return
            if call == "broken":
                raise ValueError("It is broken; mend it.")
            if call == "defect":
                raise KeyError("x")
            if call == "exit":
                raise SystemExit(3)
            watch.step(step + 1, 4, (step + 1) / 4, b"preview")
            if step == 1:
                watch.made(f"{call}.png")
                watch.note("said once")
                watch.note("said once")


@pytest.fixture
def worker():
    return Worker()


@pytest.fixture
def jobs(worker):
    times = iter(range(0, 10_000, 2))
    queue = JobQueue(worker, clock=lambda: float(next(times)))
    yield queue
    for _ in range(100):
        worker.go.release()
    queue.close()
    assert not queue._thread.is_alive()


def test_jobs_are_done_one_after_the_other(jobs, worker):
    first, second = jobs.add("a", "A"), jobs.add("b", "B")
    worker.begun.acquire(timeout=20)
    assert (first.state, second.state) == (JobState.RUNNING, JobState.QUEUED)
    assert jobs.running is first and jobs.waiting() == [second]
    worker.go.release(8)
    assert jobs.wait(20)
    assert worker.order == ["a", "b"]
    assert [job.state for job in (first, second)] == [JobState.DONE] * 2
    assert jobs.over() == [second, first] and first.pictures == ["a.png"] and first.notes == ["said once"]
    assert first.preview is None and first.previews == 4 and first.seconds > 0


def test_time_left_is_of_the_steps_and_not_of_what_comes_before_them(jobs, worker):
    job, version = jobs.add("a", ""), -1
    worker.begun.acquire(timeout=20)
    left = []
    for step in range(1, 5):
        worker.go.release()
        with jobs._condition:
            assert jobs._condition.wait_for(lambda step=step: job.over or job.progress.step == step, 20)
            left.append(job.progress.left)
            assert jobs.version > version
            version = jobs.version
    # the clock moves by two at every look: two for each quarter after the first
    assert left[:3] == [None, 4.0, 2.0]


def test_waiting_jobs_are_moved_and_cancelled(jobs, worker):
    jobs.add("a", "")
    worker.begun.acquire(timeout=20)
    b, c, d = (jobs.add(name, "") for name in "bcd")
    assert jobs.move(d.id, -2) and jobs.waiting() == [d, b, c]
    assert jobs.move(d.id, -5) and jobs.waiting() == [d, b, c]
    assert jobs.move(d.id, 1) and jobs.waiting() == [b, d, c]
    assert jobs.cancel(b.id) and b.state is JobState.STOPPED
    assert not jobs.cancel(b.id) and not jobs.move(b.id, 1) and not jobs.cancel(999)
    worker.go.release(12)
    assert jobs.wait(20)
    assert worker.order == ["a", "d", "c"]
    assert jobs.find(c.id) is c
    jobs.forget(c.id)
    assert jobs.find(c.id) is None


def test_a_stopped_job_keeps_what_it_made_and_the_next_one_begins(jobs, worker):
    first, second = jobs.add("a", ""), jobs.add("b", "")
    worker.begun.acquire(timeout=20)
    worker.go.release(2)
    with jobs._condition:
        assert jobs._condition.wait_for(lambda: first.pictures, 20)
    assert jobs.stop()
    worker.go.release()
    worker.begun.acquire(timeout=20)
    assert first.state is JobState.STOPPED and first.pictures == ["a.png"]
    worker.go.release(4)
    assert jobs.wait(20)
    assert second.state is JobState.DONE
    assert not jobs.stop()


@pytest.mark.parametrize(
    ("call", "words"), [("broken", "It is broken; mend it."), ("defect", "KeyError"), ("exit", "SystemExit")]
)
def test_an_error_is_a_sentence_and_the_thread_goes_on(jobs, worker, call, words):
    failed, after = jobs.add(call, ""), jobs.add("a", "")
    worker.go.release(8)
    assert jobs.wait(20)
    assert failed.state is JobState.FAILED and words in failed.error and "Traceback" not in failed.error
    assert after.state is JobState.DONE


def test_a_closed_queue_begins_nothing(worker):
    queue = JobQueue(worker)
    running, waiting = queue.add("a", ""), queue.add("b", "")
    worker.begun.acquire(timeout=20)
    threading.Thread(target=lambda: (queue._stop.wait(20), worker.go.release(10))).start()
    queue.close()
    assert running.state is JobState.STOPPED and waiting.state is JobState.STOPPED and worker.order == ["a"]
    with pytest.raises(ValueError, match="is ending"):
        queue.add("c", "")
