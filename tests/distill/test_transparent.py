"""Layers as data, and training of what tells things from what is behind them: each term of the loss, by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from distill.data import make_source
from distill.data.layered import LayeredConfig, blurred
from distill.losses.distances import psnr
from distill.losses.pictures import within
from distill.objectives.transparent import TransparentConfig, TransparentObjective, halved, layers_of
from distill.types import Batch, Draws, Phase
from gen.io.alpha import upon
from gen.models.components import load_component
from gen.nn.registry import build
from gen.nn.transparency import Transparency, TransparencyConfig
from samplers.denoiser import Condition, Context
from tests.distill.cases import AUTOENCODER
from tests.distill.students import tiny_teacher
from tests.distill.test_every_objective import Layered
from tests.gen.conftest import randomise

PHASE = Phase("transparency", "transparency")
SIZES = {"widths": (8, 8), "blocks": (1, 1), "latent_channels": 2, "factor": 4, "refine_width": 4}


def objective(source: Any = None, network: nn.Module | None = None, **config) -> TransparentObjective:
    made = tiny_teacher()
    made.autoencoder = randomise(build({**AUTOENCODER, "channels": 2}), 3).eval().requires_grad_(False)
    torch.manual_seed(0)
    chosen = TransparentConfig(**{"teacher": {"guidance_scale": 2.0}, **config})
    return TransparentObjective(chosen, network or Transparency(TransparencyConfig(**SIZES)), source, made)


def models_of(made) -> dict[str, Any]:
    return {name: role.network for name, role in made.roles.items()}


def batch_of(count: int = 6) -> Batch:
    return Layered().batch(range(count))


def seen_by(made, batch: Batch, **more):
    return made.seen(models_of(made), batch, Draws(0, batch.index, "transparency"), **more)


# ---- the data ----


@pytest.fixture(scope="module")
def config(emoji_data) -> dict[str, Any]:
    drawings = {"archives": [str(emoji_data / "emoji-train.zip")], "size": 32, "scenes": {"shrink": 0.5, "shift": 0.2}}
    return {"type": "layered", "drawings": drawings}


def test_pictures_are_their_layers_and_functions_of_their_numbers(config):
    source = make_source({**config, "shadow": 0.5}, seed=3)
    batch = source.batch(range(40))
    foreground, background = layers_of(batch)
    assert torch.allclose(batch.images, upon(foreground, background) * 2 - 1, atol=1e-6)
    assert ((foreground >= 0) & (foreground <= 1)).all() and (foreground[:, :3] <= foreground[:, 3:] + 1e-6).all()
    alpha = foreground[:, 3:]
    assert (alpha == 0).any() and (alpha > 0.999).any()
    alone = source.batch([17, 4])
    assert torch.equal(alone.images, batch.images[[17, 4]]) and list(alone.captions) == [batch.captions[17], batch.captions[4]]
    assert torch.equal(alone.extra["foreground"], foreground[[17, 4]])
    assert not torch.equal(make_source(config, seed=4).batch([17]).images, alone.images[:1])


@pytest.mark.parametrize(("kind", "flat"), [("plain", True), ("gradient", False), ("drawn", False), ("", True)])
def test_what_is_behind(config, kind, flat):
    """Plain colours do not change over a picture; others do. None is the same for all pictures."""
    shares = {"plain": 0.0, "gradient": 0.0, "drawn": 0.0, "shadow": 0.0, **({kind: 1.0} if kind else {})}
    background = layers_of(make_source({**config, **shares}, seed=0).batch(range(8)))[1]
    change = background.flatten(2).std(2).amax(1)
    assert (change == 0).all() if flat else (change > 1e-3).sum() >= 7
    if kind:
        assert len({tuple(row) for row in background[:, :, 0, 0].tolist()}) == 8


def test_a_shadow_is_black_and_belongs_to_the_thing(config):
    none, all_of_them = ({**config, "shadow": share} for share in (0.0, 1.0))
    plain, shaded = (layers_of(make_source(one, seed=0).batch(range(6)))[0] for one in (none, all_of_them))
    assert (shaded[:, :3] - plain[:, :3]).abs().max() < 1e-6
    more = shaded[:, 3:] - plain[:, 3:]
    assert (more > -1e-6).all() and (more.amax((1, 2, 3)) > 0.05).all() and more.max() < 0.61


def test_a_blur_keeps_what_is_flat_and_has_its_width():
    flat = torch.full((1, 3, 9, 11), 0.3)
    assert (blurred(flat, 2.0) - flat).abs().max() < 1e-6
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1.0
    spread, place = blurred(point, 3.0)[0, 0], torch.arange(41.0) - 20
    assert abs(float(spread.sum()) - 1) < 1e-5
    assert abs(float((spread.sum(0) * place**2).sum()) ** 0.5 - 3.0) < 0.06  # cut at three times its width


def test_wrong_shares_are_refused():
    with pytest.raises(ValueError, match="sum to at most 1"):
        LayeredConfig(plain=0.5, gradient=0.5, drawn=0.5)
    with pytest.raises(ValueError, match="must not exceed 1"):
        TransparentConfig(direct=0.7, predicted=0.7)
    with pytest.raises(ValueError, match="lowest <= highest"):
        TransparentConfig(times=(0.5, 0.1))


# ---- what the network sees ----


def test_composites_are_seen_as_they_are_and_without_latents():
    made, batch = objective(direct=1.0, predicted=0.0), batch_of()
    seen = seen_by(made, batch)
    assert torch.allclose(seen.pictures, (batch.images + 1) / 2, atol=1e-6)
    assert not seen.known.any() and not seen.latents.any()


def test_encodings_have_noise_and_are_decoded():
    made, batch = objective(direct=0.0, predicted=0.0, noise=0.25), Layered().batch(range(64))
    seen = seen_by(made, batch)
    noise = seen.latents - made.teacher.clean(batch) / made.teacher.model.latent_scale
    assert abs(noise.std() - 0.25) < 0.01 and seen.known.all()
    decoded = made.teacher.autoencoder.decode(seen.latents)
    assert torch.allclose(seen.pictures, (decoded.clamp(-1, 1) + 1) / 2, atol=1e-5)


def test_predictions_are_the_teachers_guided_ones():
    made, batch = objective(direct=0.0, predicted=1.0, times=(0.3, 0.3)), batch_of()
    teacher, draws = made.teacher, Draws(0, batch.index, "transparency")
    clean, denoiser = teacher.clean(batch), teacher.denoiser(teacher.network)
    level = teacher.path(torch.full((6,), 0.3, dtype=torch.float64) * teacher.path.t_noise)
    x = level.mix(clean, draws.normal_like("eps", clean))
    labelled = denoiser(x, level, Condition(label=batch.labels), Context()).x0
    null = denoiser(x, level, Condition(label=torch.full_like(batch.labels, -1)), Context()).x0
    torch.testing.assert_close(
        seen_by(made, batch).latents, (null + 2 * (labelled - null)).float() / teacher.model.latent_scale
    )
    plain = seen_by(made, batch, predicted=False).latents
    torch.testing.assert_close(plain, (clean + 0.1 * draws.normal_like("noise", clean)) / teacher.model.latent_scale)


# ---- the loss ----


def gradients(x: torch.Tensor) -> float:
    return float((x[..., 1:] - x[..., :-1]).abs().mean() + (x[..., 1:, :] - x[..., :-1, :]).abs().mean())


def test_the_loss_is_the_modules_equation():
    made, batch = objective(background_weight=0.7, consistency_weight=0.3), batch_of()
    seen = seen_by(made, batch)
    with torch.no_grad():
        alpha, behind = made.roles["transparency"].network(*seen)
    loss, logs = made.loss(PHASE, models_of(made), batch, Draws(0, batch.index, "transparency"), 0)
    truth, background = batch.extra["foreground"], batch.extra["background"]
    a, c = alpha.clamp(0, 1), seen.pictures
    beyond = ((truth[:, 3:] == 0) & (alpha < 0)) | ((truth[:, 3:] == 1) & (alpha > 1))
    error = torch.where(beyond, torch.zeros_like(alpha), alpha - truth[:, 3:])
    p = c - (1 - a) * behind
    bounded = torch.minimum(p.clamp_min(0), a)
    wanted = {
        "alpha": float(error.abs().mean()) + gradients(error),
        "colour": float((p - truth[:, :3]).abs().mean()) + gradients(p - truth[:, :3]),
        "background": 0.7 * float(((1 - truth[:, 3:]) * (behind - background)).abs().mean()),
        "consistency": 0.3 * float((bounded + (1 - a) * behind - c).abs().mean()),
    }
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(wanted, rel=1e-4)
    assert loss.item() == pytest.approx(sum(wanted.values()), rel=1e-4)


def test_beyond_the_bounds_is_no_error():
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.5, 0.5])
    found = torch.tensor([1.5, 0.9, -0.3, 0.2, 1.5, -0.5])
    assert within(found, truth, 0, 1).tolist() == pytest.approx([1.0, 0.9, 0.0, 0.2, 1.5, -0.5])


def test_a_network_that_is_right_has_no_loss():
    """Where opacity and background are the true ones, nothing is left, whatever was decoded."""
    made, batch = objective(direct=1.0, predicted=0.0), batch_of()
    truth, background = batch.extra["foreground"], batch.extra["background"]
    loss, _ = made.loss(PHASE, {"transparency": lambda *seen: (truth[:, 3:], background), "teacher": None}, batch,
                        Draws(0, batch.index, "transparency"), 0)  # fmt: skip
    assert float(loss) < 1e-5
    wrong, _ = made.loss(PHASE, {"transparency": lambda *seen: (truth[:, 3:], background + 0.1), "teacher": None}, batch,
                         Draws(0, batch.index, "transparency"), 0)  # fmt: skip
    assert float(wrong) > 0.05


def test_small_steps_see_half_the_size_and_no_predictions(monkeypatch):
    made, batch, sizes = objective(direct=0.0, predicted=1.0, small_steps=3), batch_of(), []
    monkeypatch.setattr(made, "_predicted", lambda *given: sizes.append("predicted") or given[2])
    network = made.roles["transparency"].network
    monkeypatch.setattr(network, "forward", lambda x, *rest: sizes.append(x.shape[-1]) or (x[:, :1], x))
    for step in (2, 3):
        made.loss(PHASE, models_of(made), batch, Draws(0, batch.index, "transparency"), step)
    assert sizes == [8, "predicted", 16]
    small = halved(batch)
    assert torch.allclose(small.images[..., 1, 2], batch.images[..., 2:4, 4:6].mean((2, 3)), atol=1e-6)


class Bright(Layered):
    """Bright squares upon dark pictures."""

    def batch(self, counters) -> Batch:
        noise = (super().batch(counters).images + 1) / 2
        layer = torch.zeros(len(noise), 4, 16, 16)
        layer[:, 3, 4:12, 5:11] = 1.0
        layer[:, :3] = layer[:, 3:] * (0.7 + 0.3 * noise)
        background = 0.3 * noise.flip(0)
        images = upon(layer, background) * 2 - 1
        return Batch(torch.tensor(list(counters)), images, extra={"foreground": layer, "background": background})


def test_a_run_learns_layers_and_its_export_opens(tmp_path):
    """Errors of the opacity fall well below those of one opacity for all; the folder written is the network's in bfloat16."""
    made = objective(Bright(), direct=1.0, predicted=0.0)
    network = made.roles["transparency"].network
    optimizer = torch.optim.Adam(network.parameters(), 2e-2)
    before = made.measure(models_of(made))
    for step in range(25):
        batch = Bright().batch(range(4 * step, 4 * step + 4))
        optimizer.zero_grad()
        made.loss(PHASE, models_of(made), batch, Draws(0, batch.index, "transparency"), step)[0].backward()
        optimizer.step()
    after = made.measure(models_of(made))
    assert after["alpha_error"] < 0.35 * before["alpha_error"] and after["alpha_error"] < 12
    made.export(models_of(made), tmp_path / "out")
    opened: Any = load_component(tmp_path / "out", "transparency")
    pictures = (batch.images + 1) / 2
    for mine, its in zip(network.separate(pictures), opened.separate(pictures), strict=True):
        assert psnr(mine, its) > 30
    images, captions = made.preview(models_of(made), batch, 0)
    assert len(images) == len(captions) == 20 and images.abs().max() <= 1.0 + 1e-6


def test_what_the_data_and_the_network_must_be():
    made = objective()
    with pytest.raises(ValueError, match="type: layered"):
        plain = Batch(index=torch.arange(2), images=torch.zeros(2, 3, 16, 16))
        made.loss(PHASE, models_of(made), plain, Draws(0, plain.index, "x"), 0)
    with pytest.raises(ValueError, match="type: transparency"):
        objective(network=nn.Linear(2, 2))
    made = objective(network=nn.Identity())
    assert made.roles["transparency"].network.config.latent_channels == 2
