"""A diffusers pipeline as a whole, under our solvers, gives its own call's picture: text to image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gen.generator import Generator
from gen.models.bridge.families.table import FAMILIES
from tests.gen.whole_editing import EDITING
from tests.gen.whole_pipelines import TEXT_TO_IMAGE, opened

SEED = 3
KEYWORDS = {"height", "width", "prompt", "negative_prompt", "guidance_scale", "image", "strength"}


def theirs(pipe: Any, call: dict[str, Any], steps: int) -> torch.Tensor:
    """The pipeline's own pictures (B, 3, H, W) in [0, 1]."""
    result = pipe(generator=torch.Generator().manual_seed(SEED), num_inference_steps=steps, output_type="np", **call)
    return torch.from_numpy(getattr(result, "images", getattr(result, "image", None))).movedim(-1, 1)


def ours(pipe: Any, call: dict[str, Any], steps: int, **options: Any) -> Any:
    """What a call of ours returns, with the pipeline's arguments in our words."""
    keywords = {name: value for name, value in call.items() if name in KEYWORDS}
    keywords |= {"mask": call["mask_image"]} if "mask_image" in call else {}
    rest = {name: value for name, value in call.items() if name not in KEYWORDS | {"mask_image"}}
    common = {"num_inference_steps": steps, "seed": SEED, "output_type": "pt", "progress": False}
    return Generator.from_pipeline(pipe)(pipeline_options=rest, **{**common, **keywords, **options})


def test_there_are_enough_without_a_family_of_ours():
    """Ten pipelines from text to pictures and three that edit, which only the way of whole pipelines opens."""
    for builders, least in ((TEXT_TO_IMAGE, 10), (EDITING, 3)):
        names = {type(opened(build.__name__)[0]).__name__ for build in builders}
        assert len(names - set(FAMILIES)) >= least, sorted(names - set(FAMILIES))


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", [build.__name__ for build in TEXT_TO_IMAGE])
def test_a_call_at_defaults_gives_the_pipelines_own_picture(name, steps):
    """Its own guidance, shift, sigmas and noise; nothing is said but prompt, seed and steps."""
    pipe, call = opened(name)
    reference = theirs(pipe, call, steps)
    found = ours(pipe, call, steps)
    assert reference.std() > 0.05
    torch.testing.assert_close(found.images, reference, atol=1e-4, rtol=0)
    assert found.recipes[0].schedule == "pipeline" and found.recipes[0].guidance == "pipeline"
