"""No bit of a picture depends on the pictures beside it: docs/recipes.md, "What the promise is"."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gen.adapters import Adapter, Delta
from gen.generator import Generator
from gen.nn import batch_invariance as rounding
from samplers.cache.registry import CACHES
from samplers.guidance.registry import GUIDANCE
from samplers.registry import solver_names

WORDS = ["a red heart", "a cat", "a dog", "the moon on a dog", "a blue heart", "a red cat", "the moon", "a blue dog"]
LAST = 7  # the picture that is looked at
QUICK = {"num_inference_steps": 3, "output_type": "pt", "progress": False}


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def generator(request, tiny_model):
    return Generator.from_pretrained(tiny_model, device="cpu", dtype=request.param)


def check(generator, call=None, replay=None, **options):
    """The last of 8 pictures is the same to the bit in batches of 8 and 3, alone, and replayed."""
    call = call or generator
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = call(WORDS, seed=1, batch_size=8, **QUICK, **options)
        threes = call(WORDS, seed=1, batch_size=3, **QUICK, **options)
        alone = call(WORDS[LAST], seed=1 + LAST, **QUICK, **options)
        again = generator.replay(together.recipes[LAST], "pt", False, **(replay or {}))
    assert torch.equal(together.images, threes.images)
    assert torch.equal(together.images[LAST:], alone.images)
    assert torch.equal(together.images[LAST:], again.images)
    assert together.recipes[LAST].batch_invariant and not together.recipes[LAST].unrecorded
    assert torch.pdist(together.images.flatten(1)).min() > 0.01  # different pictures, or this would show nothing


HALF = ("dpmpp_2m", "euler_a", "unipc", "dpmpp_2m_sde", "heun")  # in bfloat16 too; a solver's own numbers are float32


@pytest.mark.parametrize(("generator", "sampler"), [
    pytest.param(dtype, name, marks=[pytest.mark.slow] if dtype == "bfloat16" and name not in HALF else [])
    for dtype in ("float32", "bfloat16") for name in solver_names()
], indirect=["generator"])  # fmt: skip
def test_every_solver(generator, sampler):
    if sampler in ("lcm", "tcd", "flow_map") and not hasattr(generator.denoiser.path, "table"):
        pytest.skip("not on this path")
    options = {"sampler_options": {"rtol": 3.0, "atol": 3.0}} if "dpm_adaptive" in sampler else {}
    try:
        generator("a cat", sampler=sampler, **QUICK, **options)
    except ValueError as error:
        pytest.skip(str(error))
    check(generator, sampler=sampler, **options)


def rule_options(name):
    layers = {"layers": (0,)} if "layers" in GUIDANCE[name].options else {}
    return {"guidance": name, **({"guidance_options": layers} if layers else {})}


@pytest.mark.parametrize("name", list(GUIDANCE))
def test_every_guidance_rule(generator, name):
    try:
        generator("a cat", **QUICK, **rule_options(name))
    except ValueError as error:
        pytest.skip(str(error))
    check(generator, **rule_options(name))


@pytest.mark.parametrize("name", list(CACHES))
def test_every_cache(generator, name):
    check(generator, cache=name)


def picture(side=32):
    return np.linspace(0, 255, side * side * 3).reshape(side, side, 3).astype(np.uint8)


def half():
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    return mask


def test_kinds_of_run(generator):
    image = {"image": picture()}
    check(generator, replay=image, **image)
    check(generator, replay={**image, "mask": half()}, mask=half(), **image)
    check(generator, negative_prompt="blurry")
    check(generator, guidance_scale=1.0)
    check(generator, cache="reuse", guidance="apg + rescale", sampler="euler_a")
    check(generator, call=lambda prompt, **more: generator.restore(picture(), "colorize", prompt, **more), replay=image)
    canvas = {"width": 64, "height": 32, "window": 32, **QUICK}
    wide = generator.panorama("a cat", num_images_per_prompt=3, seed=1, **canvas)
    assert torch.equal(generator.panorama("a cat", seed=3, **canvas).images, wide.images[2:])
    two = {"background": "a cat", "regions": [{"prompt": "a dog", "box": [0, 0, 0.5, 1]}]}
    parts = generator(layout=two, num_images_per_prompt=3, seed=1, **QUICK)
    assert torch.equal(generator(layout=two, seed=3, **QUICK).images, parts.images[2:])
    views = generator.ambiguous("a cat", ["a dog"], num_images_per_prompt=3, seed=1, **QUICK)
    assert torch.equal(generator.ambiguous("a cat", ["a dog"], seed=3, **QUICK).images, views.images[2:])


def mean_red(images, condition):
    return -((images[:, 0] - 0.9) ** 2).mean((1, 2)) * 50


def test_guided_by_an_energy(generator):
    """With gradients through the network and the decoder."""
    for method in ("tfg", "dps", "mpgd"):
        call = {"guide": mean_red, "guide_method": method}
        many = generator(WORDS[:3], seed=1, batch_size=3, **QUICK, **call)
        for i in range(3):
            assert torch.equal(generator(WORDS[i], seed=1 + i, **QUICK, **call).images[0], many.images[i]), method


def test_adapters(tiny_model):
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="bfloat16")
    draw = torch.Generator().manual_seed(1)
    for name in ("one", "two"):
        factors = {"down": torch.randn(4, 32, generator=draw), "up": torch.randn(96, 4, generator=draw)}
        generator.load_adapter(Adapter(name, {"denoiser.mid_block.attn.qkv": Delta(factors)}), weight=0.3)
    many = generator(WORDS, seed=1, **QUICK)
    assert torch.equal(generator(WORDS[LAST], seed=1 + LAST, **QUICK).images, many.images[LAST:])


def test_a_lokr_whose_first_factor_is_no_batch(tiny_model):
    """W1 stands on the left of its product, where other functions have the batch."""
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    draw = torch.Generator().manual_seed(2)
    factors = {"lokr_w1": torch.randn(4, 8, generator=draw) * 0.3, "lokr_w2": torch.randn(8, 4, generator=draw)}
    generator.load_adapter(Adapter("kron", {"denoiser.mid_block.attn.to_q": Delta(factors)}), weight=0.5)
    many = generator(WORDS, seed=1, batch_size=4, **QUICK)
    assert torch.equal(generator(WORDS[LAST], seed=1 + LAST, **QUICK).images, many.images[LAST:])
    each = generator(WORDS, seed=1, batch_invariant=False, **QUICK)
    assert torch.allclose(many.images, each.images, atol=1e-3)  # rounding, grown by a random network


def test_pictures_of_a_class_model(class_model):
    generator = Generator.from_pretrained(class_model, device="cpu", dtype="bfloat16")
    many = generator(class_labels=[0, 1, 2], seed=1, **QUICK).images
    for i in range(3):
        assert torch.equal(generator(class_labels=[i], seed=1 + i, **QUICK).images[0], many[i])


def differs(rows):
    """A product whose last bit depends on the number of rows, as kernels' do."""

    def linear(x, weight, bias=None):
        order = torch.arange(x.shape[-1]).flip(0) if len(x) > rows else torch.arange(x.shape[-1])
        total = torch.zeros(*x.shape[:-1], len(weight))
        for k in order.tolist():
            total = total + x[..., k, None] * weight[:, k]
        return total

    return linear


@pytest.mark.parametrize(("rows", "block"), [(1, 1), (2, 2), (5, 4), (7, 4), (8, 8)])
def test_a_function_is_called_in_the_largest_blocks_that_round_alike(monkeypatch, rows, block):
    linear, sizes = differs(rows), []

    def counted(x, weight):
        sizes.append(len(x))
        return linear(x, weight)

    monkeypatch.setitem(rounding.PRODUCTS, counted, (0,))
    monkeypatch.setattr(rounding, "LINEAR", (*rounding.LINEAR, counted))
    x, weight = torch.randn(8, 3, 16), torch.randn(5, 16)
    with rounding.batch_invariance(True):
        rounding.call_in_mode(counted, x, weight)
        sizes.clear()
        found = rounding.call_in_mode(counted, x, weight)
    assert sizes == [block] * (8 // block)
    assert torch.equal(found, torch.cat([linear(row[None], weight) for row in x]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(37, 72), (64, 256), (4, 128, 128), (3, 5)])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_function_gives_each_row_what_it_gets_alone(shape, dtype, threads):
    """Over odd sizes and threads, which is where vectors end and sums are cut."""
    before = torch.get_num_threads()
    functions = [F.silu, torch.sigmoid, F.gelu, F.mish, torch.rsqrt, torch.exp, lambda x: x**0.3]
    functions += [lambda x: x.sum(tuple(range(1, x.ndim))), lambda x: x.mean(tuple(range(1, x.ndim)))]
    functions += [lambda x: F.linear(x, weight), lambda x: x @ weight.T, lambda x: torch.einsum("b...k,nk->b...n", x, weight)]
    try:
        torch.set_num_threads(threads)
        x = torch.rand(8, *shape, generator=torch.Generator().manual_seed(1)).to(dtype) + 0.1
        weight = torch.randn(24, shape[-1], generator=torch.Generator().manual_seed(2)).to(dtype)
        for function in functions[:-1]:
            with rounding.batch_invariance(True):
                together = function(x)
                threes = function(x[:3].clone())
                alone = torch.cat([function(row[None].clone()) for row in x])
            assert torch.equal(together, alone) and torch.equal(threes, alone[:3])
    finally:
        torch.set_num_threads(before)


def test_it_is_asked_for_by_call_generator_and_recipe(tiny_model):
    for made, asked, expected in ((None, None, True), (False, None, False), (False, True, True), (None, False, False)):
        generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32", batch_invariant=made)
        recipe = generator("a cat", batch_invariant=asked, **QUICK).recipes[0]
        assert recipe.batch_invariant is expected
        assert generator.replay(recipe, "pt", False).recipes[0].batch_invariant is expected
    with pytest.raises(ValueError, match="batch_invariant is 'yes'; give True, False"):
        generator("a cat", batch_invariant="yes", **QUICK)


def test_modes_of_others_stay_as_they_were(tiny_model):
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    generator("", seed=1, **QUICK)  # one row, for which the mode steps aside
    assert torch._C._len_torch_function_stack() == 0 and getattr(rounding._run, "mode", None) is None
    with pytest.raises(ValueError, match="NaN"):
        generator(
            "a cat", latents=None, callback_on_step_end=lambda *given: {"latents": given[3]["latents"] * float("nan")}, **QUICK
        )
    assert torch._C._len_torch_function_stack() == 0
