"""Training of a reference encoder: its loss against the model's own, what learns, what is shown, and that it is heeded."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from distill.data.emoji.data import EmojiConfig, EmojiData
from distill.data.emoji.references import EmojiReferencesConfig
from distill.networks.referenced import ReferencedNetwork, shows
from distill.objectives.bases.teacher import Teacher
from distill.objectives.reference import ReferenceConfig, ReferenceObjective
from distill.types import Batch, Draws, Phase
from gen.generator import Generator
from gen.models.folder import write_model
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from tests.distill.students import exact_teacher, tiny_teacher
from tests.distill.test_objective_control import pictures
from tests.distill.test_objective_control import teacher as small_teacher
from tests.gen.conftest import CONFIG, randomise, tiny_autoencoder, tiny_text_encoder
from tests.gen.test_reference_encoder import NETWORKS

PHASE = Phase("reference", "reference")


def teacher() -> Teacher:
    """One whose pictures are as large as its network is made for."""
    given = small_teacher()
    return replace(given, model=given.model.model_copy(update={"sample_size": 16}))


def objective(given=None, network=None, **config) -> ReferenceObjective:
    torch.manual_seed(0)
    settings = ReferenceConfig(**{"depth": 1, "drop_label": 0.0, "drop_reference": 0.0, **config})
    return ReferenceObjective(settings, network or torch.nn.Identity(), None, given or teacher())


def loss_of(method: ReferenceObjective, batch: Batch, seed: int = 0) -> torch.Tensor:
    networks = {name: role.network for name, role in method.roles.items()}
    return method.loss(PHASE, networks, batch, Draws(seed, batch.index, "reference"), 0)[0]


def text_teacher() -> Teacher:
    """A tiny model that reads captions."""
    base = randomise(build(NETWORKS["dit"]), 1).eval().requires_grad_(False)
    parts = [part.eval().requires_grad_(False) for part in (tiny_autoencoder(), tiny_text_encoder())]
    return Teacher(tiny_teacher().model.model_copy(update={"sample_size": 32}), base, *parts, name="tiny")


def captioned(count: int = 4) -> Batch:
    images = torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(torch.arange(count), images, captions=["a <ref>", "a red <ref> on the moon", "cat", ""][:count])


@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("subject", ["none", "fused", "word"])
def test_what_learns_at_first(subject, decoupled):
    """Values of every layer, and the last layer behind the word, which are zero; the model and its text encoder never."""
    if subject == "none" and not decoupled:
        return
    method = objective(text_teacher(), subject=subject, decoupled=decoupled, subject_word="heart")
    network = method.roles["reference"].network
    encoder = network.encoder
    before = {name: copy.deepcopy(getattr(network, name).state_dict()) for name in ("base", "text_encoder")}
    loss_of(method, captioned()).backward()
    zero = [*encoder.values, *([] if subject == "none" else [encoder.subject.fc2])]
    assert zero and all(layer.weight.grad.abs().max() > 0 for layer in zero)
    assert all(p.grad is not None for p in network.parameters())
    for name, weights in before.items():
        assert all(torch.equal(value, weights[key]) for key, value in getattr(network, name).state_dict().items())
        assert all(p.grad is None for p in getattr(network, name).parameters())
    if subject != "none":
        start = method.text_encoder.word.weight[7]  # "heart" of the vocabulary
        torch.testing.assert_close(encoder.subject_start.detach(), start)
    assert {name.partition(".")[0] for name, _ in network.named_parameters()} == {"encoder"}


def test_at_first_the_loss_is_the_models_own():
    given, batch = teacher(), pictures(4)
    method, draws = objective(given, loss="flow", min_sigma=1e-3), Draws(0, batch.index, "reference")
    x0 = given.clean(batch)
    level = given.path(torch.sigmoid(draws.normal("time")) * given.path.t_noise)
    eps = draws.normal_like("eps", x0)
    predicted = given.denoiser(given.network)(level.mix(x0, eps), level, Condition(label=batch.labels), Context())
    error = predicted.flow(given.path) - (eps - x0)
    assert loss_of(method, batch).item() == pytest.approx(error.square().mean().item(), rel=1e-4)


def test_pictures_are_dropped_and_are_their_own_references_where_there_are_no_others():
    batch = pictures(12)
    method = objective(drop_reference=0.5)
    references, present = method.shown(batch, Draws(3, batch.index, "reference"))
    same = (references[:, 0] == batch.images).flatten(1).all(1)
    mirrored = (references[:, 0] == batch.images.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all() and 0 < same.sum() < 12 and 0 < present.sum() < 12
    own = replace(batch, extra={"references": torch.zeros(12, 2, 3, 16, 16), "present": torch.ones(12, 2).bool()})
    given, there = method.shown(own, Draws(3, batch.index, "reference"))
    assert not given.any() and torch.equal(there[:, 0], present[:, 0]) and torch.equal(there[:, 1], present[:, 0])


def test_a_preview_heeds_every_reference_that_it_shows():
    batch, sheets = pictures(3), []
    for share in (0.0, 1.0):
        method = objective(drop_reference=share)
        network = randomise(method.roles["reference"].network, 5)
        sheets.append(method.preview({"reference": network}, batch, 0)[0])
    assert torch.equal(*sheets)


def test_without_a_condition_there_are_no_references():
    method, batch = objective(text_teacher(), subject="fused"), captioned()
    network = randomise(method.roles["reference"].network, 5)
    condition = method.condition(batch, Draws(0, batch.index, "reference"), torch.device("cpu"))
    x, time = torch.randn(4, 4, 8, 8), torch.full((4,), 500.0)
    with torch.no_grad():
        plain = network.base(x, time, replace(condition, extra={}).null(), Context())
        assert torch.equal(network(x, time, condition.null(), Context()), plain)
        assert (network(x, time, condition, Context()) - plain).abs().max() > 1e-3
    twin = copy.deepcopy(network)
    assert isinstance(twin, ReferencedNetwork) and twin.base is network.base
    assert all(a is not b for a, b in zip(network.parameters(), twin.parameters(), strict=True))


def test_it_learns_to_heed_them():
    """Pictures of one colour each: from pure noise, what is shown a picture is nearer to it than what is shown another."""
    given = teacher()

    def batch(first: int, count: int = 16) -> Batch:
        colour = torch.rand(count, 3, 1, 1, generator=torch.Generator().manual_seed(first)) * 2 - 1
        images = colour.expand(-1, -1, 16, 16).contiguous()
        return Batch(torch.arange(first, first + count), images, labels=torch.zeros(count, dtype=torch.long))

    method = objective(given, time={"type": "uniform"}, loss="x0")
    network = method.roles["reference"].network
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for step in range(50):
        optimizer.zero_grad()
        loss_of(method, batch(100 * step), step).backward()
        optimizer.step()
    held_out = batch(10**6)
    x0 = given.clean(held_out)
    x, level = (
        torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)),
        given.path(torch.ones(16) * given.path.t_noise),
    )

    def error(shown: torch.Tensor) -> float:
        features = method.features((shown + 1) / 2)[:, None]
        condition = Condition(label=held_out.labels, extra=shows(features, torch.ones(16, 1, dtype=torch.bool)))
        with torch.no_grad():
            predicted = given.denoiser(network)(x, level, condition, Context()).x0
        return (predicted - x0).square().mean().item()

    assert error(held_out.images) < 0.7 * error(held_out.images.flip(0))


@pytest.mark.parametrize("subject", ["fused", "word"])
def test_what_is_written_draws_as_the_run_does(tmp_path, subject):
    """One step of the exported folder through a `Generator` is the run's own prediction."""
    given = text_teacher()
    method = objective(given, subject=subject)
    network = randomise(method.roles["reference"].network, 4)
    method.export({"reference": network}, tmp_path / "encoder")
    assert "<ref>" in (tmp_path / "encoder" / "README.md").read_text()
    write_model(tmp_path / "model", CONFIG, given.network, given.autoencoder, given.text_encoder)
    generator = Generator.from_pretrained(tmp_path / "model", device="cpu", dtype="float32")
    with torch.no_grad():
        for value in [*network.parameters(), *network.buffers()]:  # what is written is in bfloat16
            value.copy_(value.bfloat16())
    batch = captioned(2)
    shown = replace(
        batch, images=batch.images[:1].expand(2, -1, -1, -1), extra={"references": batch.images[:1, None].repeat(2, 1, 1, 1, 1)}
    )
    condition = method.condition(shown, Draws(0, batch.index, "reference"), torch.device("cpu"))
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    call = {"num_inference_steps": 1, "guidance_scale": 1.0, "sampler": "euler", "output_type": "latent", "progress": False}
    made = generator(
        list(batch.captions),
        references=(batch.images[0] + 1) / 2,
        references_encoder=tmp_path / "encoder",
        latents=latents,
        **call,
    ).images
    with torch.no_grad():
        predicted = generator.config.denoiser(network)(latents, generator.denoiser.path(1.0), condition, Context()).x0
    torch.testing.assert_close(made, predicted, rtol=1e-3, atol=2e-3)


def test_emoji_are_shown_with_references():
    """The same drawing where no other is asked for; colours only where the caption says them; a function of the counter."""
    own = {"size": 32, "recolor": 0.5, "drop_caption": 0.0, "background": 0.5}
    shown = EmojiReferencesConfig(most=3, other=0.0, recolor=1.0, background=0.0, flip=0.0, named=1.0)
    data = EmojiData(EmojiConfig(**own, references=shown))
    batch = data.batch(range(40))
    assert batch.extra["references"].shape == (40, 3, 3, 32, 32)
    assert set(batch.extra["present"].sum(1).tolist()) == {1, 2, 3} and batch.extra["present"][:, 0].all()
    one = data.batch([7])
    assert torch.equal(one.extra["references"][0], batch.extra["references"][7]) and one.captions == [batch.captions[7]]
    assert all("<ref>" in caption for caption in batch.captions)
    variants = [data.variant(index, k) for index, k in data.choose(range(40))]
    plain = data.render([replace(variant, color=None, background=None) for variant in variants])
    for i, variant in enumerate(variants):
        same = torch.equal(batch.extra["references"][i, 0], plain[i])
        assert same or variant.color is not None or batch.extra["references"][i, 0].amin() > -1.0  # white on a background
        assert variant.color is not None or variant.background is None or variant.background in batch.captions[i]
    unnamed = EmojiData(EmojiConfig(**own, references=shown.model_copy(update={"named": 0.0})))
    assert unnamed.batch(range(8)).captions == EmojiData(EmojiConfig(**own)).batch(range(8)).captions
    with pytest.raises(ValueError, match="scenes have no references"):
        EmojiConfig(scenes={}, references={})


def test_wrong_settings_and_models_are_one_sentence():
    with pytest.raises(ValueError, match="is a Exact, and a reference encoder is trained for"):
        objective(exact_teacher())
    with pytest.raises(ValueError, match="no text encoder of ours, which reads the word"):
        objective(
            network=build({"type": "reference_encoder", "channels": 2, "size": 4, "dim": 16, "subject": "word", "text_dim": 16})
        )
    with pytest.raises(ValueError, match="features is 'clip'; give vision"):
        objective(features="clip")
    latents = Batch(torch.arange(2), latents=torch.zeros(2, 2, 4, 4), labels=torch.zeros(2).long())
    with pytest.raises(ValueError, match="The data have no pictures"):
        loss_of(objective(), latents)
