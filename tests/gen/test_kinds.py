"""The protocol of kinds of runs: the table, what its methods do to a run, and what kinds say of one another."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import pytest
import torch

from gen.generator import Generator
from gen.pipeline import task as kinds
from gen.pipeline.recipe import Recipe
from gen.pipeline.task import KINDS, Batch, Frame, Kind, Row
from gen.tasks.tweak_options import TweakOptions
from samplers.noise import seeded_noise

CALL = {"seed": 3, "num_inference_steps": 2, "sampler": "euler", "progress": False, "output_type": "pt"}


@dataclass(frozen=True)
class Idle(Kind):
    """Takes part and changes nothing."""

    @classmethod
    def make(cls, generator, asked, settings):
        return cls()

    @classmethod
    def again(cls, generator, recipe, given):
        return {name: given.get(name) for name in ("marks", "idle")}


@dataclass(frozen=True)
class Marks(Idle):
    """Notes every method that a run calls, and changes what comes by where that can be seen from outside."""

    calls: list
    unrecorded = ("marks",)
    keeps = True

    @classmethod
    def make(cls, generator, asked, settings):
        return cls(asked["marks"])

    def change(self, generator, settings):
        self.calls.append("change")
        return replace(settings, levels=settings.levels[:1] + settings.levels[2:])

    def check(self, settings):
        self.calls.append(("check", sorted(settings.kinds)))

    def verify(self, recipe):
        self.calls.append("verify")

    def texts(self, prompts):
        return ["a dog"] * len(prompts)

    def read(self, generator, prompts, condition, adapters):
        self.calls.append(("read", prompts))
        return condition

    def network(self, denoiser, bar):
        return _Noted(denoiser, "network", self.calls)

    def inside(self, denoiser, batch):
        return _Noted(denoiser, "inside", self.calls)

    def around(self, denoiser, solver, batch):
        assert isinstance(batch, Batch) and batch.prompts == ["a cat"] and batch.seeds == [3] and batch.guided
        ends = batch.settings.levels
        assert torch.equal(batch.fresh()(*ends), seeded_noise([3], batch.noise)(*ends))
        return _Noted(denoiser, "around", self.calls), solver

    def begin(self, x, noise, level):
        torch.testing.assert_close(x, noise * level.sigma)
        self.calls.append("begin")
        return x

    def keep_known(self, images):
        return torch.zeros_like(images)


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
    monkeypatch.setitem(KINDS, "marks", Row(__name__, "Marks", ("marks",)))
    monkeypatch.setitem(KINDS, "idle", Row(__name__, "Idle", ("idle",)))


def test_every_row_is_a_kind_with_keywords_of_a_call_and_fields_of_a_recipe():
    parameters = {*inspect.signature(Generator.__call__).parameters, *TweakOptions.__annotations__}
    keywords = [name for row in KINDS.values() for name in row.keywords]
    fields = [name for row in KINDS.values() for name in row.fields]
    assert len(set(keywords)) == len(keywords) and set(keywords) <= parameters
    assert len(set(fields)) == len(fields) and set(fields) <= set(Recipe.model_fields)
    for name, row in KINDS.items():
        kind = row.load()
        assert issubclass(kind, Kind), name
        assert kind.make.__func__ is not Kind.make.__func__ and kind.again.__func__ is not Kind.again.__func__, name
        assert kind.recorded is not Kind.recorded, name


def test_a_kind_that_changes_nothing_changes_nothing(tiny, table):
    plain, idle = tiny("a cat", **CALL), tiny("a cat", **CALL, idle=True)
    assert torch.equal(plain.images, idle.images) and plain.recipes == idle.recipes


def test_what_the_methods_of_a_kind_do_to_a_run(tiny, table):
    calls: list = []
    made = tiny("a cat", **CALL, marks=calls, idle=True)
    step = ["around", "inside", "network"]
    assert calls == ["change", ("check", ["idle", "marks"]), ("read", ["a dog"]), "begin", *step]  # one of two steps is left
    assert made.nfe == 2 and not made.images.any()
    assert made.recipes[0].unrecorded == ("marks",) and made.recipes[0].prompt == "a cat"
    calls.clear()
    again = tiny.replay(made.recipes[0], "latent", progress=False, marks=calls)
    assert calls[:3] == ["change", ("check", ["marks"]), "verify"]
    assert torch.equal(again.images, tiny("a cat", **{**CALL, "output_type": "latent"}, marks=[]).images)


def test_kinds_stand_as_in_the_table_and_are_made_from_the_outermost(tiny, monkeypatch):
    order: list = []
    for name in ("first", "second"):

        class One(Idle):
            own = name

            @classmethod
            def make(cls, generator, asked, settings):
                order.append(("make", cls.own, sorted(settings.kinds)))
                return cls()

            def around(self, denoiser, solver, batch):
                return _Noted(denoiser, self.own, order), solver

        monkeypatch.setitem(globals(), name.title(), One)
        monkeypatch.setitem(KINDS, name, Row(__name__, name.title(), (name,)))
    tiny("a cat", **{**CALL, "num_inference_steps": 1}, first=1, second=1)
    assert order == [("make", "second", []), ("make", "first", []), "second", "first"]


def test_a_frame_is_what_the_network_sees(tiny, monkeypatch):
    class Wide(Idle):
        @classmethod
        def frame(cls, asked):
            return Frame((32, 32), (20, 30))

    monkeypatch.setitem(globals(), "Wide", Wide)
    monkeypatch.setitem(KINDS, "wide", Row(__name__, "Wide", ("wide",)))
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
])  # fmt: skip
def test_keywords_of_no_kind_are_refused_as_by_any_function(tiny, given, message):
    for call in (lambda: tiny("a cat", **CALL, **given), lambda: kinds.check_names(given)):
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == message


def test_less_memory_is_asked_of_every_kind(tiny):
    @dataclass(frozen=True)
    class Large(Idle):
        count: int = 4

        def halved(self):
            return self if self.count == 1 else Large(self.count // 2)

    from gen.pipeline.settings import Sampling, make_settings

    settings = make_settings(tiny, Sampling(), None, None)
    assert settings.halved() is settings
    settings, seen = replace(settings, kinds={"large": Large(), "idle": Idle()}), []
    while settings.halved() is not settings:
        settings = settings.halved()
        seen.append(settings.kinds["large"].count)
    assert seen == [2, 1]
