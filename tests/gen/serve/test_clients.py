"""Programs of others against a live server, as they come from PyPI: OpenAI's client, and that of AUTOMATIC1111's web UI."""

from __future__ import annotations

import base64
import io
import threading

import numpy as np
import pytest
from PIL import Image

openai = pytest.importorskip("openai")
webuiapi = pytest.importorskip("webuiapi")


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def direct(tiny, **call):
    return np.asarray(tiny(progress=False, **call).images[0])


@pytest.fixture(scope="module")
def ours(live):
    with openai.OpenAI(base_url=f"http://{live[0]}:{live[1]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def webui(live):
    return webuiapi.WebUIApi(host=live[0], port=live[1], sampler="Euler a", steps=3)


def test_openai_generates(ours, tiny):
    assert [model.id for model in ours.models.list()] == ["tiny", "other"] and ours.models.retrieve("tiny").id == "tiny"
    made = ours.images.generate(model="tiny", prompt="a cat", n=2, size="32x32", extra_body={"seed": 7, "steps": 3})
    for i, item in enumerate(made.data):
        assert np.array_equal(pixels(item.b64_json), direct(tiny, prompt="a cat", seed=7 + i, num_inference_steps=3))
    assert made.created and made.output_format == "png" and made.usage.total_tokens == 0


def test_openai_streams(ours, tiny):
    more = {"seed": 7, "steps": 9}
    stream = ours.images.generate(model="tiny", prompt="a cat", stream=True, partial_images=3, extra_body=more)
    *partial, last = list(stream)
    assert [event.partial_image_index for event in partial] == [0, 1, 2] and last.type == "image_generation.completed"
    assert np.array_equal(pixels(last.b64_json), direct(tiny, prompt="a cat", seed=7, num_inference_steps=9))


def test_openai_edits(ours, tiny):
    image, mask = Image.new("RGB", (32, 32), (10, 200, 10)), Image.new("RGBA", (32, 32), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 32, 16))
    files = []
    for one in (image, mask):
        file = io.BytesIO()
        one.save(file, "PNG")
        files.append(file.getvalue())
    made = ours.images.edit(
        model="tiny", image=("a.png", files[0]), mask=("m.png", files[1]), prompt="a dog", extra_body={"seed": 3}
    )
    painted = np.zeros((32, 32), np.uint8)
    painted[:16] = 255
    assert np.array_equal(pixels(made.data[0].b64_json), direct(tiny, prompt="a dog", seed=3, image=image, mask=painted))


def test_openai_understands_what_is_refused(ours):
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-image-2' here") as refused:
        ours.images.generate(model="gpt-image-2", prompt="a cat")
    assert refused.value.type == "not_found_error"
    with pytest.raises(openai.BadRequestError, match="give WIDTHxHEIGHT"):
        ours.images.generate(model="tiny", prompt="a cat", size="large")


def test_the_web_ui_s_client_draws(webui, tiny):
    made = webui.txt2img(prompt="a cat", negative_prompt="blurry", seed=4, width=32, height=32, cfg_scale=5, batch_size=2)
    call = {"negative_prompt": "blurry", "num_inference_steps": 3, "guidance_scale": 5.0, "sampler": "euler_a"}
    for i, image in enumerate(made.images):
        assert np.array_equal(np.asarray(image), direct(tiny, prompt="a cat", seed=4 + i, **call))
    assert made.info["all_seeds"] == [4, 5]
    assert "a cat" in webui.png_info(made.image).info
    again = webui.img2img(images=[made.image], prompt="a dog", seed=2, denoising_strength=0.6, width=32, height=32, steps=4,
                          sampler_name="DPM++ 2M")  # fmt: skip
    own = {"image": made.image, "strength": 0.6, "num_inference_steps": 4, "guidance_scale": 7.0, "sampler": "dpmpp_2m"}
    assert np.array_equal(np.asarray(again.image), direct(tiny, prompt="a dog", seed=2, **own))


def test_the_web_ui_s_client_looks_round(webui):
    assert "Euler a" in webui.util_get_sampler_names() and "karras" in webui.util_get_scheduler_names()
    assert webui.util_get_model_names() == ["other", "tiny"] and webui.util_get_current_model() == "tiny"
    webui.util_set_model("other")
    assert webui.util_get_current_model() == "other"
    webui.util_set_model("tiny")
    assert [one["name"] for one in webui.get_loras()] == ["style"]
    for look in (webui.get_upscalers, webui.get_sd_vae, webui.get_face_restorers, webui.get_prompt_styles,
                 webui.get_hypernetworks, webui.get_realesrgan_models, webui.get_latent_upscale_modes):  # fmt: skip
        assert look() == []
    webui.refresh_checkpoints()
    webui.util_wait_for_ready(0.01)


def test_the_web_ui_s_client_sees_progress_and_interrupts(webui):
    made = []
    thread = threading.Thread(
        target=lambda: made.append(webui.txt2img(prompt="a cat", seed=1, steps=200, width=32, height=32, sampler_name="DDIM"))
    )
    thread.start()
    while not (found := webui.get_progress())["state"]["sampling_step"] or not found["current_image"]:
        assert thread.is_alive()
    assert 0 < found["progress"] < 1 and found["state"]["sampling_steps"] == 200
    webui.interrupt()
    thread.join(60)
    assert "stopped_at" in str(made[0].images[0].info["fewstep"])
