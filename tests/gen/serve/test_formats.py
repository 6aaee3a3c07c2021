"""Pictures over HTTP in every format, with the recipe in each, saved and sent alike."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from gen.pipeline.png import read_recipe
from gen.serve.http.errors import BadRequest
from gen.serve.http.formats import ENDINGS, PictureFormat
from tests.gen.serve.conftest import client_of, make_engine
from tests.gen.serve.test_http import direct, events, opened, same

QUALITY = {"png": None, "jpeg": 95, "webp": 100, "avif": 95}


@pytest.fixture(scope="module")
def saving(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with client_of(make_engine(tiny_model), save=folder) as one:
        one.folder = folder
        yield one


@pytest.mark.parametrize("name", list(ENDINGS))
def test_every_format_holds_its_recipe(saving, tiny, name, tmp_path):
    call = {"prompt": "a cat", "seed": 3, "num_inference_steps": 2}
    body = {**call, "output_format": name, "quality": QUALITY[name]}
    answer = saving.post("/v1/pictures", json=body).json()
    item = answer["pictures"][0]
    image = opened(item["image"])
    assert item["format"] == name and image.format.lower() == name
    expected = direct(tiny, **call)
    if name in ("png", "webp"):  # at a quality of 100 without loss
        assert same(item["image"], expected)
    assert (image.height, image.width) == expected.shape[:2]
    file = tmp_path / f"picture.{ENDINGS[name]}"
    file.write_bytes(base64.b64decode(item["image"]))
    recipe = read_recipe(file)
    assert recipe.seed == 3 and np.array_equal(np.asarray(tiny.replay(recipe, progress=False).images[0]), expected)
    assert file.read_bytes() in {path.read_bytes() for path in saving.folder.glob(f"*.{ENDINGS[name]}")}
    data = saving.get(f"/v1/jobs/{answer['id']}/0.{ENDINGS[name]}")
    assert data.content == file.read_bytes() and data.headers["content-type"] == f"image/{name}"
    wrong = saving.get(f"/v1/jobs/{answer['id']}/0.{'jpg' if name != 'jpeg' else 'png'}")
    assert wrong.status_code == 404 and ENDINGS[name] in wrong.json()["error"]["message"]


def test_openai_s_fields_say_the_format(client):
    body = {"prompt": "a cat", "seed": 3, "steps": 2, "output_format": "jpeg", "output_compression": 40}
    small = client.post("/v1/images/generations", json=body).json()
    assert small["output_format"] == "jpeg" and opened(small["data"][0]["b64_json"]).format == "JPEG"
    large = client.post("/v1/images/generations", json={**body, "output_compression": 100}).json()
    assert len(large["data"][0]["b64_json"]) > len(small["data"][0]["b64_json"])
    url = client.post("/v1/images/generations", json={**body, "response_format": "url"}).json()["data"][0]["url"]
    assert url == f"data:image/jpeg;base64,{small['data'][0]['b64_json']}"
    last = events(client.post("/v1/images/generations", json={**body, "stream": True}))[-1][1]
    assert last["output_format"] == "jpeg" and last["b64_json"] == small["data"][0]["b64_json"]


@pytest.mark.parametrize(("name", "quality", "says"), [
    ("jepg", None, "did you mean jpg?"), ("png", 80, "says nothing of a PNG"), (None, 80, "says nothing of a PNG"),
    ("webp", 101, "from 0 to 100"), ("webp", True, "give a whole number"), ("tiff", None, "there are png, jpeg, webp, avif"),
])  # fmt: skip
def test_what_no_format_is(name, quality, says):
    with pytest.raises((BadRequest, ValueError), match=says):
        PictureFormat.asked(name, quality)


def test_a_recipe_too_long_for_a_jpeg_is_said(client):
    body = {"prompt": "é" * 9000, "negative_prompt": "é" * 9000, "steps": 1, "output_format": "jpeg"}
    refused = client.post("/v1/images/generations", json=body)
    assert refused.status_code == 400 and "longer than a JPEG can hold" in refused.json()["error"]["message"]
