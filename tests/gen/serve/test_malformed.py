"""Requests of nonsense: each is refused with 4xx in a sentence, and the server goes on."""

from __future__ import annotations

import base64
import io
import json
import random

import pytest
from PIL import Image

from tests.gen.serve.test_http import direct, same, sentence_of

VALUES = [
    *(
        None,
        True,
        -1,
        0,
        1,
        3.5,
        1e308,
        -1e308,
        10**30,
        "",
        "a",
        "a" * 20_000,
        "\0",
        "\ud800",
        "../../etc/passwd",
        "<lora:x:1>",
    ),
    *([], [1], ["a"], [[[[[[[[1]]]]]]]], {}, {"a": 1}, {"a": {"b": [None]}}, "NaN", "[a:b:", "((((", "a AND " * 40),
]
PATHS = {
    "/v1/images/generations": (
        *("prompt", "model", "n", "size", "response_format", "stream", "partial_images", "seed", "steps", "guidance_scale"),
        *("sampler", "sampler_options", "schedule", "guidance", "cache", "strength", "adapters", "negative_prompt"),
    ),
    "/v1/pictures": (
        "image",
        *(
            "prompt",
            "model",
            "method",
            "seed",
            "seeds",
            "num_inference_steps",
            "guidance_scale",
            "guidance",
            "sampler",
            "image",
        ),
        *("mask", "strength", "layout", "regions", "height", "width", "guide", "greedy", "adapters", "wait", "deadline"),
        *("schedule", "schedule_options", "cache", "cache_options", "num_images_per_prompt", "concepts", "class_labels"),
        *("guidance_interval", "clip_skip", "composition", "prompt_2", "window", "others", "task", "scale", "left", "nothing"),
    ),
    "/sdapi/v1/txt2img": (
        *("prompt", "seed", "steps", "cfg_scale", "width", "height", "sampler_name", "scheduler", "batch_size", "n_iter"),
        *("eta", "override_settings", "styles", "alwayson_scripts"),
    ),
    "/sdapi/v1/img2img": ("init_images", "mask", "mask_blur", "denoising_strength", "resize_mode", "prompt", "width"),
    "/sdapi/v1/png-info": ("image",),
    "/sdapi/v1/options": ("sd_model_checkpoint",),
}


def picture(draw):
    """Bytes of a PNG, damaged."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    data = bytearray(file.getvalue())
    for _ in range(draw.randrange(4)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data[: draw.randrange(len(data) + 1)])


def request(draw, number):
    """(method, path, what is sent) of one request."""
    kind = number % 8
    path = draw.choice(list(PATHS))
    body = {"prompt": "a cat", "steps": 1, "num_inference_steps": 1}
    for name in draw.sample(PATHS[path], min(draw.randint(1, 3), len(PATHS[path]))):
        body[name] = draw.choice(VALUES)
    if kind < 5:
        return "POST", path, {"content": json.dumps(body).encode(), "headers": {"Content-Type": "application/json"}}
    if kind == 5:  # no JSON at all, or half of it
        data = json.dumps(body).encode()[: draw.randrange(40)] + bytes(draw.randrange(256) for _ in range(draw.randrange(20)))
        data = draw.choice([data, b"[" * 5000, b"NaN", b'"a"', b"[1, 2]", b"\xff\xfe"])
        return (
            "POST",
            path,
            {"content": data, "headers": {"Content-Type": draw.choice(["application/json", "text/plain", "a"])}},
        )
    if kind == 6:
        files = {draw.choice(["image", "mask", "image[]", "x"]): ("a.png", picture(draw), "image/png")}
        form = {name: str(draw.choice(VALUES[1:8])) for name in draw.sample(["n", "size", "seed", "stream", "strength"], 2)}
        return "POST", "/v1/images/edits", {"data": form, "files": files}
    if draw.random() < 0.5:
        body = {"image": base64.b64encode(picture(draw)).decode(), "init_images": [base64.b64encode(picture(draw)).decode()]}
        return "POST", draw.choice(["/v1/pictures", "/sdapi/v1/img2img", "/sdapi/v1/png-info"]), {"json": {**body, "steps": 1}}
    path = draw.choice(["/", "/v1", "/v1/jobs/%00", "/v1/models/..%2f..%2fetc", "/sdapi/v1/x", "/v1/jobs/a/99999999999.png"])
    return draw.choice(["GET", "PUT", "DELETE", "PATCH"]), path, {}


def check_all(client, tiny, numbers):
    refused = 0
    for number in numbers:
        method, path, sent = request(random.Random(number), number)
        answer = client.request(method, path, **sent)
        assert answer.status_code < 500, (number, method, path, sent, answer.text[:500])
        if answer.status_code >= 400:
            refused += 1
            text = sentence_of(answer)
            assert isinstance(text, str) and text and "Traceback" not in text and "\n  File" not in text, (number, text)
            assert text.endswith((".", "?", "!")) and len(text) < 3000, (number, path, sent, text)
    assert refused > 0.6 * len(numbers)  # of the others many are in order: a field that is left out is none
    answer = client.post("/v1/pictures", json={"prompt": "a cat", "seed": 1}).json()
    assert same(answer["pictures"][0]["image"], direct(tiny, prompt="a cat", seed=1))
    while client.engine.jobs():
        pass


@pytest.mark.filterwarnings("ignore")
def test_nonsense(client, tiny):
    check_all(client, tiny, range(60))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_much_nonsense(client, tiny):
    check_all(client, tiny, range(60, 560))
