"""A task of the user's own: registered, recorded, replayed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from gen.cli.app import main
from gen.io.errors import RecipeError
from gen.io.user_code import import_file
from gen.pipeline.png import read_recipe
from gen.pipeline.recipe import Recipe
from gen.pipeline.types import Task
from gen.tasks.table import TASKS, register_task

CALL = {"seed": 3, "num_inference_steps": 2, "sampler": "euler", "progress": False, "output_type": "pt"}


@dataclass(frozen=True)
class Darker(Task):
    share: float

    @classmethod
    def from_call(cls, model, args, settings):
        return cls(args["darker"]), settings

    def decode(self, model, latents, crop, decode):
        return (1 - self.share) * decode(latents, crop)

    def record(self, items):
        return {"darker": self.share}


class Again(Darker):
    @classmethod
    def from_call(cls, model, args, settings):
        return cls(args["again"]), settings

    def record(self, items):
        return {"again": self.share}


@pytest.fixture
def tables():
    before = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(before)


def test_a_task_of_ones_own_is_recorded_and_replayed(tables, tiny):
    register_task("darker", Darker, ["darker"])
    register_task("darker", Darker, ["darker"])  # once more is no clash
    register_task("again", Again, ["again"])
    plain, made = tiny("a cat", **CALL), tiny("a cat", **CALL, darker=0.25, again=0.5)
    torch.testing.assert_close(made.images, 0.375 * plain.images)
    assert plain.recipes[0].own_tasks is None and "own_tasks" not in plain.recipes[0].to_json()
    recipe = Recipe.from_json(made.recipes[0].to_json())
    assert recipe.own_tasks == {"darker": {"darker": 0.25}, "again": {"again": 0.5}} and not recipe.unrecorded
    assert torch.equal(tiny.replay(recipe, "pt", progress=False).images, made.images)
    with pytest.raises(ValueError, match="The recipe says darker already; leave darker out"):
        tiny.replay(recipe, "pt", progress=False, darker=0.5)
    del TASKS["darker"]
    with pytest.raises(ValueError, match="the task 'darker', which is not registered here: import the file"):
        tiny.replay(recipe, "pt", progress=False)


def test_a_recipe_can_name_no_task_of_the_table_as_ones_own(tiny):
    recipe = tiny("a cat", **CALL).recipes[0]
    forged = Recipe.from_json(recipe.model_copy(update={"own_tasks": {"image": {"strength": 0.5}}}).to_json())
    with pytest.raises(ValueError, match="the task 'image', which is not registered here"):
        tiny.replay(forged, "pt", progress=False)
    with pytest.raises(RecipeError, match="own_tasks"):
        Recipe.from_json(forged.to_json().replace("0.5", '{"c": 1}'))


@pytest.mark.parametrize(("name", "keywords", "message"), [
    ("image", ["brighter"], "an identifier that no other task has, got 'image'"),
    ("my task", ["brighter"], "an identifier that no other task has, got 'my task'"),
    ("mine", ["strength"], "'strength' belongs to the task 'image' already"),
    ("mine", [], "needs keywords of its own: it has none"),
])  # fmt: skip
def test_names_and_keywords_that_are_taken(tables, name, keywords, message):
    with pytest.raises(ValueError, match=message):
        register_task(name, Darker, keywords)


def test_a_keyword_of_every_call_is_refused_at_the_call(tables, tiny):
    register_task("darker", Darker, ["seed"])
    with pytest.raises(TypeError, match="'seed' of a registered task is one of every call"):
        tiny("a cat", **CALL)


FILE = """
from dataclasses import dataclass
from typing import Annotated

import typer

from gen.pipeline.types import Task
from gen.tasks.table import register_task


@dataclass(frozen=True)
class DimmedKeywords:
    dimmed: Annotated[float | None, typer.Option(help="How much darker.")] = None


@dataclass(frozen=True)
class Dimmed(Task):
    share: float

    @classmethod
    def from_call(cls, model, args, settings):
        return cls(args.dimmed), settings

    def decode(self, model, latents, crop, decode):
        return (1 - self.share) * decode(latents, crop)

    def record(self, items):
        return {"dimmed": self.share}


register_task("dimmed", Dimmed, DimmedKeywords)
"""


def test_a_task_of_a_file_has_options_on_the_command_line(tables, tiny_model, tmp_path, capsys):
    file, target = tmp_path / "dimmed_task.py", tmp_path / "cat.png"
    file.write_text(FILE)
    call = ["image", "a cat", "--model", str(tiny_model), "--seed", "3", "-q", "-o", str(target)]
    assert main([*call, "--dimmed", "0.5"]) == 2 and "No such option: --dimmed" in capsys.readouterr().err
    assert main([*call, "--dimmed", "0.5", f"--import={file}"]) == 0
    recipe = read_recipe(target)
    assert recipe.own_tasks == {"dimmed": {"dimmed": 0.5}} and list(recipe.imports) == ["dimmed_task.py"]
    assert main(["image", "--import", str(file), "--help"]) == 0 and "How much darker." in capsys.readouterr().out
    assert main(["replay", str(target), "--model", str(tiny_model), "--import", str(file), "-q"]) == 0


def test_a_recipe_can_hand_a_task_only_what_it_declares(tables, tiny, tmp_path):
    file = tmp_path / "another_dimmed_task.py"
    file.write_text(FILE.replace("dimmed", "paled"))
    import_file(file)
    recipe = tiny("a cat", **CALL, paled=0.5).recipes[0]
    forged = recipe.model_copy(update={"own_tasks": {"paled": {"paled": 0.5, "more": 1}}})
    with pytest.raises(ValueError, match="There is no argument 'more'; there are paled"):
        tiny.replay(forged, "pt", progress=False)
