"""The attention backend of a model: asked for on opening, the same picture by each, in the recipe, and back from it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gen.generator import Generator
from gen.models.attention_choice import from_record, recorded
from gen.models.bridge import routed
from gen.models.bridge.routed import RoutedAttention
from gen.nn import attention as module
from tests.gen.test_waits import FAMILIES

LINEAR = ("sana", "sana_sprint")  # attention that is no softmax, save to the text


def picture(name: str, generator: Generator, **call):
    subject = {"class_labels": [7]} if name == "dit" else {"prompt": ["a red heart"]}
    usual = {"num_inference_steps": 2, "seed": 3, "height": 32, "width": 32, "output_type": "pt", "progress": False}
    return generator(**subject, **usual | call)


@pytest.mark.filterwarnings("ignore:The model:UserWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_every_bridged_family_by_our_backends(bridged, monkeypatch, name):
    """The same picture to 1e-4, computed by ours at every softmax, and the recipe says so."""
    _, generator = bridged(name)
    own = picture(name, generator)
    assert own.recipes[0].machine.attention == "diffusers"
    calls: list[str] = []
    ours = routed.attention
    monkeypatch.setattr(routed, "attention", lambda *args, **named: calls.append(named["backend"]) or ours(*args, **named))
    made = {}
    try:
        for backend in ("math", "sdpa"):
            generator.network.attention_backend = backend
            made[backend] = picture(name, generator)
            assert made[backend].recipes[0].machine.attention == f"diffusers ({backend})"
            assert set(calls) == {backend}
            calls.clear()
    finally:
        del generator.network.attention_backend
    torch.testing.assert_close(made["math"].images, made["sdpa"].images, rtol=0, atol=1e-4)
    torch.testing.assert_close(made["math"].images, own.images, rtol=0, atol=1e-4)
    assert torch.equal(picture(name, generator).images, own.images) and not calls


def tensors(heads=3, keys=5, shared=3, dims=4):
    g = torch.Generator().manual_seed(0)
    shapes = (2, heads, 7, 8), (2, shared, keys, 8), (2, shared, keys, 8)
    return [torch.randn(shape if dims == 4 else shape[1:], generator=g) for shape in shapes]


PLAIN = {
    "plain": ((), {}),
    "scale": ((), {"scale": 0.3}),
    "a mask": ((torch.rand(7, 5, generator=torch.Generator().manual_seed(1)) < 0.7,), {}),
    "a bias": ((), {"attn_mask": torch.randn(2, 1, 7, 5, generator=torch.Generator().manual_seed(1))}),
    "causal": ((), {"is_causal": True}),
    "by position": ((None, 0.0, True), {"scale": 0.3}),
}


@pytest.mark.parametrize("dims", [3, 4])
@pytest.mark.parametrize("kind", PLAIN)
def test_the_function_keeps_its_meaning(kind, dims):
    """Every argument of PyTorch's function, none dropped."""
    args, named = PLAIN[kind]
    if kind == "a bias" and dims == 3:
        named = {"attn_mask": named["attn_mask"][0]}
    q, k, v = tensors(dims=dims)
    expected = F.scaled_dot_product_attention(q, k, v, *args, **named)
    with RoutedAttention("math"):
        found = F.scaled_dot_product_attention(q, k, v, *args, **named)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_shared_heads_and_dropout():
    q, k, v = tensors(heads=6, shared=3)
    expected = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    with RoutedAttention("math"):
        torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v, enable_gqa=True), expected, rtol=1e-5, atol=1e-6)
        with pytest.raises(ValueError, match=r"has no dropout, and 0\.5 was asked for"):
            F.scaled_dot_product_attention(*tensors(), dropout_p=0.5)


def test_a_backend_is_asked_for_on_opening(tiny_model, tiny):
    opened = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32", attention_backend="math")
    call = {"seed": 3, "num_inference_steps": 2, "output_type": "pt", "progress": False}
    made = opened("a cat", **call)
    assert made.recipes[0].machine.attention == "math" == recorded(opened.network)
    torch.testing.assert_close(made.images, tiny("a cat", **call).images, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("flsh", "Unknown attention backend 'flsh': choose auto, math, .*Did you mean flash"),
        ("flash", "backend 'flash' cannot run here: FlashAttention has CUDA kernels only and the tensors are on cpu"),
        ("diffusers", "Unknown attention backend 'diffusers'"),
    ],
)
def test_what_cannot_be_is_said_on_opening(tiny_model, backend, message):
    with pytest.raises(ValueError, match=message):
        Generator.from_pretrained(tiny_model, device="cpu", attention_backend=backend)


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("auto (sdpa)", "auto"),
        ("math", "math"),
        ("", "auto"),
        ("diffusers", "diffusers"),
        ("diffusers (math)", "math"),
        ("diffusers (auto)", "auto"),
    ],
)
def test_recipes_say_what_to_ask_for(text, backend):
    assert from_record(text) == backend


def test_the_command_line_asks_for_it_and_replays_by_it(fewstep, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ["--model", str(tiny_model), "--device", "cpu", "--dtype", "float32"]
    assert fewstep("image", "a cat", "--seed", "3", "--steps", "2", "--attention", "math", *model)[0] == 0
    assert "math" in fewstep("info", "a-cat-3.png")[1]
    used: list[str] = []
    kernel, reason = module.BACKENDS["math"]
    monkeypatch.setitem(module.BACKENDS, "math", (lambda *args: used.append("math") or kernel(*args), reason))
    assert fewstep("replay", "a-cat-3.png", "--model", str(tiny_model))[0] == 0 and used
