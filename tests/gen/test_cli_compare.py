"""`fewstep compare`: samplers ranked by their distance to a reference."""

from __future__ import annotations

import pytest
from PIL import Image

from tests.gen.commands import files


@pytest.fixture
def compare(fewstep, tiny_model):
    def run(*arguments: object):
        fixed = ("--model", tiny_model, "--dtype", "float32", "--device", "cpu", "--reference", 12)
        return fewstep("compare", *arguments, *fixed)

    return run


def test_compare_ranks_samplers_by_their_distance_to_the_reference(compare):
    arguments = ("a cat", "a dog", "--samplers", "euler, heun karras, Euler a", "--steps", "2,6", "--seed", 3, "-o", "c.png")
    code, out, err = compare(*arguments)
    header, *rows, path = out.strip().splitlines()
    assert code == 0 and header.split()[-4:] == ["2", "steps", "6", "steps"] and "12 steps of heun" in header
    found = {row.rsplit(maxsplit=2)[0].strip(): [float(v) for v in row.split()[-2:]] for row in rows}
    assert set(found) == {"euler", "heun karras", "euler_a (adds noise)"}
    assert found["euler"][1] < found["euler"][0]  # more steps come closer
    assert [sum(v) for v in found.values()] == sorted(sum(v) for v in found.values())
    assert path == "c.png" and Image.open(path).width == 2 * 32 + 3 * 8
    assert "2 pictures, seeds from 3" in err
    assert compare(*arguments)[1].splitlines()[:-1] == out.splitlines()[:-1]  # and again the same, under a free name
    assert files() == ["c-1.png", "c.png"]


def test_compare_takes_every_sampler_on_every_schedule(compare):
    _, out, _ = compare("a cat", "--samplers", "euler,DPM++ 2M Karras", "--schedules", "uniform_time,beta", "--steps", "2")
    labels = {" ".join(row.split()[:2]) for row in out.splitlines()[1:-1]}
    assert labels == {"euler uniform", "euler beta", "dpmpp_2m karras"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samplers", "eular"], "did you mean 'euler'"),
        (["--schedules", "karas"], "did you mean 'karras'"),
        (["--steps", "4,x"], "--steps is '4,x'; give whole numbers"),
        (["--samplers", "euler,"], "--samplers is 'euler,', which leaves a value empty"),
        (["--steps", "0"], "--steps is 0"),
        (["-o", "sheet.jpg"], "ends in .png"),
    ],
)
def test_compare_refuses_in_one_sentence(compare, arguments, message):
    code, _, err = compare("a cat", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1 and files() == []
