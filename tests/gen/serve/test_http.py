"""Endpoints, as programs call them: pictures are those of a direct call, errors are sentences of the right kind."""

from __future__ import annotations

import asyncio
import base64
import importlib
import io
import json
import pickle
import threading

import numpy as np
import pytest
from PIL import Image

from gen.pipeline.png import read_recipe
from gen.serve.http.settings import ServerSettings, read_bytes_count, read_keys
from gen.serve.sent import SentPicture, sent_bytes
from gen.serve.sent import opened as decoded
from tests.gen.serve.conftest import client_of, make_engine


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def square(colour=(200, 30, 30, 255), side=32):
    return Image.new("RGBA", (side, side), colour)


def direct(tiny, **call):
    return np.asarray(tiny(progress=False, **call).images[0])


def same(text, picture):
    return np.array_equal(np.asarray(opened(text)), picture)


def sentence_of(answer):
    """What an error says."""
    body = answer.json()
    return body["error"]["message"] if "error" in body else body["detail"]


def events(response):
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in response.text.strip().split("\n\n")]
    found = [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in blocks]
    assert all(name == data["type"] for name, data in found)
    return found


def test_generations_are_direct_pictures_with_recipes(client, tiny, tmp_path):
    body = {"prompt": "a cat", "n": 2, "seed": 5, "size": "32x32", "sampler": "euler_a", "model": "tiny"}
    answer = client.post("/v1/images/generations", json=body).json()
    expected = [direct(tiny, prompt="a cat", seed=seed, sampler="euler_a") for seed in (5, 6)]
    assert [same(item["b64_json"], own) for item, own in zip(answer["data"], expected, strict=True)] == [True, True]
    (tmp_path / "a.png").write_bytes(base64.b64decode(answer["data"][1]["b64_json"]))
    recipe = read_recipe(tmp_path / "a.png")
    assert recipe.seed == 6 and np.array_equal(np.asarray(tiny.replay(recipe, progress=False).images[0]), expected[1])
    url = client.post("/v1/images/generations", json={**body, "response_format": "url"}).json()["data"][0]["url"]
    assert same(url.removeprefix("data:image/png;base64,"), expected[0])


def test_generations_stream_partial_pictures(client, tiny):
    body = {"prompt": "a cat", "seed": 5, "stream": True, "partial_images": 2, "num_inference_steps": 9}
    *partial, (name, last) = events(client.post("/v1/images/generations", json=body))
    assert [one[0] for one in partial] == ["image_generation.partial_image"] * 2 and name == "image_generation.completed"
    assert [one[1]["partial_image_index"] for one in partial] == [0, 1]
    shown = [np.asarray(opened(one[1]["b64_json"])) for one in partial]
    assert shown[0].shape == (64, 64, 3) and not np.array_equal(*shown)
    assert same(last["b64_json"], direct(tiny, prompt="a cat", seed=5, num_inference_steps=9)) and last["size"] == "32x32"


def test_edits_make_the_transparent_part_anew(client, tiny):
    mask = square()
    mask.paste((0, 0, 0, 0), (0, 0, 16, 32))
    form = {"prompt": "a dog", "seed": "3", "num_inference_steps": "4"}
    files = {"image": ("a.png", png(square()), "image/png"), "mask": ("m.png", png(mask), "image/png")}
    made = client.post("/v1/images/edits", data=form, files=files).json()["data"][0]["b64_json"]
    ours = np.zeros((32, 32), np.uint8)
    ours[:, :16] = 255
    expected = direct(tiny, prompt="a dog", seed=3, num_inference_steps=4, image=square().convert("RGB"), mask=ours)
    assert same(made, expected) and (np.asarray(opened(made))[:, 16:] == (200, 30, 30)).all()
    clear = client.post("/v1/images/edits", data=form, files={"image": ("a.png", png(Image.composite(
        square(), Image.new("RGBA", (32, 32)), mask.getchannel("A"))), "image/png")}).json()["data"][0]["b64_json"]  # fmt: skip
    assert (np.asarray(opened(clear))[:, 16:] == (200, 30, 30)).all()
    again = events(client.post("/v1/images/edits", data={**form, "stream": "true"}, files=files))
    assert again[-1][0] == "image_edit.completed" and same(again[-1][1]["b64_json"], expected)


def test_pictures_take_every_keyword(client, tiny):
    call = {"prompt": "a cat", "seed": 1, "guidance": "apg + rescale", "cache": "reuse", "guidance_interval": [-3, 3]}
    answer = client.post("/v1/pictures", json={**call, "num_inference_steps": 6}).json()
    assert answer["status"] == "done" and answer["progress"] == 1.0
    own = {**call, "guidance_interval": (-3, 3), "num_inference_steps": 6}
    assert same(answer["pictures"][0]["image"], direct(tiny, **own))
    assert answer["pictures"][0]["recipe"]["guidance"] == "apg + rescale"
    image = base64.b64encode(png(square())).decode()
    answer = client.post("/v1/pictures", json={"prompt": "a cat", "seed": 1, "image": image, "strength": 0.5}).json()
    expected = direct(tiny, prompt="a cat", seed=1, image=square().convert("RGB"), strength=0.5)
    assert same(answer["pictures"][0]["image"], expected)
    wide = {"method": "panorama", "prompt": "a cat", "seed": 2, "width": 64, "height": 32, "window": 32}
    answer = client.post("/v1/pictures", json=wide).json()
    expected = np.asarray(tiny.panorama("a cat", seed=2, width=64, height=32, window=32, progress=False).images[0])
    assert same(answer["pictures"][0]["image"], expected)
    region = {"prompt": "a dog", "box": [0, 0, 0.5, 1]}
    answer = client.post("/v1/pictures", json={"layout": {"background": "a cat", "regions": [region]}, "seed": 3}).json()
    expected = direct(tiny, layout={"background": "a cat", "regions": [region]}, seed=3)
    assert same(answer["pictures"][0]["image"], expected)


@pytest.mark.parametrize("more", [
    {"variation_seed": 0}, {"variation_seed": 9, "variation_strength": 0.5}, {"variation_seed": 9, "variation_strength": 0},
    {"seeds": [4, 8], "variation_seed": 3}, {"hires": 2, "hires_strength": 0.5},
])  # fmt: skip
def test_variations_and_second_passes_are_those_of_a_call(client, tiny, more):
    call = {"prompt": "a cat", **({} if "seeds" in more else {"seed": 1}), "num_inference_steps": 2, "num_images_per_prompt": 2}
    answer = client.post("/v1/pictures", json={**call, **more}).json()
    made = tiny(progress=False, **call, **more).images
    assert [same(one["image"], np.asarray(own)) for one, own in zip(answer["pictures"], made, strict=True)] == [True, True]


def test_what_is_said_of_a_call_is_in_its_answer_and_in_no_log(tiny_model, capsys):
    """Of a prompt that is read for the first time."""
    with client_of(make_engine(tiny_model)) as client:
        notes = client.post("/v1/pictures", json={"prompt": "a flumpf"}).json()["notes"]
        assert len(notes) == 1 and "does not know 'flumpf'" in notes[0]
        assert len(client.post("/v1/images/generations", json={"prompt": "a flumpf cat"}).json()["notes"]) == 1
        answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a flumpf dog"}).json()
        assert len(json.loads(answer["info"])["notes"]) == 1
        assert client.post("/v1/pictures", json={"prompt": "a cat"}).json()["notes"] == []
    assert "flumpf" not in "".join(capsys.readouterr())


def test_adapters_are_known_by_name_alone(client, tiny_model, lora_files):
    from gen.generator import Generator

    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    generator.load_adapter(lora_files["style"], "style", weight=0.7)
    expected = direct(generator, prompt="a cat", seed=1)
    answer = client.post("/v1/pictures", json={"prompt": "a cat", "seed": 1, "adapters": {"style": 0.7}}).json()
    assert same(answer["pictures"][0]["image"], expected)
    answer = client.post("/sdapi/v1/txt2img", json={"prompt": "a cat <lora:style:0.7>", "seed": 1}).json()
    generator.set_adapters({})
    assert same(answer["images"][0], direct(generator, prompt="a cat <lora:style:0.7>", seed=1))
    for name in ("stile", str(lora_files["style"]), "../style"):
        refused = client.post("/v1/pictures", json={"prompt": "a cat", "adapters": {name: 1.0}})
        assert refused.status_code == 400 and "no LoRA" in refused.json()["error"]["message"]


def test_jobs_are_asked_for_and_cancelled(client):
    body = {"prompt": "a cat", "seed": 1, "wait": False, "num_inference_steps": 50}
    first = client.post("/v1/pictures", json={**body, "num_inference_steps": 2})
    assert first.status_code == 202 and first.headers["location"] == f"/v1/jobs/{first.json()['id']}"
    many = client.post("/v1/pictures", json={**body, "num_images_per_prompt": 4}).json()
    gone = client.delete(f"/v1/jobs/{many['id']}").json()
    assert gone["status"] == "cancelled" and len(gone["pictures"]) < 4
    followed = client.app.state.service.board.jobs[first.json()["id"]]
    assert followed.job.finished.wait(60)
    while (answer := client.get(first.headers["location"]).json())["status"] != "done":
        pass
    data = client.get(f"{first.headers['location']}/0.png")
    assert data.headers["content-type"] == "image/png" and base64.b64decode(answer["pictures"][0]["image"]) == data.content
    assert client.get("/v1/jobs/nothing").status_code == 404
    found = events(
        client.post("/v1/pictures", json={"prompt": "a cat", "stream": True, "previews": 1, "num_inference_steps": 3})
    )
    assert [name for name, _ in found] == ["queued", "started", "step", "step", "step", "picture", "done"]
    assert len({data["preview"] for name, data in found if name == "step"}) == 3


def test_a_job_that_is_over_keeps_no_picture_that_was_sent(client):
    body = {"prompt": "a cat", "image": base64.b64encode(png(square())).decode(), "strength": 0.5, "num_inference_steps": 2}
    made = client.post("/v1/pictures", json=body).json()
    kept = client.app.state.service.board.jobs[made["id"]].job.keywords
    assert made["status"] == "done" and "image" not in kept and kept["strength"] == 0.5


def test_pictures_of_jobs_that_wait_are_bounded_in_memory(tiny_model):
    """A job alone may have more; those without pictures are taken on, and it is free again once the first is over."""
    engine = make_engine(tiny_model)
    data = png(square())
    with client_of(engine, max_sent=len(data) + 1) as client:
        body = {"prompt": "a cat", "image": base64.b64encode(data).decode(), "wait": False, "num_inference_steps": 200}
        first = client.post("/v1/pictures", json=body)
        refused = client.post("/v1/pictures", json=body)
        plain = client.post("/v1/pictures", json={"prompt": "a cat", "wait": False, "num_inference_steps": 1})
        assert (first.status_code, refused.status_code, plain.status_code) == (202, 429, 202)
        assert (
            "Pictures sent with jobs that are not done take" in sentence_of(refused) and refused.headers["Retry-After"] == "5"
        )
        client.delete(f"/v1/jobs/{first.json()['id']}")
        assert client.post("/v1/pictures", json={**body, "num_inference_steps": 1}).status_code == 202


def kinds_in(value):
    """Of the pictures in keywords."""
    if isinstance(value, dict):
        return set().union(*map(kinds_in, value.values()))
    return set().union(*map(kinds_in, value)) if isinstance(value, list) else {type(value)} & {SentPicture, Image.Image}


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/pictures", {"image": "A", "mask": "A", "strength": 0.5}),
    ("/v1/pictures", {"layout": {"background": "a cat", "regions": [{"prompt": "a dog", "mask": "A"}]}}),
    ("/sdapi/v1/img2img", {"init_images": ["A"], "mask": "A", "width": 32, "height": 32}),
    ("/v1/images/edits", {}),
])  # fmt: skip
def test_a_job_that_waits_keeps_its_pictures_encoded(client, tiny, path, body):
    """What pickle carries to an engine elsewhere makes the same pictures as what the request was decoded to."""
    data, board = png(square((200, 30, 30, 100))), client.app.state.service.board
    seen, submit = [], board.submit
    board.submit = lambda job, *more: (seen.append(dict(job.keywords)), submit(job, *more))[1]
    try:
        if path.endswith("edits"):
            answer = client.post(path, data={"prompt": "a cat", "n": "2"}, files={"image": ("a.png", data, "image/png")})
        else:
            text = json.dumps({"prompt": "a cat", **body}).replace('"A"', json.dumps(base64.b64encode(data).decode()))
            answer = client.post(path, content=text, headers={"Content-Type": "application/json"})
    finally:
        del board.submit
    assert answer.status_code == 200, answer.text
    (keywords,) = seen
    assert kinds_in(keywords) == {SentPicture}
    count = 1 if "layout" in keywords or path.endswith("edits") else 2  # a file that two pictures are made of counts once
    assert sent_bytes(keywords) == count * len(data)
    again = pickle.loads(pickle.dumps(keywords))
    for name in ("image", "mask"):
        if name in keywords:
            assert decoded(again[name]).tobytes() == decoded(keywords[name]).tobytes()
            assert decoded(keywords[name]).size == keywords[name].size


@pytest.mark.parametrize(("path", "module"), [("/v1/images/generations", "openai"), ("/v1/pictures", "pictures")])
def test_streamed_pictures_are_encoded_beside_the_event_loop(client, monkeypatch, path, module):
    def encoded(data):
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return base64.b64encode(data).decode()

    monkeypatch.setattr(importlib.import_module(f"gen.serve.http.{module}"), "base64_of", encoded)
    own = {"partial_images": 2} if module == "openai" else {"previews": 1}
    found = events(client.post(path, json={"prompt": "a cat", "stream": True, "num_inference_steps": 6, **own}))
    assert found[-1][0] in ("image_generation.completed", "done") and len(found) >= 3


def test_an_interrupted_job_without_pictures_is_said(client):
    service = client.app.state.service
    before = service.engine.max_rows
    service.engine.max_rows = 0  # nothing begins while another picture is on the way
    try:
        long = client.post("/v1/pictures", json={"prompt": "a cat", "wait": False, "num_inference_steps": 50}).json()
        made = []
        body = {"prompt": "a dog"}
        thread = threading.Thread(target=lambda: made.append(client.post("/v1/images/generations", json=body)))
        thread.start()
        while len(service.engine.jobs()) < 2 and thread.is_alive():
            pass
        client.post("/sdapi/v1/interrupt")
        thread.join(60)
    finally:
        service.engine.max_rows = before
    if not made[0].is_success:  # else it was quicker than the interruption
        assert made[0].status_code == 409 and "interrupted" in made[0].json()["error"]["message"]
    assert client.get(f"/v1/jobs/{long['id']}").json()["status"] in ("interrupted", "done", "running")


def test_limits(client):
    def refused(status, says, path="/v1/pictures", **body):
        answer = client.post(path, json={"prompt": "a cat", **body})
        text = answer.json()["error"]["message"] if path.startswith("/v1") else answer.json()["detail"]
        assert answer.status_code == status and says in text, answer.text

    refused(400, "num_inference_steps is 51; give a whole number from 1 to 50.", num_inference_steps=51)
    refused(400, "128 x 64 pixels are asked for, and 4096 are the most here", width=128, height=64)
    refused(400, "128 x 64 pixels", "/v1/images/generations", size="128x64")
    refused(400, "give a whole number from 1 to 4", num_images_per_prompt=5)
    large = base64.b64encode(png(square(side=65))).decode()
    refused(400, "65 x 65 pixels", image=large)
    refused(400, "256 x 256 pixels", method="upscale", image=base64.b64encode(png(square(side=64))).decode(), scale=4)
    for options in ({"draws": 100_000}, {"iterations": 20, "scales": [1.0] * 50}):
        refused(400, "repeat the work of a step", greedy="brightness", greedy_options=options)
    refused(400, "repeat the work of a step", aesthetic="red", aesthetic_options={"steps": 10**6})
    refused(400, "repeat the work of a step", sampler="dpm_adaptive", sampler_options={"rtol": 1e-9})
    refused(400, "window_batch is not taken", method="panorama", window_batch=10_000)
    refused(400, "more than 10000 characters; send a shorter one", negative_prompt="[" * 10_001)
    refused(413, "larger than 2 MiB", image="A" * (3 << 20))
    refused(404, "no model 'gpt-image-2' here; there are tiny, other", "/v1/images/generations", model="gpt-image-2")
    refused(400, 'output_format is "svg", and there are png, jpeg, webp, avif', "/v1/images/generations", output_format="svg")
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    refused(400, "million pixels", image=base64.b64encode(bomb.getvalue()).decode())


@pytest.mark.parametrize("body", [
    {"image": "/etc/passwd"}, {"image": "https://example.com/a.png"}, {"image": "file:///etc/passwd"}, {"lora_dir": "/tmp"},
    {"controlnet": "/tmp", "control": "AAAA"}, {"guide": "clip", "guide_options": {"model": "a/clip"}}, {"guide": "a.py:f"},
    {"aesthetic": "/tmp/a.safetensors"}, {"guide": "colour", "guide_options": {"colour": "../../a.png"}}, {"layout": "a.yaml"},
    {"layout": {"background": "a", "regions": [{"prompt": "b", "mask": "/etc/passwd"}]}},
    {"method": "panorama", "sync": 1.0, "sync_distance": "lpips:/tmp/x.safetensors"}, {"model": "/tmp"}, {"model": "../x"},
    {"batch_size": 512}, {"greedy": "/tmp/f.py:g"}, {"regions": {"style": "/etc/passwd"}}, {"__class__": 1}, {"latents": [1]},
    {"callback_on_step_end": "print"}, {"output_type": "latent"}, {"_task_args": {}}, {"method": "replay"},
    {"refiner": "/tmp"}, {"refiner": "somebody/model", "refiner_at": 0.5},
])  # fmt: skip
def test_no_request_opens_a_file(client, body, monkeypatch):
    import pathlib

    def forbidden(self, *args, **kwargs):
        raise AssertionError(f"{self} was opened.")

    monkeypatch.setattr(pathlib.Path, "open", forbidden)
    answer = client.post("/v1/pictures", json={"prompt": "a cat", **body})
    assert 400 <= answer.status_code < 500, answer.text
    assert answer.json()["error"]["message"].endswith((".", "?"))


def test_keys(tiny_model, lora_files):
    keys = ("secret-key-one", "secret-key-two")
    with client_of(make_engine(tiny_model), api_keys=keys) as client:
        refused = client.get("/v1/models")
        assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/sdapi/v1/options").status_code == 401
        assert client.get("/health/live").status_code == 200 and client.get("/metrics").status_code == 401
        wrong = [
            "Bearer secret-key-on",
            "Bearer secret-key-one2",
            "Bearer",
            "Basic !!",
            "Basic c2VjcmV0",
            "Digest secret-key-one",
        ]
        assert {client.get("/v1/models", headers={"Authorization": value}).status_code for value in wrong} == {401}
        for key in keys:
            assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
            assert client.get("/v1/models", auth=("anyone", key)).status_code == 200
        first, second = ({"Authorization": f"Bearer {key}"} for key in keys)
        job = client.post("/v1/pictures", json={"prompt": "a cat", "seed": 1}, headers=first).json()
        assert client.get(f"/v1/jobs/{job['id']}", headers=first).status_code == 200
        assert client.get(f"/v1/jobs/{job['id']}", headers=second).status_code == 404
        assert client.delete(f"/v1/jobs/{job['id']}", headers=second).status_code == 404


def test_other_hosts_need_a_key():
    with pytest.raises(ValueError, match=r"can be reached from other machines: give --api-key"):
        ServerSettings(host="0.0.0.0")
    assert ServerSettings(host="0.0.0.0", api_keys=("long enough".replace(" ", "-"),)).hosts == ("*",)
    with pytest.raises(ValueError, match="at least 8 printable"):
        ServerSettings(api_keys=("short",))


def test_keys_and_sizes_are_read(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\nsecret-key-one\n\nsecret-key-two\n")
    assert read_keys(["secret-key-three"], file) == ("secret-key-three", "secret-key-one", "secret-key-two")
    assert [read_bytes_count(text) for text in ("8GiB", "512M", "1.5 kb", "100")] == [8 << 30, 512 << 20, 1536, 100]
    for text in ("", "much", "-1G", "0"):
        with pytest.raises(ValueError, match="such as 8GiB"):
            read_bytes_count(text)


def test_hosts_and_origins(client, tiny_model):
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/health", headers={"Host": "localhost:8188"}).status_code == 200
    assert client.get("/v1/models", headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.get("/v1/models", headers={"Origin": "http://127.0.0.1:8188"}).status_code == 200
    assert "access-control-allow-origin" not in client.get("/v1/models").headers
    with client_of(make_engine(tiny_model), origins=("https://ours.example",), api_keys=("secret-key",)) as open_to:
        asked = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
        assert open_to.options("/v1/models", headers=asked).headers["access-control-allow-origin"] == "https://ours.example"
        assert open_to.get("/v1/models", headers={"Origin": "https://ours.example"}).status_code == 401


def test_a_full_queue_is_429_with_retry_after(tiny_model):
    with client_of(make_engine(tiny_model, max_queue=1)) as client:
        refused = client.post("/v1/images/generations", json={"prompt": "a cat", "n": 2})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"


def test_a_deadline_is_504(client):
    refused = client.post("/v1/pictures", json={"prompt": "a cat", "deadline": 1e-9})
    assert refused.status_code == 504 and "deadline" in refused.json()["error"]["message"]


def test_saved_before_it_is_sent(tiny_model, tmp_path):
    with client_of(make_engine(tiny_model), save=tmp_path) as client:
        answer = client.post("/v1/images/generations", json={"prompt": "A cat!/..", "n": 2, "seed": 3}).json()
        files = {path.read_bytes() for path in tmp_path.iterdir()}
        assert files == {base64.b64decode(item["b64_json"]) for item in answer["data"]}
        assert all(path.name.startswith("a-cat-") and path.suffix == ".png" for path in tmp_path.iterdir())


def test_a_full_disk_is_said(tiny_model, tmp_path, monkeypatch):
    from gen.serve.http import board

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board, "written", full)
    with client_of(make_engine(tiny_model), save=tmp_path) as client:
        refused = client.post("/v1/images/generations", json={"prompt": "a cat"})
        assert refused.status_code == 500 and refused.json()["error"]["message"] == "The server failed; its log says more."


def test_what_fails_inside_is_no_stack_trace(client, monkeypatch):
    from gen.serve.engine import ServingEngine

    def broken(*args):
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(ServingEngine, "_make", broken)
    refused = client.post("/v1/images/generations", json={"prompt": "a cat"})
    assert refused.status_code == 500 and "secret" not in refused.text and "Traceback" not in refused.text


def test_health_and_metrics(client):
    assert client.get("/health/live").json() == {"status": "ok"}
    client.post("/v1/images/generations", json={"prompt": "a cat", "n": 3})
    assert client.get("/health/ready").json()["status"] == "ready"
    text = client.get("/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['fewstep_shared_rows_total{model="tiny"}']) > 0
    assert float(values["fewstep_pictures_total"]) >= 3 and float(values["fewstep_running_rows"]) == 0


def test_the_schema_is_true(client):
    """Every operation that it lists is there, and answers no 500 to an empty body."""
    schema = client.get("/openapi.json").json()
    assert {"/v1/images/generations", "/v1/images/edits", "/v1/pictures", "/sdapi/v1/txt2img"} <= set(schema["paths"])
    for path, operations in schema["paths"].items():
        for method in operations:
            answer = client.request(method, path.replace("{name}", "x").replace("{index}", "0"), json={})
            assert answer.status_code < 500 and answer.status_code != 405, (path, answer.text)


def test_a_client_that_leaves_frees_its_rows(client):
    """The application is told of it while the job is at work."""
    engine, app = client.engine, client.app

    async def leave():
        body = json.dumps({"prompt": "a cat", "num_images_per_prompt": 4, "num_inference_steps": 50}).encode()
        sent, asked = [], 0
        began = asyncio.Event()

        async def receive():
            nonlocal asked
            asked += 1
            if asked == 1:
                return {"type": "http.request", "body": body, "more_body": False}
            while not engine.runs:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            began.set()

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "path": "/v1/pictures",
                 "raw_path": b"/v1/pictures", "root_path": "", "scheme": "http", "query_string": b"", "headers": headers,
                 "client": ("127.0.0.9", 1), "server": ("127.0.0.1", 8188), "state": {}}  # fmt: skip
        await app(scope, receive, send)
        return sent

    before = engine.counts.cancelled
    client.portal.call(leave)
    while engine.jobs():
        pass
    assert engine.counts.cancelled == before + 1 and not engine.runs
