"""A diffusers pipeline as the teacher: its student is a LoRA, under the names that diffusers and peft read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.objective import Batch
from distill.objectives import make_objective
from distill.objectives.student import Teacher, TeacherConfig
from gen.adapters import Adapters, read_adapter
from samplers.denoiser import Context
from tests.distill.students import loss_of
from tests.gen import pipelines
from tests.gen.conftest import randomise


def test_a_lora_is_trained_on_a_diffusers_pipeline(tmp_path):
    folder = pipelines.save(pipelines.stable_diffusion(), tmp_path / "pipeline")
    config = {"type": "latent_consistency", "teacher": {"model": str(folder), "guidance_scale": 3.0, "steps": 8}}
    config |= {"target_ema": None, "preview": {"prompts": ["a cat"]}}
    objective = make_objective({**config, "lora": {"rank": 2}}, nn.Identity())
    batch = Batch(index=torch.arange(2), images=torch.rand(2, 3, 32, 32) * 2 - 1, captions=["a cat", ""])
    loss_of(objective, batch).backward()
    network = objective.roles["student"].network
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert objective.preview({"student": network}, batch, 0)[0].shape == (1, 3, 32, 32)

    randomise(network.up, 0)
    objective.export({"student": network}, tmp_path / "export")
    keys = read_adapter(tmp_path / "export").layers
    assert "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_q" in keys  # as diffusers and peft name it
    teacher = Teacher.load(TeacherConfig(model=str(folder)))
    adapters = Adapters(teacher.network.network)
    adapters.load(read_adapter(tmp_path / "export", "few"))
    adapters.fuse({"few": 1.0})
    x, level = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), objective.path(torch.tensor([0.5, 0.9]))
    condition = objective.condition(batch, x.device)
    mine = objective.predict(network, x, level, condition).raw
    loaded = objective.denoiser(teacher.network)(x, level, condition, Context()).raw
    torch.testing.assert_close(loaded, mine, atol=1e-5, rtol=1e-5)
    models = {name: role.network for name, role in objective.roles.items()}
    assert (mine - objective.teach(models, x, level, condition).raw).abs().max() > 1e-3
    with pytest.raises(ValueError, match="train a LoRA on it"):
        make_objective(config, nn.Identity())
