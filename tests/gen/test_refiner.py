"""A picture that one model begins and another finishes: diffusers' pair of denoising_end and denoising_start, and recipes."""

from __future__ import annotations

import warnings

import pytest
import torch

from gen.cli import app as cli
from gen.generator import Generator
from gen.pipeline.png import read_recipe
from gen.pipeline.settings import Sampling, make_settings
from gen.tasks.refiner.task import handed_over
from tests.gen import pipelines
from tests.gen.test_bridge_parity import NEGATIVE, PROMPT

CALL = {"height": 32, "width": 32, "output_type": "pt", "progress": False}
CLOSE = {"atol": 1e-4, "rtol": 0}


def noise(generator: Generator, batch: int = 1) -> torch.Tensor:
    side = 32 // generator.factor
    return torch.randn(batch, generator.channels, side, side, generator=torch.Generator().manual_seed(5))


def drawn(generator: Generator, **call) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generator(**{"prompt": PROMPT, **CALL, **call}).images


@pytest.mark.parametrize(
    ("at", "steps", "negative"), [(0.8, 10, NEGATIVE), (0.8, 10, None), (0.5, 7, NEGATIVE), (0.31, 4, NEGATIVE)]
)
def test_it_is_diffusers_pair(bridged, at, steps, negative):
    """Euler, with guidance: the first pipeline's latents at the cut go on in the second, whose scores differ by prompt."""
    (first, base), (second, refiner) = bridged("sdxl"), bridged("sdxl_refiner")
    x = noise(base)
    call = {"prompt": PROMPT, "num_inference_steps": steps, "guidance_scale": 4.0, "negative_prompt": negative}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        left = first(**call, height=32, width=32, latents=x.clone(), denoising_end=at, output_type="latent").images
        expected = second(**call, image=left, denoising_start=at, output_type="pt").images
    begun = (
        x / make_settings(base, Sampling(num_inference_steps=steps), 32, 32).levels[0].sigma
    )  # what the pipeline begins with
    call = {"num_inference_steps": steps, "guidance_scale": 4.0, "latents": begun, "negative_prompt": negative or ""}
    mine = drawn(base, refiner=refiner, refiner_at=at, **call)
    torch.testing.assert_close(mine, expected, **CLOSE)
    assert (drawn(base, **call) - mine).abs().max() > 1e-2


def test_alone_it_is_its_pipeline(bridged):
    """From a picture, as diffusers' image to image."""
    _, refiner = bridged("sdxl_refiner")
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
    plain = drawn(refiner, image=picture, strength=0.5, num_inference_steps=4, seed=1)
    assert plain.std() > 0.02
    scored = refiner.encode_prompt(["a cat"]).extra["score"], refiner.encode_prompt(["a cat"], negative=True).extra["score"]
    assert [one.item() for one in scored] == [6.0, 2.5]


def test_every_sampler_hands_over(bridged):
    """A base that is its own refiner would change nothing: its second half from the same latents, for samplers of one step."""
    (_, base), (_, other) = bridged("sdxl"), bridged("sdxl", native=None)
    x = noise(base)
    for sampler in ("euler", "ddim", "dpmpp_2s", "euler_a", "heun", "dpmpp_2m", "unipc"):
        call = {"sampler": sampler, "num_inference_steps": 6, "seed": 3, "latents": x}
        whole, halves = drawn(base, **call), drawn(base, refiner=other, refiner_at=0.5, **call)
        if sampler in ("euler", "ddim", "heun"):  # others remember earlier steps, or draw noise of their own
            torch.testing.assert_close(halves, whole, atol=1e-3, rtol=0)
        assert torch.isfinite(halves).all() and halves.std() > 0.02


def test_bits_do_not_depend_on_the_batch(bridged):
    (_, base), (_, refiner) = bridged("sdxl"), bridged("sdxl_refiner")
    call = {"refiner": refiner, "num_inference_steps": 4, "seed": 3}
    together = drawn(base, prompt=["a cat", "a red dog"], **call)
    assert torch.equal(drawn(base, prompt="a red dog", **call | {"seed": 4})[0], together[1])


def test_callbacks_see_all_steps_and_may_stop(bridged):
    (_, base), (_, refiner) = bridged("sdxl"), bridged("sdxl_refiner")
    seen: list[object] = []

    def note(generator, step, time, tensors):
        seen.append(generator)
        generator.interrupt = len(seen) == 5
        return None

    output = base(PROMPT, refiner=refiner, refiner_at=0.5, num_inference_steps=6, seed=1, callback_on_step_end=note, **CALL)
    assert len(seen) == 5 and set(map(id, seen)) == {id(base)} and output.interrupted


def test_the_command_line_and_replays(tmp_path):
    folder = pipelines.save(pipelines.sdxl(), tmp_path / "base")
    refiner = pipelines.save(pipelines.sdxl_refiner(), tmp_path / "refiner")
    shared = ["--model", str(folder), "--device", "cpu", "--dtype", "float32"]
    first, again = tmp_path / "one.png", tmp_path / "two.png"
    asked = ["image", "a cat", "--steps", "5", "--seed", "1", "-q", "-o", str(first), "--refiner", str(refiner)]
    assert cli.main([*asked, "--refiner-at", "0.6", *shared]) == 0
    recipe = read_recipe(first)
    assert recipe.refiner.at == 0.6 and recipe.refiner.name == "refiner" and recipe.num_inference_steps == 5
    replay = ["replay", str(first), "--model", str(folder), "-q", "-o", str(again)]
    assert cli.main([*replay, "--refiner", str(refiner)]) == 0
    assert again.read_bytes() == first.read_bytes()
    generator = Generator.from_pretrained(folder, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match=r"was finished by .*; give that model again as refiner"):
        generator.replay(recipe)
    with pytest.raises(ValueError, match="which finished the picture: its sha256 differs"):
        generator.replay(recipe, refiner=Generator.from_pretrained(folder, device="cpu", dtype="float32"))


@pytest.mark.parametrize(("call", "match"), [
    ({"refiner_at": 0.8}, "refiner_at was given without refiner"),
    ({"refiner": "own", "refiner_at": 1.0}, "refiner_at is 1, where one of the models does nothing"),
    ({"refiner": "own", "refiner_at": 0.9996}, "leaves the refiner without a step of 4"),
    ({"refiner": "own", "refiner_at": 0.01}, "leaves the first model without a step of 4"),
    ({"refiner": "own", "image": torch.rand(3, 32, 32)}, "A refiner goes without image"),
    ({"refiner": "own", "hires": 2.0}, "goes without"),
    ({"refiner": 3}, "refiner is a int; give a folder"),
    ({"refiner": "self"}, "refiner is the model itself"),
    ({"refiner": "flux"}, "must agree|other noise or latents"),
])  # fmt: skip
def test_what_it_refuses(bridged, call, match):
    (_, base), own = bridged("sdxl"), call.get("refiner")
    others = {"own": "sdxl_refiner", "flux": "flux"}
    refiner = base if own == "self" else bridged(others[own])[1] if isinstance(own, str) else own
    with pytest.raises(ValueError, match=match):
        drawn(base, num_inference_steps=4, seed=1, **{**call, "refiner": refiner})


def test_where_the_cut_lies(bridged):
    """The first model takes the steps that begin at timestep 1000 (1 - at) or before."""
    _, base = bridged("sdxl")
    levels = base.denoiser.path
    from samplers.registry import get_grid

    grid = get_grid("uniform", levels, 10)
    for at in (0.2, 0.5, 0.8):
        first, second = handed_over(grid, at, base)
        times = [1000 * float(level.t) - 1 for level in grid[:-1]]
        assert len(first) - 1 == sum(time >= round(1000 - 1000 * at) - 1e-3 for time in times)
        assert first[-1] == second[0] and first + second[1:] == tuple(grid)
