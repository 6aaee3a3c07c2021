"""A diffusers pipeline as the teacher: its student is a LoRA, under the names that diffusers and peft read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from distill.networks.discriminator import block_features
from distill.networks.lora.overlay import LowRankWeight
from distill.objectives import make_objective
from distill.objectives.bases.teacher import Teacher, TeacherConfig
from distill.registry import OBJECTIVES
from distill.types import Batch, Draws, Phase
from gen.adapters import Adapters, read_adapter
from gen.nn.registry import from_registry
from samplers.denoiser import Context
from tests.distill.cases import BRIGHT
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
    loaded = objective.teacher.denoiser(teacher.network)(x, level, condition, Context()).raw
    torch.testing.assert_close(loaded, mine, atol=1e-5, rtol=1e-5)
    models = {name: role.network for name, role in objective.roles.items()}
    assert (mine - objective.teacher_predict(models, x, level, condition).raw).abs().max() > 1e-3
    with pytest.raises(ValueError, match="train a LoRA on it"):
        make_objective(config, nn.Identity())


# ---- every family ----

FAMILIES = ("stable_diffusion", "sdxl", "sd3", "flux", "sana")
COMMON = {"teacher": {"guidance_scale": 3.0, "steps": 8}, "lora": {"rank": 2}, "preview": {"prompts": ["a cat"]}, "steps": 2}
METHODS = {
    "latent_consistency": {"target_ema": None},
    "phased_consistency": {"adversarial_weight": 0.1},
    "adversarial_consistency": {"target_ema": None},
    "adversarial_continuous": {"sigma_max": 10.0, "derivative": "difference"},
    "denoising_diffusion_gan": {"teacher": {}, "latent": False, "widths": [4, 4]},
    "ufogen": {"teacher": {}},
    "yoso": {"teacher": {}},
    "nitro_fusion": {"members": 2, "hidden": 4, "teacher": {"steps": 2}},
    "distribution_matching": {},
    "drifting": {},
    "sliced_mmd_flow": {},
    "decoupled_dmd": {},
    "f_distill": {},
    "sid": {"critic_guidance": 1.5, "adversarial_weight": 1e-2, "discriminator_weight": 1e-2},
    "continuous_consistency": {"sigma_max": 10.0, "derivative": "difference"},
    "regularized_consistency": {"sigma_max": 10.0, "derivative": "difference", "regularize_from": 0},
    "single_trajectory": {"bank_share": 0.0},
    "multistep_latent_consistency": {"segments": (4,), "denoising_steps": 2},
    "draft": {"through": 1, "renoised": 1, "rewards": BRIGHT},
    "diffusion_dpo": {"beta": 100.0},
    "pso": {"clip": None, "rewards": BRIGHT},
    "spo": {"skipped": 0, "threshold": 0.0, "candidates": 2, "clip": None, "rewards": BRIGHT},
    "ddo": {},
    "flow_grpo": {"group": 2, "rewards": BRIGHT},
    "diffusion_nft": {"group": 2, "rewards": BRIGHT},
    "frechet": {"representations": ["teacher"], "population": 2, "reference": 4, "target_ema": None, "noisiest_share": 1.0},
}


class Captioned:
    def batch(self, counters) -> Batch:
        rows = [torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in counters]
        captions = ["a cat" if i % 2 else "" for i in counters]
        return Batch(index=torch.tensor(list(counters)), images=torch.stack(rows), captions=captions)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory) -> Teacher:
    folder = tmp_path_factory.mktemp("pipelines") / request.param
    pipelines.save(getattr(pipelines, request.param)(), folder)
    return Teacher.load(TeacherConfig(model=str(folder)))


def taught(teacher: Teacher, name: str):
    method, config = from_registry(OBJECTIVES, "objective", {"type": name, **COMMON, **METHODS[name]})
    return method(config, nn.Identity(), Captioned() if name == "frechet" else None, teacher)


def test_every_method_for_loras_trains_one_on_every_family(family):
    """All of its phases, and each network in its own."""
    for name in METHODS:
        count = 4 if name == "drifting" else 2  # which compares samples of one caption
        objective, batch = taught(family, name), Captioned().batch(range(count))
        models = {role: part.network for role, part in objective.roles.items()}
        for role in (role for role, part in objective.roles.items() if part.trains):
            own = list(models[role].parameters())
            randomise(models[role].up, 0) if hasattr(models[role], "up") else None
            loss, _ = objective.loss(Phase(role, role), models, batch, Draws(0, batch.index, role), 0)
            grads = torch.autograd.grad(loss, own, allow_unused=True)
            assert torch.isfinite(loss) and any(g is not None and g.abs().sum() > 0 for g in grads), (name, role)


def test_a_discriminator_reads_what_the_network_has(family):
    """Levels of a U-Net, as its own modules return them; of joint attention the tokens of the picture alone."""
    objective = taught(family, "adversarial_consistency")
    network, denoiser = family.network.network, objective.teacher.denoiser(family.network)
    channels, rows, columns = objective.teacher.latent_size()
    x = torch.randn(2, channels, rows, columns, generator=torch.Generator().manual_seed(0)).requires_grad_()
    batch = Captioned().batch(range(2))
    level, condition = objective.path(torch.tensor([0.4, 0.7]).double()), objective.condition(batch, x.device)
    seen: list[torch.Tensor] = []
    levels = [*network.down_blocks, network.mid_block] if hasattr(network, "down_blocks") else []
    kept = [m.register_forward_hook(lambda m, a, out: seen.append(out[0] if isinstance(out, tuple) else out)) for m in levels]
    found = block_features(denoiser, x, level, condition, objective.blocks)
    for handle in kept:
        handle.remove()
    if levels:
        assert objective.blocks == tuple(range(len(levels)))
        for tokens, image in zip(found, seen, strict=True):
            assert torch.equal(tokens, image.flatten(2).mT)
    else:
        patch = family.network.config.patch
        assert {tokens.shape[1] for tokens in found} == {rows * columns // patch**2}
    assert [tokens.shape[2] for tokens in found] == [head[0].normalized_shape[0] for head in models(objective).heads]
    assert sum(tokens.square().mean() for tokens in found).backward() is None and x.grad.abs().sum() > 0


def models(objective) -> nn.Module:
    return objective.roles["discriminator"].network


def test_a_lora_makes_no_dense_weights_on_any_family(family, monkeypatch):
    objective = taught(family, "latent_consistency")
    network = objective.roles["student"].network
    randomise(network.up, 0)
    channels, rows, columns = objective.teacher.latent_size()
    x = torch.randn(2, channels, rows, columns, generator=torch.Generator().manual_seed(0))
    batch = Captioned().batch(range(2))
    level, condition = objective.path(torch.tensor([0.4, 0.7]).double()), objective.condition(batch, x.device)
    expected = objective.teacher.denoiser(network.merged())(x, level, condition, Context()).raw
    monkeypatch.setattr(LowRankWeight, "whole", lambda self: pytest.fail("a dense weight was made"))
    out = objective.predict(network, x, level, condition).raw
    out.square().mean().backward()
    torch.testing.assert_close(out, expected, atol=2e-4, rtol=2e-4)
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


def test_a_derivative_of_a_pipeline_is_a_difference_with_a_note(family):
    with pytest.warns(UserWarning, match="difference of two evaluations"):
        method, config = from_registry(OBJECTIVES, "objective", {"type": "continuous_consistency", **COMMON, "sigma_max": 10.0})
        assert method(config, nn.Identity(), None, family).derivative == "difference"


def test_gradient_penalties_differentiate_every_family_twice_and_the_same_with_checkpointing(family, monkeypatch):
    """Of features of the frozen teacher, and of a critic that is a LoRA on it."""
    monkeypatch.setattr(family.network, "attention_backend", family.network.attention_backend)  # what the penalties set, undone
    for name in ("adversarial_consistency", "distribution_matching"):
        settings = {**COMMON, **METHODS[name], "adversarial_loss": "relativistic", "gradient_penalties": (5.0, 5.0)}
        method, config = from_registry(OBJECTIVES, "objective", {"type": name, **settings})
        objective, batch = method(config, nn.Identity(), None, family), Captioned().batch(range(2))
        models = {role: part.network for role, part in objective.roles.items()}
        role = "critic" if name == "distribution_matching" else "discriminator"
        own = [p for p in models[role].parameters() if p.requires_grad]
        if role == "critic":
            randomise(models[role].network.up, 0)
        found = []
        for again in (False, True):
            if again:
                assert models["student"].enable_recompute()
            loss, logged = objective.loss(Phase(role, role), models, batch, Draws(0, batch.index, role), 0)
            assert logged["r1"] > 0 and logged["r2"] > 0
            found.append(torch.autograd.grad(loss, own, allow_unused=True))
        family.network.network.disable_gradient_checkpointing()
        for plain, checkpointed in zip(*found, strict=True):
            if plain is not None:
                torch.testing.assert_close(checkpointed, plain, atol=1e-5, rtol=1e-4)
