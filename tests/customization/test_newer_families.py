"""Teaching the newer families: a LoRA trained on each opens in diffusers and makes the picture that it makes here, and the
methods that make fast students find what they read."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from distill.objectives.bases.teacher import Teacher, TeacherConfig
from distill.registry import OBJECTIVES
from distill.types import Batch, Draws, Phase
from gen.generator import Generator
from gen.models.bridge.pipeline import PIPELINES
from gen.nn.registry import from_registry
from tests.customization.kit import pictures, trainer
from tests.gen import pipelines
from tests.gen.conftest import randomise
from tests.gen.newer_families import CLOSE, FAMILIES, latents_for, ours, theirs

COMMON = {"teacher": {"guidance_scale": 3.0, "steps": 8}, "lora": {"rank": 2}, "preview": {"prompts": ["a cat"]}, "steps": 2}
METHODS = {"latent_consistency": {"target_ema": None}, "adversarial_consistency": {"target_ema": None}}


@pytest.fixture(scope="module", autouse=True)
def small():
    """Models that were made for 32 pixels, where families say 1024: at those a tiny network takes long."""
    known = dict(PIPELINES)
    PIPELINES.update({name: replace(row, size=lambda backbone, factor: 32) for name, row in known.items()})
    yield
    PIPELINES.update(known)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    pipeline = FAMILIES[request.param].build()
    pipeline.set_progress_bar_config(disable=True)
    return request.param, pipeline, pipelines.save(pipeline, tmp_path_factory.mktemp("pipelines") / request.param)


def test_a_trained_lora_makes_the_same_picture_in_diffusers(family, tmp_path):
    pytest.importorskip("peft")
    name, pipeline, folder = family
    row = FAMILIES[name]
    run = trainer(tmp_path / "run", pictures(tmp_path / "images", 2), folder, max_steps=2)
    run.train()
    file = tmp_path / "run" / "export" / "adapter.safetensors"
    generator = Generator.from_pretrained(folder, "cpu", "float32")
    x = latents_for(generator, 1)
    plain = ours(generator, x, num_inference_steps=4)
    assert generator.load_adapter(file, "a").complete
    made = ours(generator, x, num_inference_steps=4)
    assert (made - plain).abs().max() > 1e-3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline.load_lora_weights(file.parent, weight_name=file.name)
    torch.testing.assert_close(made, theirs(row, pipeline, x, num_inference_steps=4, **row.defaults), **CLOSE)
    pipeline.unload_lora_weights()


@pytest.mark.parametrize("method", METHODS)
def test_students_train_as_loras(family, method):
    """All phases of a method, each network in its own; a discriminator reads the picture's tokens."""
    _, _, folder = family
    objective_class, config = from_registry(OBJECTIVES, "objective", {"type": method, **COMMON, **METHODS[method]})
    objective = objective_class(config, nn.Identity(), None, Teacher.load(TeacherConfig(model=str(folder))))
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    batch = Batch(index=torch.arange(2), images=images, captions=["a cat", ""])
    models = {role: part.network for role, part in objective.roles.items()}
    for role in (role for role, part in objective.roles.items() if part.trains):
        own = list(models[role].parameters())
        randomise(models[role].up, 0) if hasattr(models[role], "up") else None
        loss, _ = objective.loss(Phase(role, role), models, batch, Draws(0, batch.index, role), 0)
        grads = torch.autograd.grad(loss, own, allow_unused=True)
        assert torch.isfinite(loss) and any(g is not None and g.abs().sum() > 0 for g in grads), role
