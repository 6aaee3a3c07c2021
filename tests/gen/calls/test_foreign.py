"""Settings of pictures by other programs: AUTOMATIC1111's text and ComfyUI's graph; hostile ones are a sentence."""

from __future__ import annotations

import json
import random

import pytest
from PIL import Image, PngImagePlugin

from gen.calls.foreign import call_of_graph, call_of_infotext, call_of_picture
from gen.io.errors import RecipeError
from gen.pipeline.infotext import from_infotext

A1111 = """a castle, (tall:1.2)
on a hill
Negative prompt: blurry, dark
Steps: 25, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 1234567890, Size: 512x768, Model: x"""
GRAPH = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": ["20", 0],
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "dpmpp_2m",
            "scheduler": "karras",
            "denoise": 1.0,
            "positive": ["11", 0],
            "negative": ["7", 0],
            "latent_image": ["5", 0],
            "model": ["10", 0],
        },
    },
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a castle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["4", 1]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "x.safetensors", "model": ["4", 0]}},
    "11": {"class_type": "ConditioningSetArea", "inputs": {"conditioning": ["6", 0], "width": 64}},
    "20": {"class_type": "PrimitiveInt", "inputs": {"value": 77}},
}


def png(path, **texts: str):
    info = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_automatic1111s_text(tmp_path):
    call, missing = call_of_picture(png(tmp_path / "a.png", parameters=A1111))
    assert call.arguments == {
        "prompt": "a castle, (tall:1.2)\non a hill",
        "negative_prompt": "blurry, dark",
        "num_inference_steps": 25,
        "seed": 1234567890,
        "guidance_scale": 6.5,
        "width": 512,
        "height": 768,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
    }
    assert missing == ()
    old = A1111.replace("Sampler: DPM++ 2M, Schedule type: Karras", "Sampler: DPM++ 2M Karras, Denoising strength: 0.5")
    call, missing = call_of_infotext(from_infotext(old))
    assert (call.arguments["sampler"], call.arguments["schedule"]) == ("dpmpp_2m", "karras")
    assert missing == ("the picture it began with",)
    call, missing = call_of_infotext(from_infotext(A1111.replace("DPM++ 2M", "My Own").replace("25", "many")))
    assert "sampler" not in call.arguments and missing == ("num_inference_steps 'many'", "the sampler 'My Own'")


def test_comfyuis_graph(tmp_path):
    call, missing = call_of_picture(png(tmp_path / "c.png", prompt=json.dumps(GRAPH), workflow="{}"))
    assert call.arguments == {
        "prompt": "a castle",
        "negative_prompt": "blurry",
        "num_inference_steps": 20,
        "seed": 77,
        "guidance_scale": 8.0,
        "width": 512,
        "height": 640,
        "sampler": "dpmpp_2m",
        "schedule": "karras",
    }
    assert missing == ("its LoRAs",)


def test_our_recipe_comes_first(tiny, tmp_path):
    made = tiny("a cat", num_inference_steps=2, seed=1, progress=False)
    call, missing = call_of_picture(made.save(tmp_path / "ours.png")[0])
    assert call.arguments["seed"] == 1 and call.model == "tiny" and missing == ()


@pytest.mark.parametrize(
    "graph",
    [
        "",
        "[]",
        "{}",
        "nonsense",
        "[" * 100_000,
        '{"1": {"inputs": []}}',
        '{"1": {"inputs": {"positive": 1, "steps": 1}}}',
        "x" * 5_000_000,
    ],
    ids=range(8),
)
def test_a_graph_without_a_sampler_is_a_sentence(graph):
    with pytest.raises(RecipeError, match="ComfyUI"):
        call_of_graph(graph)


def test_links_in_circles_and_odd_values_end():
    odd = json.loads(json.dumps(GRAPH))
    odd["6"]["inputs"] = {"clip": ["6", 0], "a": ["11", 0]}
    odd["3"]["inputs"] |= {
        "seed": ["3", 0],
        "steps": {"a": 1},
        "cfg": "1e999",
        "sampler_name": 5,
        "scheduler": "\0",
        "denoise": [],
    }
    call, missing = call_of_graph(json.dumps(odd))
    assert call.arguments["prompt"] == "" and "num_inference_steps" not in call.arguments
    assert len(missing) == 4


def test_whatever_is_in_a_picture_is_read_or_refused_in_a_sentence(tmp_path):
    """Pictures and texts with bytes changed at random: no other error than a refusal in words."""
    dice = random.Random(0)
    good = png(tmp_path / "good.png", parameters=A1111, prompt=json.dumps(GRAPH)).read_bytes()
    for number in range(120):
        data = bytearray(good)
        for _ in range(dice.randint(1, 20)):
            data[dice.randrange(8, len(data))] = dice.randrange(256)
        path = tmp_path / f"{number}.png"
        path.write_bytes(data[: dice.randrange(1, len(data) + 1)] if number % 3 == 0 else data)
        try:
            call_of_picture(path)
        except ValueError as error:
            assert str(error) and "Traceback" not in str(error)
    for _ in range(300):
        text = list(json.dumps(GRAPH) if dice.random() < 0.5 else A1111)
        for _ in range(dice.randint(1, 8)):
            text[dice.randrange(len(text))] = dice.choice('{}[]",:0a\\\n ')
        joined = "".join(text)
        try:
            call_of_graph(joined) if joined.startswith("{") else call_of_infotext(from_infotext(joined))
        except ValueError as error:
            assert str(error)
