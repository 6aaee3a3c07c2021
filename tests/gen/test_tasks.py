"""The protocol of tasks: the table, what its methods do to a run, and what tasks say of one another."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import pytest
import torch

from gen.generator import Generator
from gen.pipeline.recipe import Recipe
from gen.pipeline.task_table import check_keywords
from gen.pipeline.types import SamplingBatch, Task, TaskTraits
from gen.tasks.declaration import Frame, TaskOptions, names_of
from gen.tasks.table import TASKS, TaskRow
from gen.tasks.training_free.options import TrainingFreeOptions
from samplers.noise import seeded_noise

IDLE, MARKS = TaskOptions(keywords=("idle",)), TaskOptions(keywords=("marks",))
CALL = {"seed": 3, "num_inference_steps": 2, "sampler": "euler", "progress": False, "output_type": "pt"}


@dataclass(frozen=True)
class Idle(Task):
    """Takes part and changes nothing."""

    @classmethod
    def from_call(cls, model, args, settings):
        return cls(), settings

    @classmethod
    def args_from_recipe(cls, model, recipe, given):
        return {name: given.get(name) for name in ("marks", "idle")}


@dataclass(frozen=True)
class Marks(Idle):
    """Notes every method that a run calls, and changes what comes by where that can be seen from outside."""

    calls: list

    @property
    def traits(self):
        return TaskTraits(unrecorded=("marks",))

    @classmethod
    def from_call(cls, model, args, settings):
        args["marks"].append("from_call")
        return cls(args["marks"]), replace(settings, levels=settings.levels[:1] + settings.levels[2:])

    def check(self, settings, recipe=None):
        self.calls.append(("check", sorted(settings.tasks), recipe is not None))

    def read_prompts(self, model, prompts, adapters, read):
        self.calls.append(("read", prompts))
        return read(["a dog"] * len(prompts))

    def prepare(self, batch):
        torch.testing.assert_close(batch.x, batch.noise * batch.settings.levels[0].sigma)
        self.calls.append("prepare")
        return batch

    def wrap_network(self, denoiser, batch):
        return _Noted(denoiser, "network", self.calls)

    def wrap_guided(self, denoiser, solver, batch):
        assert isinstance(batch, SamplingBatch) and batch.prompts == ["a cat"] and batch.seeds == [3] and batch.guided
        ends = batch.settings.levels
        assert torch.equal(batch.seeded_noise()(*ends), seeded_noise([3], batch.noise)(*ends))
        return _Noted(denoiser, "guided", self.calls), solver

    def decode(self, model, latents, crop, decode):
        return torch.zeros_like(decode(latents, crop))


@dataclass(frozen=True)
class _Noted:
    denoiser: object
    name: str
    calls: list

    @property
    def path(self):
        return self.denoiser.path

    def __call__(self, *arguments):
        self.calls.append(self.name)
        return self.denoiser(*arguments)


@pytest.fixture
def table(monkeypatch):
    """The closed table with two rows more: one file and one line each."""
    monkeypatch.setitem(TASKS, "marks", TaskRow(MARKS, f"{__name__}:Marks"))
    monkeypatch.setitem(TASKS, "idle", TaskRow(IDLE, f"{__name__}:Idle"))


def test_every_row_is_a_task_with_keywords_of_its_own_and_fields_of_a_recipe():
    others = {*inspect.signature(Generator.__call__).parameters, *inspect.signature(Generator.replay).parameters}
    keywords = [name for row in TASKS.values() for name in row.options.keywords]
    fields = [name for row in TASKS.values() for name in row.options.fields]
    assert len(set(keywords)) == len(keywords) and not set(keywords) & others
    assert len(set(fields)) == len(fields) and set(fields) <= set(Recipe.model_fields)
    for name, row in TASKS.items():
        task = row.load()
        assert issubclass(task, Task), name
        assert task.from_call.__func__ is not Task.from_call.__func__, name
        assert task.args_from_recipe.__func__ is not Task.args_from_recipe.__func__, name
        assert task.record is not Task.record or task.record_one is not Task.record_one, name
        for keyword in row.options.keywords:  # where a user looks for them
            assert keyword in Generator.__call__.__doc__ or keyword in names_of(TrainingFreeOptions), keyword


def test_methods_of_tasks_are_methods_of_a_generator(tiny):
    for method in ("panorama", "outpaint", "upscale", "restore", "layout", "ambiguous"):
        assert method in dir(tiny) and callable(getattr(tiny, method))
    with pytest.raises(AttributeError, match="no attribute 'panoramas'"):
        _ = tiny.panoramas


def test_a_task_that_changes_nothing_changes_nothing(tiny, table):
    plain, idle = tiny("a cat", **CALL), tiny("a cat", **CALL, idle=True)
    assert torch.equal(plain.images, idle.images) and plain.recipes == idle.recipes


def test_what_the_methods_of_a_task_do_to_a_run(tiny, table):
    calls: list = []
    made = tiny("a cat", **CALL, marks=calls, idle=True)
    step = ["guided", "network"]
    before = ["from_call", ("check", ["idle", "marks"], False), ("read", ["a cat"]), "prepare"]
    assert calls == [*before, *step]  # one of two steps is left
    assert made.nfe == 2 and not made.images.any()
    assert made.recipes[0].unrecorded == ("marks",) and made.recipes[0].prompt == "a cat"
    calls.clear()
    again = tiny.replay(made.recipes[0], "latent", progress=False, marks=calls)
    assert calls[:3] == ["from_call", ("check", ["marks"], False), ("check", ["marks"], True)]
    assert torch.equal(again.images, tiny("a cat", **{**CALL, "output_type": "latent"}, marks=[]).images)


def test_tasks_stand_as_in_the_table_and_are_made_from_the_outermost(tiny, monkeypatch):
    order: list = []
    for name in ("first", "second"):

        class One(Idle):
            own = name

            @classmethod
            def from_call(cls, model, args, settings):
                order.append(("from_call", cls.own, sorted(settings.tasks)))
                return cls(), settings

            def wrap_guided(self, denoiser, solver, batch):
                return _Noted(denoiser, self.own, order), solver

        monkeypatch.setitem(globals(), name.title(), One)
        monkeypatch.setitem(TASKS, name, TaskRow(TaskOptions(keywords=(name,)), f"{__name__}:{name.title()}"))
    tiny("a cat", **{**CALL, "num_inference_steps": 1}, first=1, second=1)
    assert order == [("from_call", "second", []), ("from_call", "first", []), "second", "first"]


def test_a_frame_is_what_the_network_sees(tiny, monkeypatch):
    @dataclass(frozen=True)
    class Arguments:
        wide: bool
        frame = Frame((32, 32), (20, 30))

    monkeypatch.setitem(TASKS, "wide", TaskRow(TaskOptions(Arguments, ("wide",)), f"{__name__}:Idle"))
    settings = None

    def noted(generator, items, given, *rest):
        nonlocal settings
        settings = given
        raise InterruptedError

    monkeypatch.setattr("gen.generator.make_all", noted)
    with pytest.raises(InterruptedError):
        tiny("a cat", **CALL, wide=True, height=36, width=44)  # no multiples of the patch
    assert (settings.height, settings.width, settings.seen, settings.shown) == (36, 44, (32, 32), (20, 30))


@pytest.mark.parametrize(("given", "message"), [
    ({"concept": "cat"}, "A call takes no 'concept'; did you mean 'concepts'?"),
    ({"gide": "x"}, "A call takes no 'gide'; did you mean 'guide'?"),
    ({"zzzzzz": 1}, "A call takes no 'zzzzzz'."),
    ({"vae_tile": 256}, "A call takes no 'vae_tile': it is for opening a model; give it to Generator.from_pretrained."),
])  # fmt: skip
def test_keywords_of_no_task_are_refused_as_by_any_function(tiny, given, message):
    for call in (
        lambda: tiny("a cat", **CALL, **given),
        lambda: check_keywords(given, inspect.signature(Generator.__call__).parameters),
    ):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == message


def test_less_memory_is_asked_of_every_task(tiny):
    @dataclass(frozen=True)
    class Large(Idle):
        count: int = 4

        def halve(self):
            return self if self.count == 1 else Large(self.count // 2)

    from gen.pipeline.settings import Sampling, make_settings

    settings = make_settings(tiny, Sampling(), None, None)
    assert settings.halve() is settings
    settings, seen = replace(settings, tasks={"large": Large(), "idle": Idle()}), []
    while settings.halve() is not settings:
        settings = settings.halve()
        seen.append(settings.tasks["large"].count)
    assert seen == [2, 1]
