"""Training of a decoder alone: what it decodes, what each term of its loss is, and that the latent space stays."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from distill.networks.patch_discriminator import PENALISED, PatchDiscriminator
from distill.objectives.decoder import DecoderConfig, DecoderObjective, within_white
from distill.types import Batch, Draws, Phase
from gen.models.components import load_component
from gen.models.folder import Defaults
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from tests.distill.cases import AUTOENCODER
from tests.distill.students import tiny_teacher

DECODER, DISCRIMINATOR = Phase("decoder", "decoder"), Phase("discriminator", "discriminator")


def teacher(steps=3):
    """A tiny class-conditional model with an autoencoder: 16 x 16 pictures, 4 x 4 x 2 latents."""
    made = tiny_teacher()
    torch.manual_seed(3)
    made.autoencoder = build({**AUTOENCODER, "channels": 2}).eval().requires_grad_(False)
    settings = Defaults(num_inference_steps=steps, guidance_scale=2.0, sampler="ddim", schedule="uniform")
    made.model = made.model.model_copy(update={"defaults": settings})
    return made


def objective(network=None, **config):
    made = teacher()
    chosen = DecoderConfig(**{"perceptual_weight": 0.0, "student": None, **config})
    return DecoderObjective(chosen, network or nn.Identity(), teacher=made, student=config.get("student") and teacher())


def batch_of(count=8):
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(index=torch.arange(count), images=images, labels=torch.arange(count) % 3)


def models_of(made):
    return {name: role.network for name, role in made.roles.items()}


def draws_of(batch, phase="decoder"):
    return Draws(0, batch.index, phase)


def made_by(made, step=0, count=8):
    batch = batch_of(count)
    return made.make_latents(models_of(made), batch, draws_of(batch, "latents"), step), batch


def test_encodings_have_the_noise_asked_for():
    made = objective(predicted=0.0, sampled=0.0, noise=0.25)
    latents, batch = made_by(made, count=64)
    error = latents.latents - made.teacher.clean(batch)
    assert abs(error.std() - 0.25) < 0.01 and latents.targets.tolist() == list(range(64))
    exact = objective(predicted=0.0, sampled=0.0, noise=0.0)
    assert torch.equal(made_by(exact)[0].latents, exact.teacher.clean(batch_of()))


def test_predictions_are_the_teachers_guided_ones():
    """Its x0 at the drawn level is null + 2 (conditional - null), computed here by two calls of its network."""
    made = objective(predicted=1.0, sampled=0.0, times=(0.3, 0.3), teacher={"guidance_scale": 2.0})
    found, batch = made_by(made)
    draws, clean, denoiser = draws_of(batch, "latents"), made.teacher.clean(batch), made.teacher.denoiser(made.teacher.network)
    level = made.teacher.path(torch.full((8,), 0.3, dtype=torch.float64) * made.teacher.path.t_noise)
    x = level.mix(clean, draws.normal_like("eps", clean))
    labelled = denoiser(x, level, Condition(label=batch.labels), Context()).x0
    null = denoiser(x, level, Condition(label=torch.full_like(batch.labels, -1)), Context()).x0
    torch.testing.assert_close(found.latents, (null + 2 * (labelled - null)).float())
    assert found.targets.tolist() == list(range(8))


def test_pictures_from_noise_are_the_models_own_samples():
    """From the same noise, by DDIM as the settings say, step by step; the student's turn and the teacher's."""
    made = objective(predicted=0.0, sampled=1.0, teacher_every=2, student={"model": "given"}, student_steps=(1, 2))
    with torch.no_grad():
        made.student.network.head.weight.mul_(-1)
    for step, model, steps in ((0, made.teacher, 3), (1, made.student, 2)):
        found, batch = made_by(made, step)
        assert found.targets.numel() == 0
        path, x = model.path, draws_of(batch, "latents").normal_like("eps", found.latents)
        times = [1 - k / steps for k in range(steps)]
        for here, there in zip(times, [*times[1:], 0.0], strict=True):
            level = path(here)
            both = []
            for labels in (batch.labels, torch.full_like(batch.labels, -1)):
                both.append(model.denoiser(model.network)(x, level, Condition(label=labels), Context()).x0.float())
            x0 = both[1] + 2 * (both[0] - both[1])
            x = there * (x - (1 - here) * x0) / here + (1 - there) * x0 if there else x0
        torch.testing.assert_close(found.latents, x.float(), atol=1e-5, rtol=1e-4)


def test_shares_of_a_batch_are_as_asked():
    made = objective(predicted=0.3, student_predicted=0.2, sampled=0.4, student={"model": "given"})
    parts = made.kinds(Draws(0, torch.arange(4000), "latents"))
    assert [round(len(part) / 4000, 1) for part in parts] == [0.3, 0.2, 0.4]
    assert len(set(torch.cat(parts).tolist())) == sum(map(len, parts))


def test_loss_is_its_formula():
    made = objective(predicted=0.0, sampled=0.5, adversarial_weight=0.3, gradient_weight=2.0, penalty=0.0)
    batch = batch_of()
    latents = made.make_latents(models_of(made), batch, draws_of(batch, "latents"), 1)
    loss, _ = made.loss(DECODER, models_of(made), batch, draws_of(batch), 1)
    y = made.roles["decoder"].network(latents.latents)
    error = (y - batch.images)[latents.targets]
    sharp = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    judged = made.roles["discriminator"].network(y.clamp(-1, 1))
    adversarial = sum(logits.mean() for logits in judged) / 3
    assert 0 < len(latents.targets) < 8
    torch.testing.assert_close(loss, error.abs().mean() + 2 * sharp - 0.3 * adversarial)


def test_beyond_white_and_black_nothing_is_to_gain():
    x = torch.tensor([1.0, 1.0, -1.0, -1.0, 0.0, 0.0])
    y = torch.tensor([1.5, 0.9, -1.5, -0.9, 1.5, -1.5], requires_grad=True)
    (within_white(y, x) - x).abs().sum().backward()
    assert y.grad is not None and y.grad.tolist() == [0, -1, 0, 1, 1, -1]


def test_the_discriminator_has_the_hinge_loss_and_the_penalty_on_its_gradient():
    """The gradient by differences, in float64."""
    made = objective(predicted=0.0, sampled=0.0, penalty=0.5)
    network = made.roles["discriminator"].network.double()
    batch = batch_of(PENALISED)
    images = batch.images.double()
    latents = made.make_latents(models_of(made), batch, draws_of(batch, "latents"), 0)
    fake = made.roles["decoder"].network(latents.latents).clamp(-1, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(made.roles["decoder"].network, "forward", lambda _: fake)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        loss, logs = made.discriminator_loss(models_of(made), latents, images)
        with torch.no_grad():
            real, drawn = network(images), network(fake.double())
            hinge = sum((1 - a).relu().mean() + (1 + b).relu().mean() for a, b in zip(real, drawn, strict=True)) / 3

            def judged(picture):
                return sum(logits.sum() / logits.shape[1] ** 0.5 for logits in network(picture[None]))

            direction = torch.randn(3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            first = images[0].clone().requires_grad_()
            slope = (judged(images[0] + 1e-6 * direction) - judged(images[0] - 1e-6 * direction)) / 2e-6
        (gradient,) = torch.autograd.grad(judged(first), first)
    torch.testing.assert_close((gradient * direction).sum(), slope, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logs["penalty"], gradient.square().sum())
    torch.testing.assert_close(loss.detach(), hinge + 0.25 * gradient.square().sum())


def test_patches_are_as_wide_as_it_says():
    """A logit in the middle changes with the pixels of its own patch and with no other."""
    torch.manual_seed(0)
    network, images = PatchDiscriminator((2, 2, 2)).double(), torch.rand(1, 3, 128, 128, dtype=torch.float64).requires_grad_()
    for logits, width in zip(network(images), (10, 24, 52), strict=True):
        side = int(logits.shape[1] ** 0.5)
        (gradient,) = torch.autograd.grad(logits.view(side, side)[side // 2, side // 2], images, retain_graph=True)
        rows = gradient[0].abs().sum((0, 2)).nonzero()[:, 0]
        assert rows.max() - rows.min() + 1 == width


def test_both_updates_of_a_step_decode_the_same_latents_and_make_them_once(monkeypatch):
    made, batch = objective(predicted=0.5, sampled=0.5), batch_of()
    seen = []

    def counted(*given):
        seen.append(given)
        return DecoderObjective.make_latents(made, *given)

    monkeypatch.setattr(made, "make_latents", counted)
    kept = [made.latents(models_of(made), batch, draws_of(batch, phase), 4) for phase in ("decoder", "discriminator")]
    assert len(seen) == 1 and kept[0] is kept[1]
    made.latents(models_of(made), batch, draws_of(batch), 5)
    assert len(seen) == 2 and len(made._made) == 1


def test_a_measurement_of_other_pictures_leaves_what_the_step_decodes():
    """Held-out samples have the numbers of a step's own where both are counted from the same one."""
    made, batch = objective(predicted=0.5, sampled=0.0), batch_of()
    wanted = objective(predicted=0.5, sampled=0.0).latents(models_of(made), batch, draws_of(batch), 3)
    with torch.no_grad():
        other = made.latents(models_of(made), replace(batch, images=-batch.images), draws_of(batch), 3)
    found = made.latents(models_of(made), batch, draws_of(batch), 3)
    assert torch.equal(found.latents, wanted.latents) and not torch.equal(other.latents, wanted.latents)


def test_only_the_decoder_trains_and_the_export_keeps_the_encoder(tmp_path):
    """Whatever weights the decoder starts from, pictures are encoded as the teacher encodes them, to the bit of bfloat16."""
    torch.manual_seed(9)
    other: Any = build({**AUTOENCODER, "channels": 2})
    made = objective(other, predicted=0.0, sampled=0.0)
    network: Any = made.roles["decoder"].network
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in network.named_parameters() if ".decoder" in name}
    torch.testing.assert_close(network.autoencoder.decoder[0].weight, other.decoder[0].weight)
    made.export({"decoder": network}, tmp_path / "out")
    images, written = batch_of().images, cast("Any", load_component(tmp_path / "out", "autoencoder"))
    rounded: Any = copy.deepcopy(made.teacher.autoencoder).bfloat16().float()
    assert torch.equal(written.encode(images), rounded.encode(images))


def test_a_run_brings_pictures_of_off_latents_closer_to_the_drawings():
    """White pictures whose predictions are far off: after some updates they come out whiter than before."""
    made = objective(predicted=1.0, sampled=0.0, times=(0.5, 0.9), adversarial_weight=0.0)
    batch = batch_of()
    batch.images = torch.ones_like(batch.images)
    network = made.roles["decoder"].network
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 3e-3)
    losses = []
    for step in range(40):
        loss, _ = made.loss(DECODER, models_of(made), batch, draws_of(batch), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"predicted": 0.8, "sampled": 0.4}, "their sum must not exceed 1"),
        ({"times": (0.6, 0.2)}, "lowest <= highest"),
        ({"student_predicted": 0.1}, "give student"),
        ({"student_steps": ()}, "one or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(config, words):
    with pytest.raises(ValidationError, match=words):
        DecoderConfig(**config)


def test_a_model_without_an_autoencoder_of_ours_is_refused():
    with pytest.raises(ValueError, match="no autoencoder of fewstep"):
        DecoderObjective(DecoderConfig(perceptual_weight=0.0), nn.Identity(), teacher=tiny_teacher())


def test_the_shipped_decoder_gives_white_where_white_is_and_edges_where_they_are():
    """On real drawings, through the encoder and back: pure white at the border, and nearly as many strong edges."""
    import gen
    from distill.data.emoji.data import SHIPPED
    from distill.eval.metrics import edges
    from distill.networks.evaluator.pictures import read_pictures

    images, _ = read_pictures(SHIPPED, 128, {"cat", "automobile", "house", "red heart", "guitar"})
    folder = Path(gen.__file__).parent / "weights" / "default" / "autoencoder"
    autoencoder: Any = load_component(folder, "autoencoder")
    made, real = edges(autoencoder.decode(autoencoder.encode(images))), edges(images)
    assert real["white_border"] == 1 and made["white_border"] > 0.99
    assert 0.88 < made["strong_edges"] / real["strong_edges"] < 1.05
