"""How much one request may ask for: every task that enlarges or repeats is counted before it draws."""

from __future__ import annotations

import base64

import pytest

from gen.serve.engine import ServingEngine
from gen.serve.jobs import ServeJob
from gen.serve.limits import STEPS, TooMuchWork, WorkLimit
from gen.serve.models import ModelSource
from tests.gen.serve.conftest import client_of, make_engine
from tests.gen.serve.test_engine import engine_of, run_all
from tests.gen.serve.test_http import png, sentence_of, square


@pytest.fixture(scope="module")
def limited(tiny_model):
    """The work of ten pictures of 32 x 32 in 20 steps, and 256 x 256 pixels."""
    with client_of(make_engine(tiny_model), max_work=10.0, max_pixels=65_536) as one:
        yield one


def picture(side=32):
    return base64.b64encode(png(square(side=side))).decode()


@pytest.mark.parametrize("body", [
    {"hires": 8, "num_inference_steps": 20},
    {"hires": 4, "num_inference_steps": 20, "hires_steps": 40},
    {"width": 256, "height": 256, "num_inference_steps": 8},
    {"num_images_per_prompt": 16, "num_inference_steps": 20},
    {"num_images_per_prompt": 4, "num_inference_steps": 60},
    {"num_inference_steps": 120, "sampler": "heun"},
    {"num_inference_steps": 20, "sampler": "restart", "sampler_options": {"times": 30}},
    {"method": "panorama", "width": 256, "height": 128, "window": 32, "num_inference_steps": 20},
    {"method": "panorama", "width": 128, "height": 32, "window": 32, "stride": 4, "num_inference_steps": 20},
    {"method": "outpaint", "image": 32, "right": 128, "window": 32, "num_inference_steps": 20, "recurrence": 4},
    {"method": "upscale", "image": 32, "scale": 6, "window": 32, "num_inference_steps": 20},
    {"num_images_per_prompt": 16, "num_inference_steps": 20, "variation_seed": 1},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_is_too_much_work(limited, body):
    body = {"prompt": "a cat", **body}
    body |= {"image": picture(body["image"])} if "image" in body else {}
    refused = limited.post("/v1/pictures", json=body)
    assert refused.status_code == 400, refused.text
    assert "and 10 are the most here; ask for fewer or smaller pictures, or fewer steps." in sentence_of(refused)


@pytest.mark.parametrize("body", [
    {}, {"hires": 2, "num_inference_steps": 4}, {"num_images_per_prompt": 8, "num_inference_steps": 4},
    {"method": "panorama", "width": 96, "height": 32, "window": 32, "num_inference_steps": 4}, {"num_inference_steps": 30},
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_what_is_not(limited, body):
    assert limited.post("/v1/pictures", json={"prompt": "a cat", **body}).status_code == 200


def test_the_finished_picture_counts(limited):
    """Also where only the model knows the size that it begins with."""
    says = "are asked for, and 65536 are the most here; ask for fewer."
    refused = limited.post("/v1/pictures", json={"prompt": "a cat", "hires": 8, "width": 64, "height": 64})
    assert refused.status_code == 400 and f"512 x 512 pixels {says}" in sentence_of(refused)
    refused = limited.post("/v1/pictures", json={"prompt": "a cat", "method": "panorama", "width": 4096, "height": 32})
    assert refused.status_code == 400 and f"4096 x 32 pixels {says}" in sentence_of(refused)


def test_work_is_counted_in_own_pictures(tiny):
    """One picture of the model's own size in STEPS steps is one; a limit just above lets it through, one below does not."""
    engine = engine_of(tiny)

    def job(pictures, **keywords):
        limit = WorkLimit(1 << 20, pictures)
        return engine.submit(ServeJob("tiny", "one", {"prompt": "a cat", **keywords}, [1], limit=limit))

    heun = {"num_inference_steps": STEPS, "sampler": "heun"}
    good = [job(1.0, num_inference_steps=STEPS), job(2.0, **heun), job(0.1, num_inference_steps=2)]
    bad = [job(0.99, num_inference_steps=STEPS), job(1.9, **heun), job(0.1, num_inference_steps=3)]
    run_all(engine)
    assert all(len(one.result(0)) == 1 for one in good)
    for one in bad:
        with pytest.raises(TooMuchWork, match="of 32 x 32 in 20 steps"):
            one.result(0)


def test_pixels_are_counted_in_the_run_too(tiny):
    """Where the request alone does not say how large the picture becomes."""
    engine = engine_of(tiny)
    limit = WorkLimit(4096, 1e6)
    large = engine.submit(ServeJob("tiny", "one", {"prompt": "a cat", "hires": 4, "num_inference_steps": 1}, [1], limit=limit))
    run_all(engine)
    with pytest.raises(TooMuchWork, match="128 x 128 pixels are asked for, and 4096 are the most here"):
        large.result(0)


def test_what_the_manual_says_of_the_default_model(tiny):
    """Of a run that is refused before it draws."""
    from gen.generator import Generator

    engine = ServingEngine({"default": ModelSource(lambda: Generator.from_pretrained("default", "cpu"))})
    limit = WorkLimit(4_194_304, 256.0)
    much = engine.submit(ServeJob("default", "one", {"prompt": "a cat", "hires": 8}, [1], limit=limit))
    run_all(engine)
    with pytest.raises(TooMuchWork, match="the work of 290 pictures of 128 x 128 in 20 steps, and 256 are the most here"):
        much.result(0)
