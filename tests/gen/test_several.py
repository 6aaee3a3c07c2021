"""One picture by several models: what must equal a Generator's own picture does, and what cannot work is said."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gen.generator import Generator
from gen.models.components import save_component
from gen.nn.influence_networks import InfluenceConfig, Influences
from gen.tasks.multi_model import Part, collaborate, unite

CALL = {"seed": 7, "num_inference_steps": 2}


def close(pictures, others):
    """To the last bit of a byte: sums are made in another order."""
    for one, other in zip(pictures, others, strict=True):
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max() <= 1


def test_equal_models_are_guidance_of_the_summed_scales(tiny):
    own = tiny("a cat", guidance_scale=3.0, num_images_per_prompt=2, progress=False, **CALL).images
    close(unite([Part(tiny, "a cat")], count=2, **CALL), own)
    close(unite([Part(tiny, "a cat", 2.0, 0.3), Part(tiny, "a cat", 1.0, 0.7)], count=2, **CALL), own)
    other = unite([Part(tiny, "a cat", 2.0, 0.3), Part(tiny, "the moon", 1.0, 0.7)], **CALL)
    assert np.abs(np.asarray(other[0]).astype(int) - np.asarray(own[0])).max() > 8


def test_models_of_classes_take_labels_and_names(class_model):
    generator = Generator.from_pretrained(class_model, device="cpu", dtype="float32")
    own = generator(class_labels="goldfish", guidance_scale=3.0, progress=False, **CALL).images
    close(unite([Part(generator, 2, 3.0)], **CALL), own)
    close(unite([Part(generator, "goldfish", 3.0)], **CALL), own)
    with pytest.raises(ValueError, match="class_labels is 3; give a whole number from -1 to 2"):
        unite([Part(generator, 3)], **CALL)


def exported(folder, head=0.0):
    network = Influences(InfluenceConfig(channels=4, dim=8, depth=1, text_dims=(16, 16), num_classes=(0, 0)))
    torch.nn.init.constant_(network.models[1].head.bias, head)
    save_component(network, folder)
    return folder


def test_equal_influence_is_the_mean_and_infinite_influence_one_model(tiny, tmp_path):
    own = tiny("a cat", guidance_scale=3.0, progress=False, **CALL).images
    both = [Part(tiny, "the moon"), Part(tiny, "a cat")]
    close(collaborate([Part(tiny, "a cat"), Part(tiny, "a cat")], exported(tmp_path / "a"), **CALL), own)
    close(collaborate(both, exported(tmp_path / "b", 40.0), **CALL), own)
    mixed = collaborate(both, tmp_path / "a", **CALL)
    assert np.abs(np.asarray(mixed[0]).astype(int) - np.asarray(own[0])).max() > 8


def test_what_cannot_work_together_is_said(tiny, tmp_path):
    with pytest.raises(ValueError, match="no models to work together"):
        unite([])
    with pytest.raises(ValueError, match="reliabilities sum to 2"):
        unite([Part(tiny, "a cat"), Part(tiny, "the moon")], **CALL)
    with pytest.raises(ValueError, match="scale is 1000"):
        unite([Part(tiny, "a cat", 1000.0)], **CALL)
    with pytest.raises(ValueError, match="3 models and 3 conditions are given for the influence of 2"):
        collaborate([Part(tiny, "a cat")] * 3, exported(tmp_path / "a"), **CALL)
    with pytest.raises(ValueError, match="num_inference_steps is 2000"):
        unite([Part(tiny, "a cat")], seed=1, num_inference_steps=2000)
