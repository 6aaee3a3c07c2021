"""Each family's picture equals the diffusers pipeline's own, from the same noise, with guidance, in float32."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from gen.generator import Generator
from gen.pipeline.settings import Sampling, make_settings
from samplers.path import VariancePreserving
from tests.gen import pipelines

PROMPT, NEGATIVE = "a cat, 3 red dogs on the moon.", "blurry"
STEPS = 4
CLOSE = {"atol": 1e-4, "rtol": 0}
FAMILIES = ("stable_diffusion", "sdxl", "pixart", "dit", "sd3", "flux", "sana")


def noise(generator: Generator, batch: int, size: int = pipelines.SIZE) -> torch.Tensor:
    side = size // generator.factor
    return torch.randn(batch, generator.channels, side, side, generator=torch.Generator().manual_seed(5))


def pack(x: torch.Tensor) -> torch.Tensor:
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, c * 4)


def theirs(name: str, pipeline, x: torch.Tensor, scale: float, **options) -> torch.Tensor:
    """The pipeline's pictures (B, 3, H, W) in [0, 1], without negative prompt unless one is in `options`."""
    call = {"num_inference_steps": STEPS, "guidance_scale": scale, "output_type": "pt", **options}
    if name == "dit":
        labels = call.pop("class_labels", [7] * len(x))
        call["output_type"] = "np"
        with torch.random.fork_rng():
            torch.manual_seed(5)
            images = pipeline(labels, generator=torch.Generator().manual_seed(5), **call).images
        return torch.from_numpy(images).permute(0, 3, 1, 2)
    if name in ("pixart", "sana"):
        call |= {"use_resolution_binning": False}
    x = pack(x) if name == "flux" else x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prompt = call.pop("prompt", [PROMPT] * len(x))
        return pipeline(prompt, latents=x.clone(), height=pipelines.SIZE, width=pipelines.SIZE, **call).images


def ours(name: str, generator: Generator, x: torch.Tensor, scale: float, **options) -> torch.Tensor:
    """Our pictures from the same latents: unit noise times the first level's sigma is what the pipeline starts from."""
    subject = {"class_labels": [7] * len(x)} if name == "dit" else {"prompt": [PROMPT] * len(x)}
    call = {"num_inference_steps": STEPS, "guidance_scale": scale, **subject, **options}
    sampling = Sampling(
        num_inference_steps=call["num_inference_steps"], sampler=call.get("sampler"), schedule=call.get("schedule")
    )
    settings = make_settings(generator, sampling, pipelines.SIZE, pipelines.SIZE)
    x = x / settings.levels[0].sigma
    side = {"height": pipelines.SIZE, "width": pipelines.SIZE}
    return generator(latents=x, output_type="pt", progress=False, **side, **call).images


def grid_of(scheduler, path) -> list:
    """A diffusers scheduler's grid, after set_timesteps, on our path; the network is told its timesteps, whole as they are."""
    if isinstance(path, VariancePreserving):
        return [*(path.discrete(int(t)) for t in scheduler.timesteps), path(0.0)]
    levels = [path(float(sigma)) for sigma in scheduler.sigmas]
    return [replace(v, t=float(t) / 1000) for v, t in zip(levels, scheduler.timesteps, strict=False)] + levels[-1:]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_models_own_sampler_gives_the_pipelines_picture(bridged, name):
    """Sampler, grid and guidance from the folder: DDIM, Euler, 2M or flow Euler as the pipeline's scheduler is."""
    pipeline, generator = bridged(name)
    x = noise(generator, 2)
    reference = theirs(name, pipeline, x, 4.0)
    found = ours(name, generator, x, 4.0)
    assert reference.std() > 0.02
    torch.testing.assert_close(found, reference, **CLOSE)
    if name not in ("dit", "flux"):  # the negative prompt takes the place of the empty one
        reference = theirs(name, pipeline, x, 4.0, negative_prompt=[NEGATIVE] * 2)
        told = ours(name, generator, x, 4.0, negative_prompt=NEGATIVE)
        torch.testing.assert_close(told, reference, **CLOSE)
        assert (told - found).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_dpmpp_2m_gives_the_pipelines_picture(bridged, name):
    from diffusers import DPMSolverMultistepScheduler

    pipeline, generator = bridged(name)
    kept = pipeline.scheduler
    if isinstance(generator.denoiser.path, VariancePreserving):
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(kept.config, timestep_spacing="linspace")
    else:
        pipeline.scheduler = DPMSolverMultistepScheduler(
            use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction", use_dynamic_shifting=name == "flux"
        )
    try:
        x = noise(generator, 1)
        reference = theirs(name, pipeline, x, 3.0)
        grid = grid_of(pipeline.scheduler, generator.denoiser.path)
        found = ours(name, generator, x, 3.0, sampler="dpmpp_2m", schedule=grid)
    finally:
        pipeline.scheduler = kept
    torch.testing.assert_close(found, reference, **CLOSE)
    first_order = ours(name, generator, x, 3.0, sampler="euler", schedule=grid)
    assert (first_order - found).abs().max() > 1e-3
