"""Who is served when: fairness, limits, cancellation, deadlines, models that come and go. Rounds are counted, no clock is."""

from __future__ import annotations

import threading

import pytest

from gen.generator import Generator
from gen.io.threads import lock_of
from gen.serve.collector import Collector
from gen.serve.engine import GUESS, ServingEngine
from gen.serve.jobs import DeadlineExceeded, QueueFull, ServeError, Unavailable
from gen.serve.models import HOLD, ModelSource, size_of
from tests.gen.serve.test_engine import QUICK, alone, engine_of, job, pixels, run_all
from tests.gen.test_adapters_generator import DENOISER, lora


def test_clients_take_turns(tiny):
    """One client asks for six pictures before another asks for two; rows are for one picture at a time."""
    order = []
    engine = engine_of(tiny, max_rows=GUESS)
    note = {"listener": lambda event: event.kind == "picture" and order.append(event.recipe.seed)}
    engine.submit(job([1, 2, 3, 4], client="one", **note))
    engine.submit(job([5, 6], client="one", **note))
    engine.submit(job([11], client="two", **note))
    engine.submit(job([12], client="two", **note))
    engine.submit(job([21], client="three", **note))
    run_all(engine)
    assert order == [1, 11, 21, 2, 12, 3, 4, 5, 6]


def test_rows_are_bounded(tiny):
    engine = engine_of(tiny, max_rows=3 * GUESS)
    jobs = [engine.submit(job([i, i + 100], client=str(i))) for i in range(8)]
    engine.round()
    engine.pool.wait()
    while engine.round():
        assert sum(run.rows for run in engine.runs) <= 3 * GUESS
    assert all(len(one.result(0)) == 2 for one in jobs)


def test_pictures_join_and_leave_between_steps(tiny):
    """A request that comes while another is at work shares its passes at once, and leaves before it."""
    engine = engine_of(tiny)
    long = engine.submit(job(1, num_inference_steps=12))
    for _ in range(4):
        engine.round()
        engine.pool.wait()
    passes = engine.pool.loaded["tiny"].collector.passes
    assert not passes.shared
    short = engine.submit(job(2, num_inference_steps=2))
    while not short.is_over:
        engine.round()
    assert passes.shared and not long.is_over
    run_all(engine)
    assert pixels(long.result(0)[0][0]) == pixels(alone(tiny, long)[0][0])
    assert pixels(short.result(0)[0][0]) == pixels(alone(tiny, short)[0][0])


def test_a_full_queue_says_when_to_come_back(tiny):
    engine = engine_of(tiny, max_queue=3)
    engine.submit(job([1, 2]))
    with pytest.raises(QueueFull, match=r"2 pictures wait and 3 may; ask again in \d+ second") as refused:
        engine.submit(job([3, 4]))
    assert refused.value.status == 429 and 1 <= refused.value.retry_after <= 120
    engine.submit(job(5))
    run_all(engine)
    engine.submit(job([6, 7, 8]))


def test_cancelled_rows_are_gone_within_a_step(tiny):
    engine = engine_of(tiny)
    events = []
    gone = engine.submit(job([1, 2], num_inference_steps=50, listener=lambda event: events.append(event.kind)))
    stays = engine.submit(job(3))
    for _ in range(3):
        engine.round()
        engine.pool.wait()
    assert len(engine.runs) == 3
    threads = [run.thread for run in engine.runs if run.job is gone]
    engine.cancel(gone)
    engine.round()
    assert [run.job for run in engine.runs] == [stays] and not any(thread.alive for thread in threads)
    run_all(engine)
    assert events[-1] == "cancelled" and events.count("cancelled") == 1 and gone.result(0) == []
    assert pixels(stays.result(0)[0][0]) == pixels(alone(tiny, stays)[0][0])


def test_an_interrupted_job_shows_what_it_came_to(tiny):
    engine = engine_of(tiny, max_rows=GUESS)
    one = engine.submit(job([1, 2], num_inference_steps=20))
    while not one.step:
        engine.round()
        engine.pool.wait()
    engine.interrupt(one)
    run_all(engine)
    [(image, recipe)] = one.result(0)  # the second had not begun
    assert one.state == "interrupted" and 1 <= recipe.stopped_at < 20

    def stop(generator, step, t, given):
        generator.interrupt = step + 1 == recipe.stopped_at

    same = tiny("a cat", seed=1, callback_on_step_end=stop, progress=False, **{**QUICK, "num_inference_steps": 20})
    assert pixels(image) == pixels(same.images[0])


def test_deadlines(tiny):
    now = [0.0]
    engine = engine_of(tiny, clock=lambda: now[0], max_rows=GUESS)
    late = engine.submit(job(1, num_inference_steps=50, deadline=10.0))
    waits = engine.submit(job(2, deadline=5.0))
    good = engine.submit(job(3, deadline=1000.0))
    for _ in range(3):
        engine.round()
        engine.pool.wait()
    now[0] = 6.0
    engine.round()
    assert waits.is_over and not late.is_over
    now[0] = 10.0
    run_all(engine)
    for one in (late, waits):
        with pytest.raises(DeadlineExceeded, match="not done by its deadline"):
            one.result(0)
    assert len(good.result(0)) == 1 and engine.counts.failed == 2


def test_an_error_is_its_own_runs(tiny):
    """Also where it comes in the middle, and in a pass that others share."""
    engine = engine_of(tiny)

    def broken(images, condition):
        raise ValueError("The energy is broken.")

    bad = engine.submit(job(1, guide=broken))
    worse = engine.submit(job(2, sampler="no such"))
    good = engine.submit(job(3))
    run_all(engine)
    with pytest.raises(ValueError, match="energy is broken"):
        bad.result(0)
    with pytest.raises(ValueError, match="no such"):
        worse.result(0)
    assert pixels(good.result(0)[0][0]) == pixels(alone(tiny, good)[0][0])


def test_a_pass_that_fails_is_made_in_halves(tiny, monkeypatch):
    engine = engine_of(tiny)
    jobs = [engine.submit(job(seed)) for seed in range(4)]
    engine.round()
    engine.pool.wait()
    engine.round()
    collector = type(engine.pool.loaded["tiny"].collector)
    whole = collector._forward

    def small(self, group):
        if len(group) > 2:
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return whole(self, group)

    monkeypatch.setattr(collector, "_forward", small)
    run_all(engine)
    monkeypatch.undo()
    assert all(pixels(one.result(0)[0][0]) == pixels(alone(tiny, one)[0][0]) for one in jobs)


def test_unknown_models_and_adapters_are_refused(tiny, tmp_path):
    engine = engine_of(tiny, adapters={"style": tmp_path / "style.safetensors"})
    one = job(1)
    one.model = "tinny"
    with pytest.raises(ServeError, match=r"no model 'tinny' here; there are tiny\. Did you mean 'tiny'"):
        engine.submit(one)
    for refused in (job(1, adapters={"stile": 1.0}), job(1, prompt="a cat <lora:stile:1>")):
        with pytest.raises(ServeError, match=r"no LoRA 'stile' here; there are style\. Did you mean 'style'"):
            engine.submit(refused)


def test_other_threads_wait_for_the_engine_and_it_for_them(tiny):
    engine = engine_of(tiny)
    one = engine.submit(job(1))
    for _ in range(2):
        engine.round()
        engine.pool.wait()
    taken = []
    thread = threading.Thread(target=lambda: taken.append(lock_of(tiny.network).acquire(blocking=False)))
    thread.start()
    thread.join()
    assert taken == [False] and engine.runs
    run_all(engine)
    thread = threading.Thread(target=lambda: taken.append(tiny("a cat", seed=1, num_inference_steps=1, progress=False)))
    thread.start()
    thread.join(60)
    assert len(taken) == 2 and one.result(0)


def models(folders, memory, clock):
    opened = []

    def source(name, folder):
        def open_it():
            opened.append(name)
            return Generator.from_pretrained(folder, "cpu", "float32")

        return ModelSource(open_it, size)

    size = size_of(Generator.from_pretrained(folders[0], "cpu", "float32"))
    names = [f"m{i}" for i in range(len(folders))]
    sources = {name: source(name, folder) for name, folder in zip(names, folders, strict=True)}
    return ServingEngine(sources, memory=None if memory is None else round(memory * size), max_rows=8, clock=clock), opened


def of_model(name, seed, **more):
    one = job(seed, **more)
    one.model = name
    return one


def settle(engine, until):
    for _ in range(1000):
        engine.round()
        engine.pool.wait()
        if until():
            return
    raise AssertionError("The engine does not get there.")


def test_models_share_the_memory(tiny_model):
    """Two of three fit. The one used longest ago goes; one at work stays, begins nothing more, and goes afterwards."""
    now = [0.0]
    engine, opened = models([tiny_model] * 3, 2.5, lambda: now[0])
    first = [engine.submit(of_model(name, 1)) for name in ("m0", "m1")]
    settle(engine, lambda: all(one.is_over for one in first))
    again = engine.submit(of_model("m0", 2))
    settle(engine, lambda: again.is_over)
    third = engine.submit(of_model("m2", 3))
    settle(engine, lambda: third.is_over)
    assert opened == ["m0", "m1", "m2"] and set(engine.pool.loaded) == {"m0", "m2"}  # m1 was used before m0
    busy = [engine.submit(of_model(name, 4, num_inference_steps=40)) for name in ("m0", "m2")]
    for _ in range(3):
        engine.round()
    waits, behind = engine.submit(of_model("m1", 5)), engine.submit(of_model("m0", 6))
    engine.round()
    assert set(engine.pool.loaded) == {"m0", "m2"} and waits.state == "loading"
    now[0] += HOLD
    settle(engine, lambda: waits.is_over)
    assert all(one.result(0) for one in busy) and engine.pool.evictions >= 2
    settle(engine, lambda: behind.is_over)
    images = {pixels(one.result(0)[0][0]) for one in (*first, again, third, waits, behind)}
    assert len(images) == 5  # of m0 and m1, which are one model, with one seed


def test_what_cannot_be_opened_fails_its_own_jobs(tiny_model, tmp_path):
    engine, _ = models([tiny_model, tmp_path / "nothing"], None, lambda: 0.0)
    bad, good = engine.submit(of_model("m1", 1)), engine.submit(of_model("m0", 1))
    settle(engine, lambda: bad.is_over and good.is_over)
    with pytest.raises(Unavailable, match="model 'm1' cannot be opened"):
        bad.result(0)
    assert good.result(0)
    small, _ = models([tiny_model], 0.5, lambda: 0.0)
    large = small.submit(of_model("m0", 1))
    settle(small, lambda: large.is_over)
    with pytest.raises(Unavailable, match="raise --memory"):
        large.result(0)


def test_adapters_are_let_go_of(tiny_model, tmp_path, monkeypatch):
    from gen.adapters import Adapter, write_adapter

    monkeypatch.setattr("gen.serve.models.MAX_ADAPTERS", 2)
    files = {
        name: write_adapter(Adapter(name, lora(i, *DENOISER)), tmp_path / f"{name}.safetensors", "diffusers")
        for i, name in enumerate("abcd")
    }
    engine = engine_of(Generator.from_pretrained(tiny_model, "cpu", "float32"), adapters=files)
    for name in "abcad":
        one = engine.submit(job(1, adapters={name: 1.0}))
        run_all(engine)
        assert one.result(0)[0][1].adapters == {name: 1.0}
    generator = engine.pool.loaded["tiny"].generator
    assert list(generator.loaded_adapters.loaded) == ["a", "d"] and not generator.adapters


def test_closing_finishes_what_runs_and_refuses_more(tiny):
    engine = engine_of(tiny, max_rows=GUESS)
    begun = threading.Event()
    running = engine.submit(job(1, num_inference_steps=10, listener=lambda event: event.kind == "step" and begun.set()))
    waiting = engine.submit(job(2))
    engine.start()
    assert begun.wait(60)
    engine.close(60)
    assert running.state == "done" and waiting.state == "cancelled"
    with pytest.raises(Unavailable, match="stopping"):
        engine.submit(job(3))
    stopped = engine_of(tiny)
    begun.clear()
    long = stopped.submit(job(1, num_inference_steps=900, listener=lambda event: event.kind == "step" and begun.set()))
    stopped.start()
    assert begun.wait(60)
    stopped.close(0)
    assert long.state == "cancelled" and not stopped.runs


def test_previews_change(tiny):
    previews = []
    engine = engine_of(tiny)
    one = engine.submit(job(1, num_inference_steps=4, previews=2, listener=lambda event: previews.append(event.preview)))
    run_all(engine)
    shown = [preview for preview in previews if preview is not None]
    assert len(shown) == 2 and pixels(shown[0]) != pixels(shown[1]) and shown[0].size == (8, 8)
    assert pixels(one.result(0)[0][0]) == pixels(alone(tiny, one)[0][0])


def test_a_defect_fails_what_runs_and_no_more(tiny, monkeypatch):
    """Of a round, or of somebody's listener."""

    def broken(event):
        raise RuntimeError("The listener is broken.")

    engine = engine_of(tiny)
    groups = Collector.groups
    monkeypatch.setattr(Collector, "groups", lambda self, calls: 1 / 0)
    one = engine.submit(job(1, listener=broken))
    engine.start()
    with pytest.raises(ZeroDivisionError):
        one.result(60)
    monkeypatch.setattr(Collector, "groups", groups)
    two = engine.submit(job(2, listener=broken))
    assert pixels(two.result(60)[0][0]) == pixels(alone(tiny, two)[0][0])
    engine.close()
