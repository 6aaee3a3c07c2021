"""The picture of every family under its usual schedulers, at defaults, is the diffusers pipeline's own.

The folder's scheduler config is all that we are given, and a number of steps: no grid is handed over. The first scheduler of a
family is the one that its folders have; noise is left out of those that add it, on both sides.
"""

from __future__ import annotations

import json
import warnings

import pytest
import torch

from gen.generator import Generator
from gen.pipeline.settings import Sampling, make_settings
from tests.gen import pipelines
from tests.gen.test_bridge_parity import CLOSE, noise, ours, theirs

STEPS = (4, 20, 28)
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
FLOWS = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
KARRAS = {"use_karras_sigmas": True}
PLAIN = {"clip_sample": False}
USUAL = {
    "stable_diffusion": (
        ("DDIMScheduler", SD | PLAIN | {"steps_offset": 1, "set_alpha_to_one": False}),
        ("PNDMScheduler", SD | {"steps_offset": 1, "skip_prk_steps": True, "set_alpha_to_one": False}),
        ("LMSDiscreteScheduler", SD),
        ("EulerDiscreteScheduler", SD | LEADING),
        ("HeunDiscreteScheduler", SD | LEADING),
        ("DPMSolverMultistepScheduler", SD | KARRAS),
        ("UniPCMultistepScheduler", SD | LEADING),
        ("DEISMultistepScheduler", SD | LEADING),
    ),
    "sdxl": (
        ("EulerDiscreteScheduler", SD | LEADING),
        ("DPMSolverMultistepScheduler", SD | LEADING | KARRAS),
        ("EulerDiscreteScheduler", SD | {"timestep_spacing": "trailing"}),
    ),
    "pixart": (
        ("DPMSolverMultistepScheduler", {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}),
        ("DDIMScheduler", PLAIN),
    ),
    "dit": (("DDIMScheduler", PLAIN), ("DPMSolverMultistepScheduler", {})),
    "sd3": (("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}), ("UniPCMultistepScheduler", FLOWS)),
    "flux": (
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0, "use_dynamic_shifting": True}),
        ("FlowMatchEulerDiscreteScheduler", {}),
    ),
    "sana": (("DPMSolverMultistepScheduler", FLOWS), ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})),
}
TABLE = [(family, name, options) for family, several in USUAL.items() for name, options in several]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """family -> (pipeline, its saved folder), made once."""
    made = {}

    def of(family: str):
        if family not in made:
            pipeline = getattr(pipelines, family)()
            pipeline.set_progress_bar_config(disable=True)
            folder = pipelines.save(pipeline, tmp_path_factory.mktemp("pictures") / family)
            if family == "dit":  # save_pretrained leaves the names of the classes out
                index = json.loads((folder / "model_index.json").read_text())
                index["id2label"] = {str(i): f"thing {i}" for i in range(1000)}
                (folder / "model_index.json").write_text(json.dumps(index))
            made[family] = pipeline, folder
        return made[family]

    return of


@pytest.mark.parametrize(("family", "name", "options"), TABLE, ids=[f"{f}-{n[:-9]}-{i}" for i, (f, n, _) in enumerate(TABLE)])
def test_pictures_at_defaults_are_the_pipelines_own(folders, family, name, options):
    import diffusers

    pipeline, folder = folders(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.scheduler = getattr(diffusers, name)(**options)
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", name]}))
    generator = Generator.from_pretrained(folder, device="cpu", dtype="float32", native=False)
    x = noise(generator, 1)

    def begun(generator, x, steps):
        """What the pipeline begins with, on our scale: with those of k-diffusion x there is x0 + sigma eps."""
        if not name.startswith(("Euler", "Heun", "LMS")):
            return x
        first = make_settings(generator, Sampling(num_inference_steps=steps), pipelines.SIZE, pipelines.SIZE).levels[0]
        return x * float(pipeline.scheduler.init_noise_sigma) * first.alpha

    pictures = []
    for steps in STEPS:
        reference = theirs(family, pipeline, x, 2.0, num_inference_steps=steps)
        found = ours(family, generator, begun(generator, x, steps), 2.0, num_inference_steps=steps)
        torch.testing.assert_close(found, reference, **CLOSE, msg=lambda text, steps=steps: f"{steps} steps: {text}")
        pictures.append(reference)
    assert reference.std() > 0.02 and (pictures[0] - pictures[1]).abs().max() > 1e-3  # more than the tolerance between steps
