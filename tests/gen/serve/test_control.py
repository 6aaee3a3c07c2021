"""ControlNets and image prompts over HTTP: by the names that the server was started with, equal to direct calls."""

from __future__ import annotations

import asyncio
import base64

import numpy as np
import pytest
from PIL import Image

from gen.serve.engine import ServingEngine
from gen.serve.http import webui_request
from gen.serve.http.uploads import read_upload
from gen.serve.models import ModelSource
from tests.gen import ip_adapters
from tests.gen.serve.conftest import client_of
from tests.gen.serve.test_http import direct, events, png, same, sentence_of
from tests.gen.test_control import network_for

CALL = {"prompt": "a cat", "seed": 1, "num_inference_steps": 2}


def drawing(seed, side=32):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return Image.fromarray(pixels)


def sent(image):
    return base64.b64encode(png(image)).decode()


@pytest.fixture(scope="module")
def served(bridged, tmp_path_factory):
    """A server of a tiny Stable Diffusion with two ControlNets and an IP-Adapter, its generator, and their places."""
    pipeline, generator = bridged("stable_diffusion")
    folder = tmp_path_factory.mktemp("controls")
    controls = {}
    for name, seed in (("edges", 5), ("depth", 6)):
        controls[name] = folder / name
        network_for("stable_diffusion", pipeline, seed).save_pretrained(controls[name], safe_serialization=True)
    adapter = ip_adapters.save(folder, ip_adapters.ip_adapter(pipeline.unet))
    engine = ServingEngine({"sd": ModelSource(lambda: generator)})
    settings = {"controlnets": controls, "ip_adapters": {"style": adapter}, "ip_adapter_encoder": folder / "image_encoder"}
    with client_of(engine, **settings) as client:
        yield client, generator, controls, adapter


def test_a_picture_to_follow(served):
    client, generator, controls, _ = served
    weights = {"control_weight": [0.8, 0.5]}
    body = {**CALL, **weights, "control": [sent(drawing(1)), sent(drawing(2))], "controlnet": ["edges", "depth"]}
    answer = client.post("/v1/pictures", json=body).json()
    own = {"control": [drawing(1), drawing(2)], "controlnet": [controls["edges"], controls["depth"]]}
    assert same(answer["pictures"][0]["image"], direct(generator, **CALL, **weights, **own))
    one = {"control": sent(drawing(1)), "controlnet": "edges", "control_range": [-2, 4]}
    answer = client.post("/v1/pictures", json={**CALL, **one}).json()
    expected = direct(generator, **CALL, control=drawing(1), controlnet=controls["edges"], control_range=(-2, 4))
    assert same(answer["pictures"][0]["image"], expected) and not same(
        answer["pictures"][0]["image"], direct(generator, **CALL)
    )


def test_units_of_the_web_ui_s_extension(served):
    client, generator, controls, _ = served
    unit = {"image": sent(drawing(1)), "model": "edges [abc]", "module": "none", "weight": 0.7, "guidance_end": 1.0}
    off = {"image": "nonsense", "model": "depth", "enabled": False}
    body = {"prompt": "a cat", "seed": 1, "steps": 2, "alwayson_scripts": {"controlnet": {"args": [unit, off]}}}
    answer = client.post("/sdapi/v1/txt2img", json=body)
    expected = direct(generator, **CALL, control=drawing(1), controlnet=controls["edges"], control_weight=0.7)
    assert same(answer.json()["images"][0], expected)
    assert client.get("/controlnet/model_list").json() == {"model_list": ["edges", "segments", "depth"]}
    assert client.get("/controlnet/module_list").json()["module_list"] == ["none"]
    for field, value in {"module": "canny", "guidance_end": 0.5, "weight": "much", "model": 5, "image": "AAAA"}.items():
        args = {"controlnet": {"args": [{**unit, field: value}]}}
        refused = client.post("/sdapi/v1/txt2img", json={**body, "alwayson_scripts": args})
        assert 400 <= refused.status_code < 500 and f"controlnet.{field}" in sentence_of(refused), refused.text


def test_units_are_decoded_beside_the_event_loop(served, monkeypatch):
    def decoded(*given):
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return read_upload(*given)

    monkeypatch.setattr(webui_request, "read_upload", decoded)
    unit = {"image": sent(drawing(1)), "model": "edges"}
    body = {"prompt": "a cat", "seed": 1, "steps": 2, "alwayson_scripts": {"controlnet": {"args": [unit]}}}
    for path, more in (("txt2img", {}), ("img2img", {"init_images": [sent(drawing(2))]})):
        answer = served[0].post(f"/sdapi/v1/{path}", json={**body, **more})
        assert answer.status_code == 200, answer.text


def test_a_picture_as_a_prompt(served):
    client, generator, _, adapter = served
    body = {**CALL, "ip_adapter": "style", "ip_adapter_image": sent(drawing(3, 24)), "ip_adapter_scale": 0.6}
    answer = client.post("/v1/pictures", json=body).json()
    expected = direct(generator, **CALL, ip_adapter=adapter, ip_adapter_image=drawing(3, 24), ip_adapter_scale=0.6)
    assert same(answer["pictures"][0]["image"], expected) and not same(
        answer["pictures"][0]["image"], direct(generator, **CALL)
    )


@pytest.mark.parametrize(("body", "says"), [
    ({"controlnet": "edgs", "control": 1}, "\"edgs\" here; there are edges, segments, depth. Did you mean 'edges'?"),
    ({"controlnet": "/tmp", "control": 1}, 'There is no controlnet "/tmp" here'),
    ({"controlnet": ["edges", "../depth"], "control": 1}, 'There is no controlnet "../depth" here'),
    ({"controlnet": "edges"}, "control and controlnet go together"),
    ({"control": 1}, "control and controlnet go together"),
    ({"control": 1, "controlnet": "edges", "control_weight": 1e9}, "from -100 to 100"),
    ({"ip_adapter": "stile", "ip_adapter_image": 1}, "Did you mean 'style'?"),
    ({"ip_adapter": "style"}, "without a picture; give ip_adapter_image"),
    ({"ip_adapter": "style", "ip_adapter_image": 1, "ip_adapter_encoder": "/tmp"}, "not taken over HTTP"),
    ({"ip_adapter": "style", "ip_adapter_image": "/etc/passwd"}, "no base64"),
])  # fmt: skip
def test_what_is_refused(served, body, says):
    body = {name: sent(drawing(1)) if value == 1 else value for name, value in body.items()}
    refused = served[0].post("/v1/pictures", json={**CALL, **body})
    assert 400 <= refused.status_code < 500 and says in sentence_of(refused), refused.text


def test_errors_name_no_file_of_the_server(served):
    """Those of the core say which folder; a client knows its name."""
    client, _, controls, _ = served
    body = {**CALL, "control": sent(drawing(1)), "controlnet": "edges", "control_mode": 0}
    says = sentence_of(client.post("/v1/pictures", json=body))
    assert "'edges' is for one control" in says and str(controls["edges"].parent) not in says
    stream = events(client.post("/v1/pictures", json={**body, "stream": True}))[-1][1]
    assert stream["error"]["message"] == says


def test_a_model_that_takes_none_says_so(tiny_model, served):
    from tests.gen.serve.conftest import make_engine

    _, _, controls, adapter = served
    with client_of(make_engine(tiny_model), controlnets=controls, ip_adapters={"style": adapter}) as client:
        for more in (
            {"control": sent(drawing(1)), "controlnet": "edges"},
            {"ip_adapter": "style", "ip_adapter_image": sent(drawing(1))},
        ):
            refused = client.post("/v1/pictures", json={**CALL, **more})
            assert refused.status_code == 400 and sentence_of(refused).endswith("."), refused.text
            assert "folder" not in sentence_of(refused) and str(adapter) not in sentence_of(refused)
        assert client.post("/v1/pictures", json={**CALL, "control": 1, "controlnet": "x"}).status_code == 400
