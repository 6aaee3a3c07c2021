"""Every field of every endpoint, given every kind of wrong value: a sentence each time, in no words of Python's."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest

from gen.calls.keywords import OWN, keywords_of
from gen.serve.http.openai import ImagesRequest
from gen.serve.http.pictures import PicturesRequest
from gen.serve.http.webui import Img2ImgRequest, Txt2ImgRequest
from tests.gen.serve.test_http import direct, png, same, sentence_of, square

WRONG = {
    "null": "null",
    "true": "true",
    "negative": "-1",
    "zero": "0",
    "one": "1",
    "fraction": "2.5",
    "huge": "1e308",
    "beyond": "1e999",
    "nan": "NaN",
    "minus infinity": "-Infinity",
    "many digits": "1" + "0" * 400,
    "empty": '""',
    "word": '"high"',
    "number as text": '"5"',
    "long": json.dumps("a" * 20_000),
    "NUL": '"\\u0000"',
    "half a character": '"\\ud800"',
    "path": '"/etc/passwd"',
    "empty list": "[]",
    "list of a name": '["euler"]',
    "list of a number": "[1]",
    "list of null": "[null]",
    "two words": '["a", "b"]',
    "three numbers": "[1, 2, 3]",
    "lists in lists": "[[[[[[[[1]]]]]]]]",
    "empty object": "{}",
    "object": '{"a": 1}',
    "null in an object": '{"a": null}',
    "objects in objects": '{"a": {"a": {"a": {"a": {"a": {"a": {"a": 1}}}}}}}',
}
PYTHONS = re.compile(
    r"<class|NoneType|Traceback|object has no|not supported between|unhashable|has no len|not iterable|not subscriptable|"
    r"positional argument|keyword argument|must be real number|could not convert|invalid literal|indices must|"
    r"\bdict\b|\btuple\b|\bNone\b|\bTrue\b|\bFalse\b|\bstr\b|\bint\b|Error\b|__|unpack|pydantic|torch\.|defect"
)
BASE = {"prompt": "a cat", "seed": 1}


@cache
def picture():
    import base64

    return base64.b64encode(png(square())).decode()


def fields():
    """(path, method, field) of all that a request can have."""
    yield from (("/v1/images/generations", "", name) for name in (*ImagesRequest.model_fields, "nothing"))
    yield from (("/v1/images/edits", "", name) for name in (*ImagesRequest.model_fields, "mask", "nothing"))
    for method in OWN:
        own = [*PicturesRequest.model_fields, *keywords_of(method), "nothing"] if method == "image" else OWN[method]
        yield from (("/v1/pictures", method, name) for name in own)
    yield from (("/sdapi/v1/txt2img", "", name) for name in Txt2ImgRequest.model_fields)
    yield from (("/sdapi/v1/img2img", "", name) for name in Img2ImgRequest.model_fields)
    yield from (("/sdapi/v1/options", "", name) for name in ("sd_model_checkpoint", "samples_format", "nothing"))
    yield ("/sdapi/v1/png-info", "", "image")


def needed(method):
    """What a call of a method cannot do without."""
    return {
        "panorama": {"width": 64, "height": 32, "window": 32},
        "outpaint": {"image": picture(), "right": 16, "window": 32},
        "upscale": {"image": picture(), "scale": 2, "window": 32},
        "restore": {"image": picture(), "task": "superres", "factor": 4},
        "ambiguous": {"others": "a dog"},
        "layout": {"layout": {"background": "a", "regions": [{"prompt": "b", "box": [0, 0, 0.5, 1]}]}},
    }.get(method, {})


def send(client, path, method, name, value):
    """The answer to a request that is in order but for one field, whose JSON is given."""
    if path == "/v1/images/edits":
        if name == "mask":
            return client.post(path, data=BASE, files={"image": png(square()), "mask": value.encode("utf-8")})
        text = json.loads(value) if value.startswith('"') else value
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        return client.post(path, data={**BASE, "steps": 1, name: text}, files={"image": png(square())})
    steps = "num_inference_steps" if path == "/v1/pictures" else "steps"
    body = {**BASE, steps: 1, **needed(method)}
    body |= {"method": method} if method else {}
    body |= {"init_images": [picture()]} if path.endswith("img2img") else {}
    pairs = [f"{json.dumps(key)}: {json.dumps(one)}" for key, one in body.items() if key != name]
    text = "{" + ", ".join([*pairs, f"{json.dumps(name)}: {value}"]) + "}"
    return client.post(path, content=text.encode(), headers={"Content-Type": "application/json"})


def faults_of(client, path, method, name, values):
    """What is wrong with the answers, one line each."""
    faults = []
    for kind in values:
        if (name, kind) == ("wait", "null"):
            continue
        answer = send(client, path, method, name, WRONG[kind])
        where = f"{path} {method} {name}: {kind} -> {answer.status_code} "
        if answer.status_code >= 500 and answer.status_code != 504:
            faults.append(where + answer.text[:300])
        elif answer.status_code >= 400:
            text = sentence_of(answer)
            if not text.endswith((".", "?")) or len(text) > 2500 or PYTHONS.search(text.replace(str(WRONG[kind]), "")):
                faults.append(where + text[:400])
    return faults


CASES = list(fields())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(8))
def test_every_field_refuses_in_a_sentence(client, part):
    """Each field has a share of the values here, and all of them in the slow test."""
    kinds = list(WRONG)
    faults = []
    for number, case in list(enumerate(CASES))[part::8]:
        faults += faults_of(client, *case, kinds[number % 5 :: 5])
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(8))
def test_every_field_with_every_value(client, part):
    faults = [fault for case in CASES[part::8] for fault in faults_of(client, *case, WRONG)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(("path", "body", "says"), [
    ("/v1/images/generations", {"prmpt": "a"}, 'prompt is missing; did you mean it by "prmpt"?'),
    ("/v1/images/generations", {}, "prompt is missing; send it."),
    ("/v1/images/generations", {"prompt": "a", "guidance_scal": 3},
     'There is no field "guidance_scal"; did you mean guidance_scale?'),
    ("/v1/images/generations", {"prompt": "a", "zzz": 3},
     'There is no field "zzz"; leave it out. /openapi.json lists what there is.'),
    ("/v1/images/generations", {"prompt": "a", "n": True}, "n is true; give a whole number."),
    ("/v1/images/generations", {"prompt": "a", "partial_images": 9}, "partial_images is 9; give at most 3."),
    ("/v1/pictures", {"prompt": "a", "method": "draw"},
     'method is "draw"; give "image", "panorama", "outpaint", "upscale", "restore", "ambiguous" or "layout".'),
    ("/v1/pictures", {"prompt": "a", "deadline": -1}, "deadline is -1; give more than 0."),
    ("/v1/pictures", {"prompt": "a", "sampler": ["euler"]}, 'sampler is ["euler"]; give a text.'),
    ("/v1/pictures", {"prompt": "a", "num_inference_steps": 51},
     "num_inference_steps is 51; give a whole number from 1 to 50."),
    ("/v1/pictures", {"prompt": "a", "method": "outpaint"}, "image is missing; a request of outpaint has one."),
])  # fmt: skip
def test_what_is_said_of_a_field(client, path, body, says):
    assert sentence_of(client.post(path, json=body)) == says


def test_fields_of_openai_that_change_nothing(client, tiny):
    """And every keyword of ours beside them."""
    plain = {
        "prompt": "a cat",
        "n": 1,
        "quality": "hd",
        "style": "vivid",
        "user": "me",
        "moderation": "low",
        "background": "auto",
    }
    body = {**plain, "input_fidelity": "high", "seed": 1, "steps": 2, "hires": 2, "sampler": "euler_a"}
    answer = client.post("/v1/images/generations", json=body).json()
    own = {"num_inference_steps": 2, "hires": 2, "sampler": "euler_a"}
    assert same(answer["data"][0]["b64_json"], direct(tiny, prompt="a cat", seed=1, **own))
    form = {"prompt": "a cat", "seed": "1", "steps": "2", "guidance_interval": "[-3, 3]", "sampler_options": '{"eta": 0.5}'}
    form |= {"sampler": "euler_a", "strength": "0.5"}
    made = client.post("/v1/images/edits", data=form, files={"image": png(square())}).json()["data"][0]["b64_json"]
    own = {"num_inference_steps": 2, "guidance_interval": (-3, 3), "sampler_options": {"eta": 0.5}, "sampler": "euler_a"}
    own |= {"image": square().convert("RGB"), "strength": 0.5}
    assert same(made, direct(tiny, prompt="a cat", seed=1, **own))
    refused = client.post("/v1/images/edits", data={**form, "strenth": "1"}, files={"image": png(square())})
    assert sentence_of(refused) == 'There is no field "strenth"; did you mean strength?'
