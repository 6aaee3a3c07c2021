"""The pipeline's own scheduler, whichever of the table it is: a call at defaults computes what it does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gen.generator import Generator
from tests.gen.pipelines import SIZE, stable_diffusion
from tests.gen.whole_pipelines import opened, prx

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TABLES: dict[str, tuple[str, dict[str, Any]]] = {
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}),
    "ddim trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddim zero snr, v": (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
        },
    ),
    "2M": ("DPMSolverMultistepScheduler", {}),
    "2M karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler leading": ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "heun": ("HeunDiscreteScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
}
FLOWS: dict[str, tuple[str, dict[str, Any]]] = {
    "heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    "euler karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "2M": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}),
    "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}),
}


def compare(pipe: Any, call: dict[str, Any], steps: int) -> None:
    reference = pipe(generator=torch.Generator().manual_seed(3), num_inference_steps=steps, output_type="np", **call).images
    keywords = {
        name: call[name] for name in ("prompt", "negative_prompt", "height", "width", "image", "strength") if name in call
    }
    rest = {name: value for name, value in call.items() if name not in keywords}
    generator = Generator.from_pipeline(pipe)
    made = generator(num_inference_steps=steps, seed=3, output_type="np", progress=False, pipeline_options=rest, **keywords)
    assert abs(made.images - reference).max() < 1e-4


@pytest.mark.parametrize("name", list(TABLES))
def test_tables(name):
    import diffusers

    kind, options = TABLES[name]
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, kind)(**NOISE, **options)
    steps = 5 if "trailing" in str(options) else 6  # of others DDIM takes steps that are not between its timesteps
    compare(pipe, {"prompt": "a red heart", "negative_prompt": "blurry", "height": SIZE, "width": SIZE}, steps)


@pytest.mark.parametrize("name", list(FLOWS))
def test_flows(name):
    import diffusers

    kind, options = FLOWS[name]
    pipe, call = prx()
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, kind)(**options)
    compare(pipe, call, 6)


@pytest.mark.parametrize("name", ["2M", "euler", "euler leading", "heun", "unipc"])
def test_tables_begun_by_strength(name):
    import diffusers

    kind, options = TABLES[name]
    pipe, call = opened("sd_image_to_image")
    before = pipe.scheduler
    pipe.scheduler = getattr(diffusers, kind)(**NOISE, **options)
    try:
        compare(pipe, call, 6)
    finally:
        pipe.scheduler = before
