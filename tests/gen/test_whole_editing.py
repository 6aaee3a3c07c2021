"""Pipelines that begin with pictures, as a whole: each gives its own call's picture."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from PIL import Image

from gen.models.bridge.generic.run import PipelineRun
from samplers.registry import get_solver
from samplers.sample import sample
from tests.gen.pipelines import SIZE
from tests.gen.test_whole_parity import ours, theirs
from tests.gen.whole_editing import EDITING
from tests.gen.whole_pipelines import opened


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", [build.__name__ for build in EDITING])
def test_a_call_at_defaults_gives_the_pipelines_own_picture(name, steps):
    """Editing by reference, image to image from its strength, inpainting with and without channels for it, ControlNet."""
    pipe, call = opened(name)
    reference = theirs(pipe, call, steps)
    torch.testing.assert_close(ours(pipe, call, steps).images, reference, atol=1e-4, rtol=0)
    other = theirs(pipe, {**call, "image": Image.new("RGB", (SIZE, SIZE), "white")}, steps)
    assert (other - reference).abs().max() > 5e-4, "the picture changes nothing, so this test would miss it"


@cache
def fine_and_coarse(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The pipeline's own picture in 200 steps, and the mean error of its own in 10."""
    exact = theirs(*opened(name), 200)
    return exact, (theirs(*opened(name), 10) - exact).abs().mean()


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "dpmpp_2s", "dpm_adaptive", "unipc"])
@pytest.mark.parametrize("name", ["sd_inpaint", "flux_inpaint", "sd_image_to_image"])
def test_other_samplers_come_closer_to_the_pipelines_fine_picture(name, sampler):
    """From the same strength, whatever a step costs; what a mask keeps is kept."""
    pipe, call = opened(name)
    exact, coarse = fine_and_coarse(name)
    found = ours(pipe, call, 10, sampler=sampler).images
    assert (found - exact).abs().mean() < coarse


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2s"])
def test_a_control_acts_in_its_range_whatever_a_step_costs(sampler):
    """The range is a share of the run, which samplers of two evaluations a step do not double."""
    pipe, call = opened("sd_control")
    seen: list[tuple[float, float]] = []

    def watch(module, args, kwargs):
        seen.append((float(args[1]), float(kwargs["conditioning_scale"])))

    hook = pipe.controlnet.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        ours(pipe, call, 20, sampler=sampler, output_type="latent")
    finally:
        hook.remove()
    acting = [timestep for timestep, scale in seen if scale > 0]
    steps = sorted({timestep for timestep, _ in seen}, reverse=True)
    assert len(steps) >= 20 and min(scale for _, scale in seen) == 0
    share = [steps.index(max(acting)) / len(steps), (steps.index(min(acting)) + 1) / len(steps)]
    assert share == pytest.approx([0.2, 0.8], abs=0.06)


def test_a_control_under_an_adaptive_sampler(monkeypatch):
    """Ranges are refused; without them it runs, as far as the pipeline counts."""
    pipe, call = opened("sd_control")
    with pytest.raises(ValueError, match="control_guidance_start is a share of the steps"):
        ours(pipe, call, 4, sampler="dpm_adaptive")
    call = {name: value for name, value in call.items() if not name.startswith("control_guidance")}
    assert ours(pipe, call, 4, sampler="dpm_adaptive").nfe > 20
    monkeypatch.setattr("gen.tasks.whole_pipeline.run.FINE", 10)
    with pytest.raises(ValueError, match="cannot go on after 10 evaluations"):
        ours(pipe, call, 4, sampler="dpm_adaptive")


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_steps_start_from_latents_as_the_pipeline_changed_them(sampler):
    """A callback of the pipeline's own between steps: ours give its picture, where the two samplers agree."""
    pipe, call = opened("sd_image_to_image")

    def shrink(pipe, step, timestep, tensors):
        return {"latents": 0.8 * tensors["latents"]}

    call = {**call, "num_inference_steps": 4, "output_type": "latent", "callback_on_step_end": shrink}
    reference = pipe(generator=torch.Generator().manual_seed(3), **call).images
    with PipelineRun(pipe, {**call, "generator": torch.Generator().manual_seed(3)}, get_solver(sampler)) as run:
        found = run.finish(sample(run.denoiser, run.solver, run.x, run.levels)).images
        assert run.moves
    if sampler == "ddim":
        torch.testing.assert_close(found, reference, atol=1e-4, rtol=0)
    else:
        assert (found - reference).abs().mean() < 0.2 * reference.std()
