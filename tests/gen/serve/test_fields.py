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
from tests.gen.serve.test_http import png, sentence_of, square

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
