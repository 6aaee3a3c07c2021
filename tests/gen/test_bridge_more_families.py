"""The newer families: each picture at the pipeline's defaults is the pipeline's own, and what goes on top of it works."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from gen.generator import Generator
from tests.gen.test_bridge_parity import CLOSE, NEGATIVE, PROMPT, noise, pack

SIZE = 32
FAMILIES: dict[str, dict[str, Any]] = {  # name -> what the pipeline's call needs beside the prompt
    "chroma": {}
}
PACKED = ("chroma",)  # pipelines that take latents as tokens


def theirs(name: str, pipeline: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
    """The pipeline's pictures (B, 3, H, W) in [0, 1] at its defaults."""
    call = {"height": SIZE, "width": SIZE, "output_type": "pt", **FAMILIES[name], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pipeline(prompt=[PROMPT] * len(x), latents=pack(x) if name in PACKED else x.clone(), **call).images


def ours(generator: Generator, x: torch.Tensor, **options: Any) -> torch.Tensor:
    call = {"height": SIZE, "width": SIZE, "output_type": "pt", "progress": False, **options}
    return generator([PROMPT] * len(x), latents=x, **call).images


@pytest.mark.parametrize("steps", [4, 20])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_picture_at_defaults_is_the_pipelines_own(bridged, name, steps):
    pipeline, generator = bridged(name)
    x = noise(generator, 1)
    plain = ours(generator, x, num_inference_steps=steps)
    torch.testing.assert_close(plain, theirs(name, pipeline, x, num_inference_steps=steps), **CLOSE)
    told = ours(generator, x, num_inference_steps=steps, negative_prompt=NEGATIVE)
    reference = theirs(name, pipeline, x, num_inference_steps=steps, negative_prompt=[NEGATIVE])
    torch.testing.assert_close(told, reference, **CLOSE)
    assert plain.std() > 0.02 and (told - plain).abs().max() > 1e-3
