"""A sweep as a job: its cells in the gallery, stopping, and the programs that draw the same; no page."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
from PIL import Image

from gen.calls.call import Call
from gen.ui.checks import FieldError
from gen.ui.jobs import JobState
from gen.ui.models import AUTOMATIC
from gen.ui.sweeps import SweepSettings

BASE = Call({"seed": 3, "num_images_per_prompt": 4, "batch_size": 1}, model=AUTOMATIC)


def test_axes_are_read_and_what_is_wrong_is_said_of_its_field():
    job = SweepSettings("a cat\n\na dog", "steps=1,2", "seed=0-2", "").to_job(BASE)
    assert job.sweep.text == "12 pictures: steps (2) x seed (3) x prompts (2)" and job.base.model == "fast"
    assert SweepSettings("a cat", "steps=1,20", "").to_job(BASE).base.model == "default"
    assert job.sweep.call == {"seed": 3}
    for values, field in (
        (("", "steps=1,2", ""), "prompt"),
        (("a cat", "", ""), "across"),
        (("a cat", "stepz=1", ""), "across"),
        (("a cat", "steps=1,2", "seed=x"), "down"),
        (("a cat", "steps=1,2", "steps=3"), "across"),
        (("a cat", "seed=0-30", "steps=1-30"), "across"),
    ):
        with pytest.raises(FieldError) as wrong:
            SweepSettings(*values).to_job(BASE)
        assert wrong.value.field == field, values


def test_every_cell_is_a_picture_of_the_gallery(studio):
    job = SweepSettings("a cat", "steps=1,2", "sampler=euler,heun", "seed=5,6").to_job(Call({"seed": 3}, model="tiny"))
    queued = studio.jobs.add(job, "sweep")
    assert studio.jobs.wait(60) and queued.error == "" and queued.state is JobState.DONE
    assert len(job.made) == 8 == len(queued.pictures) and queued.progress.share == 1
    recipe = studio.gallery.recipe(job.made[0, 1, 0, 1])
    assert (recipe.num_inference_steps, recipe.sampler, recipe.seed) == (2, "euler", 6)
    grids = job.grids()
    assert [title for title, *_ in grids] == ["a cat, seed 5", "a cat, seed 6"]
    assert grids[0][1:3] == (["steps 1", "steps 2"], ["sampler euler", "sampler heun"])
    assert grids[1][3][1, 0].position == (0, 1, 0, 1)


def test_a_stopped_sweep_keeps_what_it_drew(studio):
    job = SweepSettings("a cat", "steps=1-40", "").to_job(Call(model="tiny"))
    queued = studio.jobs.add(job, "sweep")
    with studio.jobs._condition:
        assert studio.jobs._condition.wait_for(lambda: job.made, 60)
    studio.jobs.stop()
    assert studio.jobs.wait(60)
    assert queued.state is JobState.STOPPED and 0 < len(job.made) < 40
    assert all(studio.gallery.recipe(name).stopped_at is None for name in job.made.values())


def test_what_cannot_be_drawn_is_said_before_anything_is(studio):
    job = SweepSettings("a cat", "width=64,63", "").to_job(Call(model="tiny"))
    queued = studio.jobs.add(job, "sweep")
    assert studio.jobs.wait(60)
    assert queued.state is JobState.FAILED and "width 63" in queued.error and not job.made


def test_the_programs_draw_the_same_pictures(studio, tiny, monkeypatch, tmp_path):
    job = SweepSettings("a cat", "steps=1,2", "prompt:cat=dog,horse").to_job(Call({"seed": 3}, model="tiny"))
    studio.jobs.add(job, "sweep")
    assert studio.jobs.wait(60)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gen.Generator.from_pretrained", lambda name, *_, **__: tiny)
    values: dict = {}
    exec(job.as_python(), values)  # the program itself
    for one in values["made"]:
        kept = np.asarray(Image.open(studio.gallery.path(job.made[one.cell.position])))
        assert (kept == np.asarray(one.image)).all()
    words = shlex.split(job.as_command())
    assert words[:3] == ["fewstep", "sweep", "a cat"]
    from gen.cli.app import main

    assert main([*words[1:], "--cells", "cells", "--quiet"]) == 0
    assert len(list((tmp_path / "cells").iterdir())) == 4 and (tmp_path / "sweep.png").exists()
    assert job.sweep.axes[1].caption(0) == "dog"
