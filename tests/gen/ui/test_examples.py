"""What the tab "Methods" says of every method of the registries, and its pictures; no page."""

from __future__ import annotations

import math

import pytest

from gen.ui.examples import AROUND, KINDS, ExamplesJob, curve, example_file, method_rows
from gen.ui.jobs import JobState
from samplers.cache import CACHES
from samplers.guidance import GUIDANCE
from samplers.path import RectifiedFlow
from samplers.registry import GRIDS, SOLVERS, get_grid


def test_every_method_of_the_registries_is_explained():
    rows = method_rows()
    for kind, table in zip(KINDS, (SOLVERS, GRIDS, GUIDANCE, CACHES), strict=True):
        mine = {row.name: row for row in rows if row.kind == kind}
        assert mine.keys() == {info.name for info in table.values()}
        assert all(row.about and row.cost for row in mine.values())
    by_name = {(row.kind, row.name): row for row in rows}
    assert (
        by_name["sampler", "heun"].cost == "order 2, 2 evaluations a step" and by_name["sampler", "ddim"].source == "2010.02502"
    )
    assert by_name["guidance", "rescale"].cost == AROUND
    assert by_name["guidance", "rescale"].call.arguments["guidance"] == "cfg + rescale"


def test_a_curve_is_the_log_snr_of_its_levels():
    levels = get_grid("karras", RectifiedFlow(), 20)
    points = [tuple(map(float, point.split(","))) for point in curve("karras")[1:].split("L")]
    assert len(points) == len(levels)
    middle = len(levels) // 2
    logsnr = 2 * math.log(levels[middle].alpha / levels[middle].sigma)
    assert points[middle][1] == pytest.approx(128 - 8 - 112 * (logsnr + 12) / 24, abs=0.06)
    assert [x for x, _ in points] == sorted(x for x, _ in points)


def test_pictures_are_drawn_once_and_kept(studio, tiny, monkeypatch):
    rows = tuple(row for row in method_rows() if (row.kind, row.name) in (("sampler", "euler"), ("sampler", "heun")))
    job = studio.jobs.add(ExamplesJob(rows), "pictures")
    assert studio.jobs.wait(60) and job.error == "" and job.state is JobState.DONE
    files = {row.name: example_file(studio, row.call) for row in rows}
    assert job.call.made == files and all(file.is_file() for file in files.values())
    assert studio.gallery.entries() == []  # they are no pictures of the user's
    monkeypatch.setattr(type(tiny), "__call__", lambda *_, **__: pytest.fail("drawn again"))
    again = studio.jobs.add(ExamplesJob(rows), "pictures")
    assert studio.jobs.wait(60) and again.error == "" and again.call.made == files
