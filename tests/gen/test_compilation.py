"""Compiled denoisers draw what others draw, whatever reaches into them, and compile few times."""

from __future__ import annotations

import copy

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from gen.adapters import Adapter, Delta
from gen.cli.app import main
from gen.generator import Generator
from gen.models import compilation
from gen.models.compilation import compile_network, repeated_blocks
from gen.nn.registry import build
from gen.pipeline.png import read_recipe
from samplers.denoiser import Condition
from tests.gen import pipelines
from tests.gen.conftest import randomise
from tests.gen.joint import OWN

DIT = {"type": "dit", "size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 3, "heads": 2, "num_classes": 3}
UVIT = {"type": "uvit", "size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 4, "heads": 2, "num_classes": 3}
CONFIGS = {**OWN, "dit": DIT, "uvit": UVIT}
CALL = {"num_inference_steps": 4, "seed": 3, "output_type": "latent", "progress": False, "batch_invariant": False}


@pytest.fixture
def counter(monkeypatch):
    """A backend that runs graphs as they are, and counts them."""
    torch._dynamo.reset()
    made = CompileCounter()
    monkeypatch.setattr(compilation, "BACKEND", made)
    yield made
    torch._dynamo.reset()


def inputs(config, rows: int, size: tuple[int, int]):
    draw = torch.Generator().manual_seed(1)
    x, time = torch.randn(rows, 4, *size, generator=draw), torch.full((rows,), 0.4)
    if "num_classes" in config:
        return x, time, Condition(label=torch.arange(rows) % 3)
    tokens = torch.randn(rows, config["text_tokens"], config["text_dim"], generator=draw)
    return x, time, Condition(tokens=tokens, mask=torch.ones(rows, config["text_tokens"], dtype=torch.bool))


@pytest.mark.parametrize("kind", ["regional", "full"])
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_networks_of_ours_compute_the_same(counter, name, kind):
    """To 1e-5; what is compiled for one block serves all of its class, and from the third size on nothing is compiled."""
    config = CONFIGS[name]
    network = randomise(build(config), 1).eval()
    plain, sizes = copy.deepcopy(network), [(8, 8)] if name in ("uvit", "mmdit") else [(8, 8), (16, 12), (20, 16), (24, 20)]
    made = compile_network(network, kind)
    blocks = {type(block) for block in repeated_blocks(network)} if kind == "regional" else {type(network)}
    assert {type(one.module) for one in made} == blocks
    counts = []
    for size in sizes:
        given = inputs(config, 2, size)
        torch.testing.assert_close(network(*given), plain(*given), atol=1e-5, rtol=1e-5)
        counts.append(counter.frame_count)
        network(*given)
        assert counter.frame_count == counts[-1]
    assert all(one.compiled == 2 * len(sizes) and not one.plain for one in made)
    assert 0 < counts[0] <= counts[-1] <= 4 * counts[0]
    assert kind == "full" or counts[2:3] == counts[3:]


def opened(tiny_model, kind):
    return Generator.from_pretrained(tiny_model, device="cpu", dtype="float32", compile=kind)


def lora(network) -> Adapter:
    """On a layer of the first block."""
    block, draw = repeated_blocks(network)[0], torch.Generator().manual_seed(1)
    name, layer = next((name, one) for name, one in network.named_modules() if one is block.attn.qkv)
    factors = {
        "down": torch.randn(4, layer.in_features, generator=draw),
        "up": torch.randn(layer.out_features, 4, generator=draw),
    }
    return Adapter("style", {f"denoiser.{name}": Delta(factors, 0.3)})


REACHING = {  # what is asked, and whether some blocks still run compiled
    "plain": ({}, True),
    "reuse": ({"cache": "reuse"}, True),
    "first_block": ({"cache": "first_block"}, True),
    "taylor": ({"cache": "taylor"}, True),
    "pyramid": ({"cache": "pyramid"}, False),
    "pag": ({"guidance": "pag", "guidance_options": {"layers": (0,)}}, True),
    "nag": ({"guidance": "nag", "negative_prompt": "blurry", "guidance_scale": 3.0}, False),
    "alone": ({"batch_invariant": True}, False),
}


@pytest.mark.parametrize("name", REACHING)
def test_what_reaches_into_the_network_still_does(counter, tiny, tiny_model, name):
    """Caches and guidance draw what they draw on a plain network."""
    options, still = REACHING[name]
    compiled = opened(tiny_model, "regional")
    call = {**CALL, **options}
    torch.testing.assert_close(
        compiled(["a cat", "a red heart"], **call).images, tiny(["a cat", "a red heart"], **call).images, atol=1e-3, rtol=1e-3
    )
    assert (sum(one.compiled for one in compiled.compiled) > 0) == still


def test_adapters_and_gradients(counter, tiny, tiny_model):
    """A block whose layers have adapters runs as written, the others compiled; unloaded, all do again. Gradients likewise."""
    compiled = opened(tiny_model, "regional")
    compiled("a cat", **CALL)
    before = compiled("a cat", **CALL).images
    drawn = []
    for generator in (compiled, tiny):
        generator.load_adapter(lora(generator.network), "style")
        try:
            drawn.append(generator("a cat", **CALL).images)
        finally:
            generator.unload_adapter("style")
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-3, rtol=1e-3)
    assert (drawn[0] - before).abs().max() > 1e-3 and any(one.plain for one in compiled.compiled)
    assert torch.equal(compiled("a cat", **CALL).images, before)

    def red(images, condition):
        return -((images[:, 0] - 0.9) ** 2).mean((1, 2)) * 50

    guided = [one("a cat", guide=red, **CALL).images for one in (compiled, tiny)]
    torch.testing.assert_close(guided[0], guided[1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["flux", "stable_diffusion"])
def test_networks_of_diffusers(counter, bridged, tmp_path, name):
    """Plain, with a block cache or a cache of outputs, and under guidance inside of attention, which runs as written."""
    pipeline, plain = bridged(name)
    folder = pipelines.save(pipeline, tmp_path / name)
    compiled = Generator.from_pretrained(folder, device="cpu", dtype="float32", native=False, compile="regional")
    call = {**CALL, "height": 32, "width": 32, "num_inference_steps": 3}
    nag = {"guidance": "nag", "negative_prompt": "blurry", "guidance_scale": 3.0}
    for options in ({}, {"cache": "reuse"}, {"cache": "first_block"} if name == "flux" else {"cache": "easy"}, nag):
        found = compiled("a cat", **call, **options).images
        torch.testing.assert_close(found, plain("a cat", **call, **options).images, atol=1e-3, rtol=1e-3)
    assert counter.frame_count > 0 and sum(one.compiled for one in compiled.compiled) > 0
    assert all(module.forward.__func__ is type(module).forward for module in repeated_blocks(compiled.network.network))


def test_the_command_line(counter, tiny_model, tmp_path):
    out = tmp_path / "one.png"
    asked = ["image", "a cat", "--model", str(tiny_model), "--steps", "2", "--seed", "1", "-q", "-o", str(out)]
    assert main([*asked, "--device", "cpu", "--dtype", "float32", "--compile", "regional"]) == 0
    assert out.exists() and counter.frame_count > 0
    assert read_recipe(out).machine.compile == "regional"
    count, again = counter.frame_count, tmp_path / "again.png"
    torch._dynamo.reset()
    assert main(["replay", str(out), "--model", str(tiny_model), "-q", "-o", str(again)]) == 0
    assert counter.frame_count > count and again.read_bytes() == out.read_bytes()


@pytest.mark.parametrize(("options", "match"), [
    ({"compile": "fulll"}, "compile is 'fulll'; choose regional or full, or False. Did you mean 'full'"),
    ({"compile": "regional", "cuda_graphs": True}, "CUDA graphs are for compile='full' on a CUDA device"),
    ({"compile": "full", "cuda_graphs": True}, "this is 'full' on cpu; leave them out"),
    ({"cuda_graphs": True}, "cuda_graphs go with compile='full'"),
])  # fmt: skip
def test_what_it_refuses(tiny_model, options, match):
    with pytest.raises(ValueError, match=match):
        Generator.from_pretrained(tiny_model, device="cpu", dtype="float32", **options)


def test_twice_and_without_blocks():
    network = build(DIT)
    compile_network(network, "regional")
    with pytest.raises(ValueError, match="is compiled already"):
        compile_network(network, "full")
    with pytest.raises(ValueError, match="has no repeated blocks"):
        compile_network(torch.nn.Linear(2, 2), "regional")


def test_cuda_graphs_are_asked_for_by_their_mode(monkeypatch):
    """Of a stand-in for torch.compile: the mode that records, a new step at every call, and results that are copies."""
    asked, steps, kept = {}, [], torch.ones(2, 4, 8, 8)

    def stand_in(function, **options):
        asked.update(options)
        return lambda *given: kept

    monkeypatch.setattr(torch, "compile", stand_in)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: steps.append(1))
    network = build(DIT)
    compile_network(network, "full", cuda_graphs=True, device="cuda")
    with torch.no_grad():
        out = network(*inputs(DIT, 2, (8, 8)))
    assert asked["mode"] == "reduce-overhead" and len(steps) == 1
    assert torch.equal(out, kept) and out.data_ptr() != kept.data_ptr()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("options", [{"compile": "regional"}, {"compile": "full", "cuda_graphs": True}])
def test_on_cuda(tiny_model, options):
    plain = Generator.from_pretrained(tiny_model, device="cuda", dtype="float32")
    fast = Generator.from_pretrained(tiny_model, device="cuda", dtype="float32", **options)
    for prompt in ("a cat", "a red heart"):
        torch.testing.assert_close(fast(prompt, **CALL).images, plain(prompt, **CALL).images, atol=1e-3, rtol=1e-3)
