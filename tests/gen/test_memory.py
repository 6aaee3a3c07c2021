"""Memory of a call: what is kept of finished pictures, and what is tried where memory runs out."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from gen.generator import Generator
from gen.models import decoding as fitting

PROMPTS = ["a red heart", "a cat", "a dog", "the moon on a dog"]
ALLOCATOR = (
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes. "
    "Error code 12 (Cannot allocate memory)"
)
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    MemoryError("std::bad_alloc"),
    RuntimeError(ALLOCATOR),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    RuntimeError("std::bad_alloc"),
    RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
    RuntimeError("CUDNN_STATUS_ALLOC_FAILED"),
]


@pytest.fixture
def generator(tiny_model):
    return Generator.from_pretrained(tiny_model, device="cpu", dtype="float32")


def images(generator, **more):
    options = {"seed": 1, "num_inference_steps": 2, "output_type": "pt", "progress": False}
    return generator(PROMPTS, **{**options, **more}).images


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_a_batch_that_memory_has_no_room_for_is_halved(generator, monkeypatch, error):
    expected, forward, sizes = images(generator), generator.network.forward, []

    def small(x, *rest):
        sizes.append(len(x))
        if len(x) > 2:
            raise error
        return forward(x, *rest)

    monkeypatch.setattr(generator.network, "forward", small)
    made = images(generator)
    assert sizes[0] == 8 and sizes.count(2) == 8  # four pictures of two guided steps, one by one
    assert torch.equal(made, expected) or torch.allclose(made, expected, atol=1e-4)


def test_other_errors_are_not_taken_for_it(generator, monkeypatch):
    def broken(x, *rest):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(generator.network, "forward", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        images(generator)


@pytest.mark.parametrize("error", ERRORS[:4], ids=lambda error: type(error).__name__)
def test_decoding_is_tried_again_and_sampling_is_not(generator, monkeypatch, error):
    alone = torch.cat([images(generator, batch_size=1)])
    decode, forward, steps, sizes = generator.autoencoder.decode, generator.network.forward, [], []

    def small(latents):
        sizes.append(len(latents))
        if len(latents) > 1:
            raise error
        return decode(latents)

    monkeypatch.setattr(generator.network, "forward", lambda x, *rest: steps.append(len(x)) or forward(x, *rest))
    monkeypatch.setattr(generator.autoencoder, "decode", small)
    made = generator(PROMPTS, seed=1, num_inference_steps=2, output_type="pt", progress=False)
    assert steps == [8, 8] and sizes == [4, 1, 1, 1, 1]
    assert torch.allclose(made.images, alone, atol=1e-4) and not any(recipe.unrecorded for recipe in made.recipes)


def test_a_picture_too_large_to_decode_is_decoded_in_tiles(generator, monkeypatch):
    call = {"height": 256, "width": 192, "seed": 1, "num_inference_steps": 1, "output_type": "pt", "progress": False}
    whole, decode, sizes = generator("a cat", **call), generator.autoencoder.decode, []

    def small(latents):
        sizes.append(latents.shape[2:].numel())
        if sizes[-1] > 16 * 16:
            raise RuntimeError(ALLOCATOR)
        return decode(latents)

    monkeypatch.setattr(generator.autoencoder, "decode", small)
    with pytest.warns(UserWarning, match="decoded in tiles"):
        made = generator("a cat", **call)
    assert made.recipes[0].unrecorded == ("tiles for want of memory",) and max(sizes) == 64 * 48
    assert (made.images - whole.images).abs().mean() < 0.02  # the same picture, but for what convolutions see at edges
    limit = torch.zeros(1, 1, 8, 8)
    with pytest.raises(MemoryError):
        fitting.decoded(limit, lambda latents: (_ for _ in ()).throw(MemoryError()), 4, lambda: None)
    monkeypatch.setattr(generator.autoencoder, "decode", decode)
    assert not generator("a cat", **call).recipes[0].unrecorded


def test_finished_pictures_take_a_byte_per_channel_and_leave_the_device(generator, monkeypatch):
    kept = []
    monkeypatch.setattr(
        "gen.pipeline.run.to_output_type", lambda *given: kept.append(fitting.to_output_type(*given)) or kept[-1]
    )
    made = generator(PROMPTS, seed=1, num_inference_steps=1, batch_size=2, progress=False)
    assert [(part.dtype, part.shape) for part in kept] == [(torch.uint8, (2, 32, 32, 3))] * 2
    floats = generator(PROMPTS, seed=1, num_inference_steps=1, batch_size=2, output_type="np", progress=False).images
    for image, exact in zip(made.images, floats, strict=True):
        assert np.array_equal(np.asarray(image), (exact * 255).round().astype(np.uint8))
    for output_type in ("pt", "latent"):
        assert generator("a cat", num_inference_steps=1, output_type=output_type, progress=False).images.device.type == "cpu"


def test_with_on_images_nothing_is_kept(generator):
    alive = []

    def taken(batch):
        gc.collect()
        assert sum(one() is not None for one in alive) == 0  # no picture of the batches before
        alive.extend(weakref.ref(image) for image in batch.images)

    made = generator(["a cat"] * 7, seed=1, num_inference_steps=1, batch_size=2, on_images=taken, progress=False)
    assert len(alive) == 7 and made.images is None and made.seeds == list(range(1, 8))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: f"{type(error).__name__} {str(error)[:20]}")
def test_the_command_line_says_that_memory_ran_out(error):
    from gen.cli.app import sentence

    assert "Memory ran out" in sentence(error) and "defect" not in sentence(error)
    assert "defect of fewstep" in sentence(RuntimeError("shapes"))


def test_decoding_in_tiles_by_option(generator, tiny_model):
    """Pictures no larger than a tile are decoded one by one and stay the same; larger ones are near, and the recipe says it."""
    whole = images(generator, height=128, width=128)
    tiled = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32", vae_tile=64)
    calls = []
    decode = tiled.autoencoder.decode
    tiled.autoencoder.decode = lambda latents: calls.append(tuple(latents.shape)) or decode(latents)
    found = images(tiled, height=128, width=128)
    side = 64 // tiled.factor
    assert {shape[0] for shape in calls} == {1} and max(max(shape[2:]) for shape in calls) <= max(side, fitting.SMALLEST)
    assert (found - whole).abs().mean() < 0.1
    recipe = tiled("a cat", num_inference_steps=1, progress=False).recipes[0]
    assert recipe.machine.vae_tile == 64
    large = Generator.from_pretrained(tiny_model, device="cpu", dtype="float32", vae_tile=4096)
    torch.testing.assert_close(images(large, height=128, width=128), whole, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="vae_tile is 8"):
        Generator.from_pretrained(tiny_model, vae_tile=8)
