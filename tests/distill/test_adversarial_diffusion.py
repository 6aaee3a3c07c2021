"""Adversarial diffusion distillation: what is judged, who learns from whom, and the networks whose features are judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from distill.networks.discriminator import prompt_vector
from distill.networks.evaluator.network import Evaluator, EvaluatorConfig
from distill.networks.feature_maps import Dinov2Maps, FeatureMaps, load_feature_maps
from distill.objectives.adversarial_diffusion_distillation import (
    AdversarialDiffusionConfig,
    AdversarialDiffusionObjective,
    MapHeads,
)
from distill.objectives.latent_consistency import LatentConsistencyConfig, LatentConsistencyObjective
from distill.types import Draws, Phase
from gen.nn.registry import build
from samplers.denoiser import Condition
from tests.distill.cases import AUTOENCODER
from tests.distill.students import FLOW, SIZES, STUDENT, VP, latents, models_of, tiny_teacher
from tests.gen.conftest import randomise

JUDGE = Phase("discriminator", "discriminator")
CASES = pytest.mark.parametrize(("network", "path", "kind"), [("dit", FLOW, "flow"), ("uvit", VP, "v")])


class Small(FeatureMaps):
    """An evaluation network of two stages with random weights."""

    def __init__(self):
        torch.manual_seed(1)
        super().__init__(Evaluator(EvaluatorConfig(size=16, widths=(4, 6), dim=8, text_dim=8)), (4, 6))

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.stages(images)


def add(network: str = "dit", path=FLOW, kind: str = "flow", **changes) -> AdversarialDiffusionObjective:
    teacher = tiny_teacher(network, path, kind)
    teacher.autoencoder = randomise(build({**AUTOENCODER, "channels": 2}), 5).eval().requires_grad_(False)
    torch.manual_seed(0)
    student = randomise(build({"type": network, **SIZES}), 7).requires_grad_(True)
    own = {"start": "network", "steps": 4, "teacher": {"guidance_scale": 3.0}, "inputs": "data", "hidden": 8, **changes}
    objective = AdversarialDiffusionObjective(AdversarialDiffusionConfig(**own), student, None, teacher)
    objective.maps = Small()
    heads = MapHeads(objective.maps.widths, objective.config.hidden, picture=objective.maps.embedding * objective.shows_picture)
    objective.roles["discriminator"] = replace(objective.roles["discriminator"], network=randomise(heads, 3))
    return objective


@CASES
def test_the_students_loss_is_what_the_heads_say_and_how_far_the_teacher_would_move_it(network, path, kind):
    objective = add(network, path, kind, distillation_weight=0.7)
    batch, models = latents(), models_of(objective)
    draws = Draws(0, batch.index, "student")
    loss, logged = objective.loss(STUDENT, models, batch, draws, 0)
    x0, _, condition, scale = objective.rollout(models["student"], batch, draws)
    images = objective.teacher.autoencoder.decode(x0).clamp(-1.2, 1.2)
    shown = objective.maps.embed(objective.teacher.autoencoder.decode(batch.latents))
    shown = shown * (objective.start(draws, x0.device) < 4)[:, None]  # not what starts from pure noise
    assert 0 < (shown.abs().sum(1) > 0).sum() < 4
    adversarial = -sum(logits.mean() for logits in models["discriminator"](objective.maps(images), None, shown))
    level = objective.path(draws.uniform("level").double())
    x_t = level.mix(x0, draws.normal("noise", (2, 4, 4)))
    wanted = objective.teacher_predict(models, x_t, level, condition, scale).x0
    distillation = (level.alpha.float() * (x0 - wanted).square().mean((1, 2, 3))).mean()
    assert distillation > 1e-3
    torch.testing.assert_close(loss, adversarial + 0.7 * distillation)
    torch.testing.assert_close(logged["distillation"], distillation.detach())


@CASES
def test_the_heads_loss_is_the_hinge_and_the_gradient_at_real_features(network, path, kind):
    objective = add(network, path, kind, penalty=0.05)
    assert objective.roles["discriminator"].second_order
    batch, models = latents(), models_of(objective)
    draws = Draws(0, batch.index, "discriminator")
    loss, logged = objective.loss(JUDGE, models, batch, draws, 0)
    x0, real, *_ = objective.rollout(models["student"], batch, draws)
    decode, heads = objective.teacher.autoencoder.decode, models["discriminator"]
    maps = [m.detach().requires_grad_(True) for m in objective.maps(decode(real).clamp(-1.2, 1.2))]
    shown = objective.maps.embed(decode(real)) * (objective.start(draws, x0.device) < 4)[:, None]
    on_real, on_fake = heads(maps, None, shown), heads(objective.maps(decode(x0).clamp(-1.2, 1.2)), None, shown)
    assert [logits.shape for logits in on_real] == [(4, 8 * 8), (4, 4 * 4)]
    squared = 0.0
    for row in range(4):
        for one, features in zip(on_real, maps, strict=True):  # of every head in its own map
            squared += torch.autograd.grad(one[row].mean(), features, retain_graph=True)[0].square().sum()
    torch.testing.assert_close(logged["penalty"], squared / 4, rtol=1e-3, atol=1e-6)
    hinge = sum((1 - a).relu().mean() + (1 + b).relu().mean() for a, b in zip(on_real, on_fake, strict=True))
    torch.testing.assert_close(loss, hinge + 0.05 * squared / 4, rtol=1e-4, atol=1e-5)
    plain = add(network, path, kind, penalty=0.0)
    assert not plain.roles["discriminator"].second_order
    torch.testing.assert_close(plain.loss(JUDGE, models, batch, draws, 0)[0], hinge, rtol=1e-4, atol=1e-5)


@CASES
def test_each_network_learns_in_its_own_phase_only(network, path, kind):
    objective = add(network, path, kind, distillation_weight=0.0)
    batch, models = latents(), models_of(objective)
    assert [phase.role for phase in objective.phases(0)] == ["student", "discriminator"]
    objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)[0].backward()
    reached = [p.grad for p in models["student"].parameters() if p.grad is not None]
    assert reached and max(g.abs().max() for g in reached) > 0  # through the decoder and the features
    assert all(p.grad is None for name in ("discriminator", "teacher") for p in models[name].parameters())
    models["student"].zero_grad(set_to_none=True)
    objective.loss(JUDGE, models, batch, Draws(0, batch.index, "discriminator"), 0)[0].backward()
    assert all(p.grad is not None for p in models["discriminator"].parameters())
    assert all(p.grad is None for p in models["student"].parameters())
    assert all(p.grad is None for part in (objective.maps, objective.autoencoder) for p in part.parameters())


def test_the_student_is_moved_towards_what_the_heads_take_for_real():
    objective = add(distillation_weight=0.0, noisiest_share=1.0)
    batch, models = latents(), models_of(objective)

    def value() -> Tensor:
        return objective.loss(STUDENT, models, batch, Draws(0, batch.index, "student"), 0)[0]

    before = value().detach()
    optimizer = torch.optim.SGD(models["student"].parameters(), lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        value().backward()
        optimizer.step()
    assert value() < before - 1e-3


def test_heads_that_are_told_the_prompt_add_how_well_each_place_fits_it():
    heads, x = randomise(MapHeads((6,), 4, prompt=5), 2), torch.randn(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    prompt = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    h, told = heads.bodies[0](x), heads.prompts[0](prompt)
    fits = torch.stack([(h[row] * told[row][:, None, None]).sum(0).flatten() for row in range(3)]) / 2  # sqrt of 4 channels
    torch.testing.assert_close(heads([x], prompt)[0], heads([x])[0] + fits)


def test_a_picture_is_told_only_where_the_student_was_given_some_of_it():
    for changes, told in (
        ({}, True),
        ({"inputs": "simulated"}, False),
        ({"noisiest_share": 1.0}, False),
        ({"steps": 1}, False),
    ):
        objective = add(**changes)
        assert (
            objective.shows_picture == told
            and (objective.picture(latents().latents, Draws(0, torch.arange(4))) is None) != told
        )
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = objective.maps.embed(images)
    torch.testing.assert_close(found.norm(dim=1), torch.full((2,), 6.0).sqrt())
    torch.testing.assert_close(
        found / found.norm(dim=1, keepdim=True), nn.functional.normalize(objective.maps(images)[-1].mean((2, 3)))
    )


def test_the_prompt_is_the_mean_of_its_tokens():
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    condition = Condition(tokens=tokens, mask=torch.tensor([[True, True, False], [True, True, True]]))
    found = prompt_vector(condition)
    mean = torch.stack([tokens[0, :2].mean(0), tokens[1].mean(0)])
    torch.testing.assert_close(found, 2 * mean / mean.norm(dim=1, keepdim=True))
    assert prompt_vector(Condition(label=torch.tensor([1]))) is None


def test_a_teacher_that_draws_no_pictures_is_refused():
    with pytest.raises(ValueError, match="has no autoencoder"):
        AdversarialDiffusionObjective(AdversarialDiffusionConfig(start="network"), nn.Identity(), None, tiny_teacher())


def test_a_perceptual_distance_is_that_of_the_features_directions():
    teacher = tiny_teacher()
    teacher.autoencoder = randomise(build({**AUTOENCODER, "channels": 2}), 5).eval().requires_grad_(False)
    student = nn.Identity()
    plain = LatentConsistencyObjective(LatentConsistencyConfig(), student, None, teacher)
    both = LatentConsistencyObjective(LatentConsistencyConfig(perceptual=0.7), student, None, teacher)
    both.maps = Small()
    a, b = latents().latents, latents(8).latents[4:]
    a.requires_grad_(True)
    apart = torch.zeros(4)
    for x, y in zip(both.maps(both.decode(a).clamp(-1.2, 1.2)), both.maps(both.decode(b).clamp(-1.2, 1.2)), strict=True):
        cosine = torch.nn.functional.cosine_similarity(x, y, dim=1)
        lit = ((x != 0).any(1) & (y != 0).any(1)).float()  # a place where nothing fires has no direction
        dark = (x != 0).any(1).float() + (y != 0).any(1).float() - 2 * lit
        apart = apart + ((2 - 2 * cosine) * lit + dark).mean((1, 2))
    assert apart.min() > 1e-3
    torch.testing.assert_close(both.distance(a, b), plain.distance(a, b) + 0.7 * apart, rtol=1e-4, atol=1e-5)
    assert torch.equal(both.perceptual_error(b, b), torch.zeros(4))
    (gradient,) = torch.autograd.grad(both.perceptual_error(a, b).sum(), a)
    assert gradient.abs().flatten(1).max(1).values.min() > 0


def test_feature_maps_of_the_evaluation_network_and_of_dinov2():
    from transformers import Dinov2Config, Dinov2Model

    images = (torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1).requires_grad_(True)
    network = Dinov2Model(
        Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=30, patch_size=14)
    )
    for maps in (load_feature_maps("evaluator"), Dinov2Maps(None, network)):
        found = maps(images)
        assert tuple(m.shape[1] for m in found) == maps.widths
        assert all(m.shape[0] == 2 and m.ndim == 4 for m in found)
        (gradient,) = torch.autograd.grad(sum(m.square().mean() for m in found), images)
        assert gradient.abs().max() > 0 and not any(p.requires_grad for p in maps.parameters())
        assert not maps.train().network.training
    assert [tuple(m.shape[2:]) for m in found] == [(2, 2)] * 4  # 28 pixels in patches of 14
    states = network((torch.nn.functional.interpolate(images, (28, 28), mode="bicubic", antialias=True) / 2 + 0.5
                      - maps.mean) / maps.std, output_hidden_states=True).hidden_states  # fmt: skip
    torch.testing.assert_close(found[1][0, :, 1, 0], states[2][0, 1 + 2])
    with pytest.raises(ValueError, match="did you mean 'evaluator'"):
        load_feature_maps("evaluater")


def test_a_folder_that_is_no_dinov2_is_told_in_a_sentence(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is not a DINOv2 model that can be opened \(.*\); give a folder or a hub id\.$"):
        load_feature_maps(f"dinov2:{tmp_path}")
