"""AUTOMATIC1111's endpoints: pictures, settings, hires fix, subseeds, ControlNet units, and errors in its own words."""

from __future__ import annotations

import base64
import json

import numpy as np
from PIL import Image

from tests.gen.serve.conftest import client_of, make_engine
from tests.gen.serve.test_http import direct, opened, png, same, square


def test_the_web_ui_s_requests(client, tiny):
    body = {"prompt": "a cat", "negative_prompt": "blurry", "seed": 4, "steps": 3, "cfg_scale": 5, "width": 32, "height": 32,
            "sampler_name": "DPM++ 2M", "scheduler": "Karras", "batch_size": 2, "n_iter": 1}  # fmt: skip
    answer = client.post("/sdapi/v1/txt2img", json=body).json()
    call = {"prompt": "a cat", "negative_prompt": "blurry", "num_inference_steps": 3, "guidance_scale": 5.0}
    call |= {"sampler": "dpmpp_2m", "schedule": "karras"}
    assert all(same(answer["images"][i], direct(tiny, seed=4 + i, **call)) for i in (0, 1))
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [4, 5] and "Sampler: DPM++ 2M" in info["infotexts"][0]
    read = client.post("/sdapi/v1/png-info", json={"image": answer["images"][0]}).json()
    assert read["info"] == info["infotexts"][0] and read["parameters"]["Seed"] == "4" and "fewstep" in read["items"]
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    start = base64.b64encode(png(square())).decode()
    edit = {"init_images": [start], "mask": base64.b64encode(png(Image.fromarray(mask))).decode(), "mask_blur": 0}
    edit |= {"prompt": "a dog", "seed": 2, "denoising_strength": 0.9, "inpainting_mask_invert": 1}
    made = client.post("/sdapi/v1/img2img", json=edit).json()["images"][0]
    own = {"image": square().convert("RGB"), "mask": 255 - mask, "strength": 0.9}
    assert same(made, direct(tiny, prompt="a dog", seed=2, **own))


def test_the_web_ui_s_lists(client):
    names = [one["name"] for one in client.get("/sdapi/v1/samplers").json()]
    assert {"Euler a", "DPM++ 2M", "unipc"} & set(names) >= {"Euler a", "DPM++ 2M"} and len(set(names)) == len(names)
    assert [one["title"] for one in client.get("/sdapi/v1/sd-models").json()] == ["tiny", "other"]
    assert [one["name"] for one in client.get("/sdapi/v1/loras").json()] == ["style"]
    assert client.get("/sdapi/v1/upscalers").json() == []
    assert client.get("/sdapi/v1/progress").json()["state"]["job_count"] == 0
    assert client.post("/sdapi/v1/interrupt").json() == {}
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "tiny"
    client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "other", "samples_save": True})
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "other"
    client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "tiny"})
    refused = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "/etc/passwd"})
    assert refused.status_code == 422 and "There is no model" in refused.json()["detail"]
    for field, value in {"tiling": True, "script_name": "x", "styles": ["a"], "s_churn": 3}.items():
        refused = client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", field: value})
        assert refused.status_code == 422 and refused.json()["detail"] == f"{field} is not done here; leave it out."


def last_job(client):
    return next(reversed(client.app.state.service.board.jobs.values())).job


def test_options_name_what_draws(tiny_model):
    """Also where a packaged pair would share the work between them."""
    engine = make_engine(tiny_model, names=("default", "fast"))
    with client_of(engine) as client:
        for body in ({}, {"steps": 4}, {"sampler_name": "Euler a", "steps": 2}):
            client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", **body})
            assert last_job(client).model == client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "default"
        override = {"override_settings": {"sd_model_checkpoint": "fast"}, "steps": 2}
        client.post("/sdapi/v1/txt2img", json=override)
        assert last_job(client).model == "fast"
        assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "default"
        client.post("/sdapi/v1/txt2img", json={**override, "override_settings_restore_afterwards": False})
        assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "fast"
        client.post("/sdapi/v1/txt2img", json={"steps": 2})
        assert last_job(client).model == "fast"
        client.post("/v1/images/generations", json={"prompt": "a cat", "steps": 2})
        assert last_job(client).model == "fast"  # as of everyone: the student serves it


def test_settings_are_honoured_or_refused(client, tiny):
    def draw(**settings):
        return client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "seed": 1, "override_settings": settings})

    plain = direct(tiny, prompt="a cat", seed=1)
    harmless = {"samples_save": True, "live_previews_enable": False, "sd_vae": "Automatic", "eta_noise_seed_delta": 0}
    assert same(draw(**harmless).json()["images"][0], plain)
    made = opened(draw(samples_format="jpg", jpeg_quality=70).json()["images"][0])
    assert made.format == "JPEG"
    for name, value in {"sd_vae": "other.pt", "eta_noise_seed_delta": 31337, "nothing": 1, "randn_source": "GPU"}.items():
        refused = draw(**{name: value})
        assert refused.status_code == 422 and f'The setting "{name}" is not done here' in refused.text.replace("\\", "")
    assert draw(samples_format="bmp").status_code == 400
    assert last_job(client).keywords.get("clip_skip") is None
    draw(CLIP_stop_at_last_layers=2)
    assert last_job(client).keywords["clip_skip"] == 1
    assert client.post("/sdapi/v1/options", json={"nothing": 1}).status_code == 422
    options = client.get("/sdapi/v1/options").json()
    assert client.post("/sdapi/v1/options", json=options).status_code == 200
    assert client.get("/sdapi/v1/options").json() == options


def test_names_of_samplers_are_the_web_ui_s(client, tiny):
    refused = client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "sampler_name": "Eular a"})
    says = refused.json()["detail"]
    assert refused.status_code == 422 and "Did you mean 'Euler a'?" in says
    assert "DPM++ 2M SDE" in says and "dpmpp" not in says and "comfy" not in says
    refused = client.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "scheduler": "Karas"})
    assert "Did you mean 'Karras'?" in refused.json()["detail"] and "SGM Uniform" in refused.json()["detail"]
    for one in client.get("/sdapi/v1/samplers").json()[::9]:
        body = {"prompt": "a cat", "sampler_name": one["name"], "steps": 2, "scheduler": "Automatic"}
        answer = client.post("/sdapi/v1/txt2img", json=body)
        assert "There is no sampler" not in answer.text, answer.text
    body = {"prompt": "a cat", "seed": 1, "sampler_name": "DPM++ 2M Karras", "steps": 3}
    answer = client.post("/sdapi/v1/txt2img", json=body)
    own = {"sampler": "dpmpp_2m", "schedule": "karras", "num_inference_steps": 3}
    assert same(answer.json()["images"][0], direct(tiny, prompt="a cat", seed=1, **own))


def test_hires_fix_is_our_second_pass(client, tiny):
    body = {"prompt": "a cat", "seed": 1, "steps": 4, "enable_hr": True, "hr_scale": 2, "denoising_strength": 0.6}
    body |= {"hr_upscaler": "Latent", "hr_second_pass_steps": 3, "width": 32, "height": 32}
    answer = client.post("/sdapi/v1/txt2img", json=body).json()
    own = {"hires": 2, "hires_strength": 0.6, "hires_steps": 3, "hires_upscaler": "latent", "num_inference_steps": 4}
    assert same(answer["images"][0], direct(tiny, prompt="a cat", seed=1, **own))
    assert "Hires upscale: 2" in json.loads(answer["info"])["infotexts"][0]
    answer = client.post("/sdapi/v1/txt2img", json={**body, "hr_scale": 1, "hr_resize_x": 64, "hr_resize_y": 64}).json()
    assert same(answer["images"][0], direct(tiny, prompt="a cat", seed=1, **own))
    others = {"hr_upscaler": "R-ESRGAN", "hr_prompt": "a dog", "hr_sampler_name": "Euler", "hr_resize_x": 60}
    for field, value in others.items():
        refused = client.post("/sdapi/v1/txt2img", json={**body, field: value})
        assert refused.status_code == 422 and field in refused.json()["detail"]


def test_subseeds_are_variations(client, tiny):
    body = {"prompt": "a cat", "seed": 1, "subseed": 50, "subseed_strength": 0.4, "steps": 2, "batch_size": 3}
    images = client.post("/sdapi/v1/txt2img", json=body).json()["images"]
    call = {"prompt": "a cat", "seed": 1, "variation_seed": 50, "variation_strength": 0.4, "num_inference_steps": 2}
    made = tiny(num_images_per_prompt=3, progress=False, **call).images
    assert all(same(image, np.asarray(own)) for image, own in zip(images, made, strict=True))
    assert not same(images[0], np.asarray(made[1]))
