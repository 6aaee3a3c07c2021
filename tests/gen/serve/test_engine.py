"""Pictures from shared forward passes are to the last bit those made alone."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from gen.adapters import Adapter, write_adapter
from gen.generator import Generator
from gen.serve.engine import ServingEngine
from gen.serve.jobs import ServeJob
from gen.serve.models import ModelSource
from samplers.cache.registry import CACHES
from samplers.guidance.registry import GUIDANCE
from samplers.registry import solver_names
from tests.gen.test_adapters_generator import DENOISER, TEXT, lora
from tests.gen.test_batches import HALF, rule_options
from tests.gen.translators import saved_translator

pytestmark = pytest.mark.filterwarnings("ignore")  # of samplers that spoil pictures at three steps, say
QUICK = {"num_inference_steps": 3, "output_type": "pt"}  # all bits of float32, which bytes of pictures would hide


def engine_of(generator, **options):
    return ServingEngine({"tiny": ModelSource(lambda: generator)}, **{"max_rows": 64, **options})


def job(seed=1, client="one", **keywords):
    own = {name: keywords.pop(name) for name in ("adapters", "method", "previews", "deadline", "listener") if name in keywords}
    seeds = seed if isinstance(seed, list) else [seed]
    return ServeJob("tiny", client, {"prompt": "a cat", **QUICK, **keywords}, seeds, **own)


def run_all(engine):
    """Rounds until there is nothing to do."""
    engine.round()
    engine.pool.wait()
    while engine.round():
        pass


def pixels(image):
    return np.asarray(image).tobytes()


def alone(generator, one):
    """What the generator makes of a job by itself."""
    call = getattr(generator, one.method) if one.method else generator
    generator.adapters = dict(one.adapters)
    try:
        made = [call(**one.keywords, seed=seed, progress=False) for seed in one.seeds]
    finally:
        generator.adapters = {}
    return [(output.images[0], output.recipes[0]) for output in made]


def check_equal(generator, jobs, shared=True, **options):
    """All jobs at once are what each is alone, and went together (or not)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [alone(generator, one) for one in jobs]
        engine = engine_of(generator, **options)
        for one in jobs:
            engine.submit(one)
        run_all(engine)
        passes = engine.pool.loaded["tiny"].collector.passes
    for one, pairs in zip(jobs, expected, strict=True):
        for (image, recipe), (own, own_recipe) in zip(one.result(0), pairs, strict=True):
            assert pixels(image) == pixels(own), one.keywords
            assert recipe == own_recipe
    assert len({pixels(image) for pairs in expected for image, _ in pairs}) == sum(map(len, expected))
    assert (passes.shared > 0) == shared
    return engine


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def generator(request, tiny_model):
    return Generator.from_pretrained(tiny_model, device="cpu", dtype=request.param)


def test_different_requests_share_passes(generator):
    jobs = [
        job(1, prompt="a red heart"),
        job(2, prompt="a dog", negative_prompt="blurry", num_inference_steps=5),
        job(3, prompt="the moon on a dog", sampler="euler_a", guidance_scale=7.0),
        job(4, prompt="a blue cat", guidance="apg + rescale", num_inference_steps=2),
        job(5, prompt="", sampler="heun"),
        job(6, prompt="[a cat:a dog:0.5]", cache="reuse"),
        job([7, 8, 9], prompt="a cat AND a dog"),
    ]
    engine = check_equal(generator, jobs)
    passes = engine.pool.loaded["tiny"].collector.passes
    assert passes.shared > 0.8 * passes.rows and not passes.alone


@pytest.mark.parametrize(("generator", "sampler"), [
    pytest.param(dtype, name, marks=[pytest.mark.slow] if dtype == "bfloat16" and name not in HALF else [])
    for dtype in ("float32", "bfloat16") for name in solver_names()
], indirect=["generator"])  # fmt: skip
def test_every_solver(generator, sampler):
    options = {"sampler_options": {"rtol": 3.0, "atol": 3.0}} if "dpm_adaptive" in sampler else {}
    try:
        generator("a cat", sampler=sampler, progress=False, **QUICK, **options)
    except ValueError as error:
        pytest.skip(str(error))
    check_equal(generator, [job(1, sampler=sampler, **options), job(2, prompt="a dog"), job(3, sampler=sampler, **options)])


@pytest.mark.parametrize("name", list(GUIDANCE))
def test_every_guidance_rule(generator, name):
    try:
        generator("a cat", progress=False, **QUICK, **rule_options(name))
    except ValueError as error:
        pytest.skip(str(error))
    check_equal(generator, [job(1, **rule_options(name)), job(2, prompt="a dog"), job(3, prompt="a dog", sampler="euler_a")])


@pytest.mark.parametrize("name", list(CACHES))
def test_every_cache(generator, name):
    check_equal(generator, [job(1, cache=name, num_inference_steps=6), job(2, prompt="a dog"), job(3, prompt="the moon")])


def picture(side=32):
    return np.linspace(0, 255, side * side * 3).reshape(side, side, 3).astype(np.uint8)


def test_kinds_of_run(generator):
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    layout = {"background": "a cat", "regions": [{"prompt": "a dog", "box": [0, 0, 0.5, 1]}]}
    jobs = [
        job(1, image=picture(), strength=0.7),
        job(2, image=picture(), mask=mask),
        job(3, layout=layout),
        job(4, guide=lambda images, condition: images.mean((1, 2, 3))),
        job(5, method="panorama", width=64, height=32, window=32),
        job(6, width=64, height=32),
        job(7),
    ]
    passes = check_equal(generator, jobs).pool.loaded["tiny"].collector.passes
    assert set(passes.alone) == {"gradients"}


@pytest.fixture
def files(tmp_path):
    made = {"style": lora(0, *DENOISER), "both": lora(1, *DENOISER, *TEXT), "other": lora(2, *DENOISER[1:])}
    return {
        name: write_adapter(Adapter(name, layers), tmp_path / f"{name}.safetensors", "diffusers")
        for name, layers in made.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_by_row(tiny_model, files, dtype):
    """Requests of different adapters share passes; one without any is what a model is that has none loaded."""
    plain = Generator.from_pretrained(tiny_model, device="cpu", dtype=dtype)
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype=dtype)
    for name, path in files.items():
        generator.load_adapter(path, name, weight=0.0)
    generator.set_adapters({})
    composite = {"style": 0.5, "both": 0.25}
    jobs = [
        job(1, adapters={"style": 0.8}),
        job(1, adapters={"both": -0.4}),
        job(1, adapters={"style": 0.3, "other": 0.6}),
        job(1, adapters={"other": 0.6}, prompt="a dog"),
        job(1, adapters=composite, composition="composite"),
        job(2, prompt="a cat <lora:both:0.7>"),
        job(1),
    ]
    engine = check_equal(generator, jobs, adapters=files)
    assert not engine.pool.loaded["tiny"].collector.passes.alone
    assert pixels(alone(plain, job(1))[0][0]) == pixels(jobs[-1].result(0)[0][0])


def test_adapters_after_a_translation(tiny_model, files, tmp_path):
    """A translation loads the first adapter of a model, in a run of its own; what is loaded later joins the same table."""
    generator = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")
    asked = {"translate": torch.rand(3, 32, 32), "translator": saved_translator(generator, tmp_path / "translator")}
    asked |= {"num_inference_steps": 1, "guidance_scale": 1.0}
    engine = engine_of(generator, adapters=files)
    jobs = [job(1, **asked), job(1, adapters={"style": 0.8}), job(2, **asked), job(3)]
    for one in jobs:
        engine.submit(one)
        run_all(engine)
        assert one.result(0)[0][0] is not None, one.error
    assert pixels(alone(generator, job(1, adapters={"style": 0.8}))[0][0]) == pixels(jobs[1].result(0)[0][0])


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl", "pixart", "sd3", "sana", "lumina2"])
def test_models_of_others(bridged, name):
    """Also such as are told what the empty prompt is, which differs between runs."""
    _, generator = bridged(name)
    reading = {"stable_diffusion": {"clip_skip": 1}, "sdxl": {"clip_skip": 1}}.get(name, {})
    jobs = [job(1), job(2, prompt="a dog on the moon", **reading), job(3, negative_prompt="blurry"), job(4, sampler="euler_a")]
    jobs = [*jobs, job(5, **reading)] if reading else jobs
    check_equal(generator, jobs)


def test_classes_share_passes(class_model):
    generator = Generator.from_pretrained(class_model, device="cpu", dtype="float32")
    check_equal(generator, [job(seed, prompt=None, class_labels=[seed - 1]) for seed in (0, 1, 2, 3)])


def test_a_whole_pipeline_runs_in_its_turn():
    from tests.gen.pipelines import stable_diffusion

    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    generator = Generator.from_pipeline(pipe)
    engine = engine_of(generator)
    jobs = [engine.submit(job(seed, client=str(seed), height=32, width=32)) for seed in (1, 2)]
    run_all(engine)
    assert all(pixels(one.result(0)[0][0]) == pixels(alone(generator, one)[0][0]) for one in jobs)


def test_a_text_is_read_once_for_all_requests(tiny_model, monkeypatch):
    """Also of requests that come one after another."""
    generator = Generator.from_pretrained(tiny_model, "cpu", "float32")
    read, condition = [], type(generator.text_encoder).condition
    monkeypatch.setattr(
        type(generator.text_encoder), "condition", lambda self, text, *more: read.append(text) or condition(self, text, *more)
    )
    engine = engine_of(generator)
    for seed in range(3):
        engine.submit(job(seed, prompt="a dog"))
        run_all(engine)
    assert read.count("a dog") == 1


def test_without_the_promise_pictures_agree_to_rounding(tiny):
    """As in any batch; and those with it share no pass with those without."""
    jobs = [job(seed, batch_invariant=False, prompt=prompt) for seed, prompt in enumerate(["a cat", "a dog", "the moon"])]
    kept = [job(seed, prompt="a red heart") for seed in (4, 5)]
    expected = [alone(tiny, one)[0][0] for one in (*jobs, *kept)]
    engine = engine_of(tiny)
    for one in (*jobs, *kept):
        engine.submit(one)
    run_all(engine)
    assert engine.pool.loaded["tiny"].collector.passes.shared
    for one, own in zip(jobs, expected, strict=False):
        assert torch.allclose(one.result(0)[0][0], own, atol=1e-3)
    assert all(torch.equal(one.result(0)[0][0], own) for one, own in zip(kept, expected[3:], strict=True))
