"""What a recipe may ask for: counted before anything is made."""

import pytest

from gen.io.validators import MAX_PIXELS
from gen.pipeline.work import LIMIT, check_work, work
from gen.tasks.canvas.options import CanvasRecord
from gen.tasks.energy_guidance.options import GuideRecord
from gen.tasks.restore.options import RestoreRecord
from tests.gen.test_recipe import make

MEGA = {"height": 1000, "width": 1000, "num_inference_steps": 50, "sampler": "euler"}


def test_work_is_pixels_times_evaluations():
    one = make(**MEGA, batch={"size": 1})
    assert work(one) == 1.0 * 50 * 2  # with and without the prompt
    assert work(make(**MEGA, batch={"size": 8})) == 800
    assert work(make(**{**MEGA, "sampler": "heun"}, batch={"size": 1})) == 200
    assert (
        work(make(**MEGA, batch={"size": 1}, guide=GuideRecord(method="tfg", strength=1.0, options={"iterations": 4}))) == 400
    )
    task = RestoreRecord(task="deblur", image="0" * 64, options={"iterations": 3})
    assert work(make(**MEGA, batch={"size": 1}, restore=task)) == 300
    canvas = CanvasRecord(kind="panorama", window=(500, 500), stride=(250, 250), recurrence=2)
    assert work(make(**MEGA, batch={"size": 1}, canvas=canvas)) == 25 * 0.25 * 100 * 2


def test_ordinary_recipes_pass_and_bombs_do_not():
    check_work(make(**MEGA, batch={"size": 8}))
    bombs = (
        {"height": 4096, "width": 4096, "num_inference_steps": 1000},
        {"num_inference_steps": 1000, "batch": {"size": 1024, "row": 0}},
        {"sampler": "restart", "sampler_options": {"times": 10**9}},
        {"sampler": "dpm_adaptive", "sampler_options": {"rtol": 1e-12}},
        {"tweaks": {"greedy": {"options": {"draws": 10**8}}}},
        {"canvas": CanvasRecord(kind="panorama", window=(8, 8), stride=(1, 1), recurrence=100), "height": 4000, "width": 4000},
    )
    for bomb in bombs:
        recipe = make(**bomb)
        with pytest.raises(ValueError, match=r"asks for about .* megapixel evaluations") as caught:
            check_work(recipe)
        allowed = float(str(caught.value).split("--max-work ")[1].split(")")[0])
        assert allowed > work(recipe) > LIMIT
        check_work(recipe, allowed)


def test_pictures_are_not_enlarged_without_bound():
    """A small one may say that it is to be scaled to 268 megapixels."""
    with pytest.raises(ValueError, match="megapixels; at most"):
        check_work(make(height=16_384, width=16_384, made_at=(64, 64)), 1e15)
    with pytest.raises(ValueError, match="megapixels; at most"):
        check_work(make(height=64, width=64, made_at=(16_384, 16_384)), 1e15)
    assert MAX_PIXELS < 16_384**2


def test_a_replay_refuses_before_it_begins(tiny):
    recipe = tiny("a cat", seed=1, progress=False).recipes[0]
    assert tiny.replay(recipe, "latent", False).seeds == [1]
    with pytest.raises(ValueError, match="asks for about"):
        tiny.replay(recipe, "latent", False, max_work=0.0001)
