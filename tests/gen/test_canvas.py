"""Canvases through `Generator`: against the samplers' own functions, kept to the pixel, replayed to the bit."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image

from gen.generator import Generator
from gen.io.errors import RecipeError
from gen.nn.conditions import pad_to_longest
from gen.pipeline.progress import CountEvaluations
from gen.pipeline.recipe import Recipe
from gen.tasks.canvas import task as canvases
from gen.tasks.canvas.options import CanvasRecord
from gen.tasks.canvas.task import make_canvas
from samplers.canvas.multidiffusion import MultiDiffusion
from samplers.canvas.shifted import ShiftedWindows
from samplers.canvas.sync_diffusion import SyncDiffusion, style_distance
from samplers.canvas.windows import Windows
from samplers.editing import image_to_image
from samplers.guidance import ClassifierFree
from samplers.noise import normal, seeded_noise
from samplers.path import RectifiedFlow
from samplers.registry import get_grid, get_solver
from samplers.sample import sample
from tests.distill.processes import on_processes

QUICK = {"num_inference_steps": 2, "progress": False, "seed": 7}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """Of no size that a model likes."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 29, 3), dtype=np.uint8))


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def text(tiny, *prompts):
    return tiny.encode_prompt(prompts)


def by_hand(tiny, windows, solver, condition, seeds, **options):
    """The canvas built from the samplers' own parts."""
    levels = get_grid("uniform", RectifiedFlow(), 2)
    eps = normal(seeds, (4, *windows.canvas), "latents")
    field = MultiDiffusion(ClassifierFree(tiny.denoiser, 3.0, options.pop("negative", None)), windows, **options)
    with torch.no_grad():
        return sample(field, solver, eps, levels, condition, noise=seeded_noise(seeds, eps))


def test_a_panorama_is_the_samplers_own(tiny):
    windows = Windows.regular((9, 19), (8, 8), (4, 4), "linear", (False, True))
    expected = by_hand(tiny, windows, get_solver("dpmpp_2m"), text(tiny, "a cat", "a cat"), [7, 8], batch=6)
    made = tiny.panorama(
        "a cat", width=76, height=36, circular=True, window_batch=6, num_images_per_prompt=2, output_type="latent", **QUICK
    )
    torch.testing.assert_close(made.images, expected, rtol=0, atol=1e-5)
    recipe = made.recipes[0]
    assert (recipe.height, recipe.width, recipe.nfe, recipe.canvas.stride) == (36, 76, 2 * 2 * 10, (16, 16))


def test_a_panorama_of_shifted_windows_is_the_samplers_own(tiny):
    """Each picture's windows move with its own seed, and find their prompts; recipes replay."""
    prompts, windows = ["a red heart", "a cat"], ShiftedWindows((9, 19), (8, 8), (4, 4), "flat", (False, True), (7, 8))
    conditions = [text(tiny, *prompts)[k : k + 1] for k in range(2)]

    def half(down, across):
        return int(across >= 0.5)

    hand = {"batch": 6, "conditions": conditions, "chosen": half}
    expected = by_hand(tiny, windows, get_solver("dpmpp_2m"), text(tiny, "a cat", "a cat"), [7, 8], **hand)
    call = {"width": 76, "height": 36, "circular": True, "window_batch": 6, "weights": "flat", "output_type": "latent"}
    made = tiny.panorama(prompts, num_images_per_prompt=2, shift_from=-20, **call, **QUICK)
    torch.testing.assert_close(made.images, expected, rtol=0, atol=1e-5)
    recipe = Recipe.from_json(made.recipes[1].to_json())
    assert recipe.canvas.shift_from == -20 and recipe.nfe == 2 * 2 * 10
    again = tiny.replay(recipe, output_type="latent", progress=False)
    torch.testing.assert_close(again.images, made.images[1:], rtol=0, atol=1e-5)


def _rank(tiny, photo, call, expected):
    dist.init_process_group("gloo")
    group = dist.group.WORLD
    made = tiny.panorama("a cat", group=group, **call)
    torch.testing.assert_close(made.images, expected[0], rtol=0, atol=1e-5)
    assert made.nfe == expected[1]
    painted = tiny.outpaint(photo, "a cat", right=16, output_type="latent", group=group, **QUICK)
    torch.testing.assert_close(painted.images, expected[2], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="asked for different ones"):
        tiny.panorama("a cat", group=group, **{**call, "seed": dist.get_rank()})
    with pytest.raises(ValueError, match="all windows in one process"):
        tiny.panorama("a cat", group=group, sync=0.1, **call)


def test_two_processes_make_the_picture_of_one(tiny, photo):
    call = {"width": 64, "height": 32, "window_batch": 2, "shift_from": -20, "output_type": "latent", **QUICK}
    made = tiny.panorama("a cat", **call)
    painted = tiny.outpaint(photo, "a cat", right=16, output_type="latent", **QUICK)
    on_processes(2, _rank, tiny, photo, call, (made.images, made.nfe, painted.images))


def test_prompts_are_spread_along_the_width_and_synchronised(tiny):
    prompts, windows = ["a red heart", "a cat"], Windows.regular((8, 16), (8, 8), (8, 4), "flat")
    tokens = text(tiny, *prompts)
    conditions = [tokens[:1], tokens[1:]]
    solver = SyncDiffusion(get_solver("dpmpp_2m"), style_distance, 0.05)
    tokens, negative = pad_to_longest([tokens, text(tiny, "blurry")])
    hand = {"negative": negative, "conditions": conditions, "chosen": [0, 1, 1]}
    expected = by_hand(tiny, windows, solver, tokens[:1], [7], **hand)
    call = {"weights": "flat", "sync": 0.05, "negative_prompt": "blurry", "output_type": "latent", **QUICK}
    made = tiny.panorama(prompts, width=64, height=32, **call)
    torch.testing.assert_close(made.images, expected, rtol=0, atol=2e-5)  # by hand, kernels get all rows at once
    assert made.recipes[0].prompt == "a red heart | a cat" and made.recipes[0].canvas.prompts == tuple(prompts)
    apart = tiny.panorama(prompts, width=64, height=32, **{**call, "sync": 0.0})
    assert (apart.images - made.images).abs().max() > 1e-3


def test_panoramas_replay_to_the_bit(tiny):
    call = {"circular": "both", "sync": 0.03, "sync_distance": "pictures", "cache": "reuse", "negative_prompt": "blurry"}
    made = tiny.panorama(["a cat", "the moon"], width=56, height=40, sampler="euler_a", window_batch=3, **call, **QUICK)
    recipe = Recipe.from_json(made.recipes[0].to_json())
    again = tiny.replay(recipe, progress=False)
    assert again.images[0].tobytes() == made.images[0].tobytes() and again.recipes[0] == made.recipes[0]
    other = recipe.canvas.model_copy(update={"circular": (False, False)})
    changed = tiny.replay(recipe.model_copy(update={"canvas": other}), progress=False)
    assert changed.images[0].tobytes() != made.images[0].tobytes()


def test_painting_around_keeps_the_picture_to_the_pixel(tiny, photo):
    made = tiny.outpaint(photo, "a cat", left=13, bottom=3, window_batch=2, **QUICK)
    image, recipe = pixels(made.images[0]), made.recipes[0]
    assert image.shape == (40, 42, 3)
    assert (image[:37, 13:] == pixels(photo)).all()
    assert (recipe.height, recipe.width, recipe.made_at) == (40, 42, (40, 44)) and recipe.canvas.extend == (13, 0, 0, 3)
    again = tiny.replay(Recipe.from_json(recipe.to_json()), image=photo, progress=False)
    assert again.images[0].tobytes() == made.images[0].tobytes()
    twice = tiny.outpaint(photo, "a cat", left=13, bottom=3, window_batch=2, recurrence=2, **QUICK)
    assert twice.nfe == 2 * made.nfe and (pixels(twice.images[0])[:37, 13:] == pixels(photo)).all()
    assert tiny.replay(twice.recipes[0], image=photo, progress=False).images[0].tobytes() == twice.images[0].tobytes()
    other = tiny.outpaint(photo, "a cat", left=13, bottom=3, window_batch=2, **{**QUICK, "seed": 8})
    assert (pixels(other.images[0])[:, :13] != image[:, :13]).mean() > 0.2
    with pytest.raises(ValueError, match="sha256 differs"):
        tiny.replay(recipe, image=photo.transpose(Image.Transpose.FLIP_TOP_BOTTOM), progress=False)
    with pytest.raises(ValueError, match="not the one that the recipe is of"):
        tiny.replay(recipe, image=photo.resize((20, 20)), progress=False)
    with pytest.raises(ValueError, match="without a mask"):
        tiny.replay(recipe, image=photo, mask=photo, progress=False)
    with pytest.raises(ValueError, match="give it as image"):
        tiny.replay(recipe, progress=False)


def test_upscaling_is_image_to_image_in_windows(tiny, photo):
    made = tiny.upscale(photo, "a cat", scale=1.5, strength=0.5, output_type="latent", **{**QUICK, "num_inference_steps": 4})
    picture = torch.from_numpy(pixels(photo).copy()).permute(2, 0, 1)[None] / 255
    large = F.interpolate(picture, (56, 44), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    latents, eps = tiny.autoencoder.encode(large * 2 - 1).detach(), normal([7], (4, 14, 11), "latents")
    field = MultiDiffusion(ClassifierFree(tiny.denoiser, 3.0), Windows.regular((14, 11), (8, 8), (4, 4), "linear"))
    levels = get_grid("uniform", RectifiedFlow(), 4)
    with torch.no_grad():
        expected = image_to_image(field, get_solver("dpmpp_2m"), latents, eps, levels, 0.5, text(tiny, "a cat"))
    torch.testing.assert_close(made.images, expected, rtol=0, atol=1e-5)
    shown = tiny.upscale(photo, "a cat", scale=1.2, **QUICK, strength=0.5)
    assert shown.images[0].size == (35, 44) and shown.recipes[0].made_at == (44, 36)
    again = tiny.replay(shown.recipes[0], image=photo, progress=False)
    assert again.images[0].tobytes() == shown.images[0].tobytes()


def test_noise_is_drawn_for_the_whole_canvas(tiny, monkeypatch):
    """Windows agree where they overlap; drawn apart and averaged, noise would lose variance there."""
    seen, call = [], CountEvaluations.__call__
    monkeypatch.setattr(CountEvaluations, "__call__", lambda self, x, *rest: (seen.append(x), call(self, x, *rest))[1])
    tiny.panorama("", width=48, height=32, output_type="latent", guidance_scale=1.0, **QUICK)
    noise = normal([7], (4, 8, 12), "latents")
    assert torch.equal(seen[0], torch.cat([noise[..., :8], noise[..., 4:]]))


def test_the_bar_counts_evaluations_and_previews_show_the_canvas(tiny, monkeypatch):
    bar = SimpleNamespace(n=0, total=None, unit="")
    bar.update = lambda n: setattr(bar, "n", bar.n + n)
    monkeypatch.setattr("gen.pipeline.run.open_bar", lambda steps, show: _Open(bar))
    seen = []

    def callback(generator, step, t, given):
        seen.append((generator.preview(given["denoised"])[0].size, bar.n))

    options = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ("denoised",), "batch_size": 1}
    call = {"width": 48, "height": 32, "sampler": "heun", "num_images_per_prompt": 2, "window_batch": 1, **options}
    made = tiny.panorama("a cat", **call, **QUICK)
    assert bar.n == bar.total == 2 * made.nfe and bar.unit == "evaluation"
    assert {size for size, _ in seen} == {(12, 8)} and sorted({n for _, n in seen})[0] >= 4


class _Open:
    def __init__(self, bar):
        self.bar = bar

    def __enter__(self):
        return self.bar

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": "cfg++", "guidance_scale": 0.8, "sampler": "dpmpp_3m_sde"},
        {"guidance": "pag + rescale", "guidance_options": {"layers": (1,)}, "sampler": "unipc", "cache": "first_block"},
        {"guide": "brightness", "guide_strength": 0.2, "sampler": "restart", "sampler_options": {"steps": 2}},
    ],
    ids=lambda options: options["sampler"],
)
def test_everything_else_works_inside(tiny, options):
    call = {"width": 48, "height": 32, "output_type": "latent", **QUICK}
    made, plain = tiny.panorama("a cat", **call, **options), tiny.panorama("a cat", **call)
    assert torch.isfinite(made.images).all() and (made.images - plain.images).abs().max() > 1e-3
    again = tiny.replay(made.recipes[0], output_type="latent", progress=False)
    assert torch.equal(again.images, made.images)


def test_less_memory_means_fewer_windows_at_once(tiny, monkeypatch):
    call = CountEvaluations.__call__

    def small(self, x, *rest):
        if len(x) > 2:
            raise torch.OutOfMemoryError("no")
        return call(self, x, *rest)

    whole = tiny.panorama("a cat", width=96, height=32, guidance_scale=1.0, window_batch=2, **QUICK)
    monkeypatch.setattr(CountEvaluations, "__call__", small)
    made = tiny.panorama("a cat", width=96, height=32, guidance_scale=1.0, **QUICK)
    assert made.recipes[0].canvas.batch == 2 and made.images[0].tobytes() == whole.images[0].tobytes()
    monkeypatch.setattr(CountEvaluations, "__call__", lambda self, x, *rest: small(self, torch.cat([x] * 3), *rest))
    with pytest.raises(ValueError, match="does not fit in the memory"):
        tiny.panorama("a cat", width=48, height=32, **QUICK)


def test_a_circular_canvas_is_decoded_as_a_circle(tiny):
    record = CanvasRecord(kind="panorama", window=(32, 32), stride=(16, 16), circular=(False, True))
    canvas, latents = make_canvas(tiny, record, None, 32, 96), normal([3], (4, 8, 24), "x")
    images = canvas.decode(tiny, latents, None, tiny.decode)
    assert images.shape == (1, 3, 32, 96)
    torch.testing.assert_close(
        canvas.decode(tiny, latents.roll(5, 3), None, tiny.decode), images.roll(20, 3), rtol=0, atol=1e-5
    )
    assert (tiny.decode(latents) - images).abs().max() > 1e-3


def test_large_canvases_are_decoded_in_parts(tiny, monkeypatch):
    monkeypatch.setattr(canvases, "WHOLE", 32), monkeypatch.setattr(canvases, "OVERLAP", 8)
    sizes = []

    def decode(latents):
        sizes.append(latents.shape[2] * latents.shape[3])
        return F.interpolate(latents[:, :3], scale_factor=4)

    record = CanvasRecord(kind="panorama", window=(32, 32), stride=(16, 16))
    canvas, latents = make_canvas(tiny, record, None, 40, 96), normal([3, 4], (4, 10, 24), "x")
    shown = canvas.decode(SimpleNamespace(factor=4, autoencoder=1), latents, None, lambda z, crop: decode(z))
    torch.testing.assert_close(shown, F.interpolate(latents[:, :3], scale_factor=4), rtol=0, atol=1e-6)
    assert max(sizes) <= 64 and len(sizes) > 4


def test_a_network_that_reads_its_size_is_told_the_windows(tiny, monkeypatch):
    seen, call = [], CountEvaluations.__call__
    monkeypatch.setattr(CountEvaluations, "__call__", lambda self, x, l, c, k: (seen.append(c), call(self, x, l, c, k))[1])
    monkeypatch.setattr(tiny.network, "config", tiny.network.config.model_copy(), raising=False)
    object.__setattr__(tiny.network.config, "size_conditions", True)
    tiny.panorama("a cat", width=48, height=32, guidance_scale=1.0, output_type="latent", **QUICK)
    assert seen[0].extra["size"].tolist() == [[32.0, 32.0]] * 2


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("panorama", {"width": 16}, "Windows of 32 pixels do not fit a canvas that is 16 wide"),
        ("panorama", {"width": 50}, "the nearest allowed: 48 and 52"),
        ("panorama", {"window": 20}, "the window of the canvas is 20, which is not a multiple of 8"),
        ("panorama", {"window": "32"}, "give a number of pixels, or a height and a width"),
        ("panorama", {"stride": 40}, "A stride of 40 leaves gaps between windows of 32"),
        ("panorama", {"stride": (4, 6)}, "the stride of the canvas is 6"),
        ("panorama", {"width": 16_384, "height": 512, "stride": 4}, "some 524288 windows"),
        ("panorama", {"weights": "hann"}, "choose one of flat, linear, cosine, gaussian"),
        ("panorama", {"circular": "round"}, "choose one of none, horizontal, vertical, both"),
        ("panorama", {"prompt": ["a cat"] * 101}, "101 prompts were given; at most 100"),
        ("panorama", {"sync": -1}, "sync is -1"),
        ("panorama", {"sync": 1, "sync_distance": "lpips"}, "choose latent or pictures, or give a function"),
        ("panorama", {"sync_distance": "picture"}, "Unknown sync_distance 'picture': choose latent or pictures"),
        ("panorama", {"sync": 1, "sync_distance": "lpips:"}, "give a safetensors file of yours: lpips:FILE"),
        ("panorama", {"window_batch": 0}, "window_batch is 0"),
        ("panorama", {"shift_from": 0, "cache": "reuse"}, "leave cache or shift_from out"),
        ("panorama", {"shift_from": "all"}, "shift_from is 'all'"),
        ("outpaint", {}, "give left, right, top or bottom"),
        ("outpaint", {"left": -3}, "left is -3"),
        ("outpaint", {"left": 8, "recurrence": 0}, "recurrence is 0"),
        ("outpaint", {"left": 8, "width": 64}, "width is given by the picture itself"),
        ("upscale", {"scale": 0.5}, "scale is 0.5"),
        ("upscale", {"mask": 1}, "mask is given by the picture itself"),
    ],
)
def test_wrong_requests_are_refused_in_a_sentence(tiny, photo, method, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(tiny, method)(*([] if method == "panorama" else [photo]), **options, **QUICK)


def test_a_distance_of_ones_own_is_used_and_named(tiny):
    shapes = []

    def distance(a, b):
        shapes.append((a.shape, b.shape))
        return (a - b).square().sum((1, 2, 3))

    made = tiny.panorama("a cat", width=48, height=32, sync=0.1, sync_distance=distance, **QUICK)
    assert set(shapes) == {((1, 3, 32, 32),) * 2} and made.recipes[0].unrecorded == ("distance of SyncDiffusion",)
    with pytest.raises(ValueError, match="which no recipe can hold"):
        tiny.replay(made.recipes[0], progress=False)


def test_lpips_is_a_distance_by_the_file_of_its_weights(tiny, monkeypatch):
    """Of pictures in [-1, 1], by name and so from the command line; a recipe does not have the file opened again."""
    import gen.tasks.energies.lpips as module

    opened, seen = [], []

    class Network:
        def to(self, device):
            return self

        def __call__(self, x, y):
            seen.append((float(x.detach().min()), float(x.detach().max())))
            return (x - y).square().sum((1, 2, 3))

    monkeypatch.setattr(module, "load_lpips", lambda path: opened.append(path) or Network())
    made = tiny.panorama("a cat", width=48, height=32, sync=0.1, sync_distance="lpips:vgg.safetensors", **QUICK)
    assert opened == ["vgg.safetensors"] and min(low for low, _ in seen) < 0
    own = tiny.panorama(
        "a cat", width=48, height=32, sync=0.1, sync_distance=lambda a, b: 4 * (a - b).square().sum((1, 2, 3)), **QUICK
    )
    assert made.images[0].tobytes() == own.images[0].tobytes()
    assert made.recipes[0].unrecorded == ("distance of SyncDiffusion",) and "vgg" not in made.recipes[0].to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "mosaic"},
        {"window": [0, 8]},
        {"stride": [8]},
        {"batch": 0},
        {"sync": float("nan")},
        {"extend": [1, 2, 3, 4]},
        {"kind": "outpaint"},
        {"prompts": "a cat"},
        {"prompts": ["a cat"] * 101},
        {"code": "import os"},
    ],
    ids=str,
)
def test_damaged_records_are_refused(tiny, change):
    recipe = tiny.panorama("", width=32, height=32, output_type="latent", **QUICK).recipes[0]
    data = json.loads(recipe.to_json())
    data["canvas"] |= change
    with pytest.raises(RecipeError, match="damaged or not ours"):
        Recipe.from_json(json.dumps(data))


def test_windows_of_a_model_of_pixels_and_classes(class_model):
    model = Generator.from_pretrained(class_model, device="cpu", dtype="float32")
    made = model.panorama(class_labels="dog", width=20, circular=True, num_inference_steps=3, seed=1, progress=False)
    assert made.images[0].size == (20, 8) and made.recipes[0].class_label == 1
    assert made.nfe == 3 * 2 * 5
