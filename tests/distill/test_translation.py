"""Translators in training: PatchNCE against brute force, each loss against its own words, who trains, and the data."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from distill.data.errors import DataError
from distill.data.source import make_source
from distill.losses.patch_contrast import patch_nce, patches_of
from distill.objectives.cycle_gan_turbo import CycleGanTurboConfig, CycleGanTurboObjective
from distill.objectives.pix2pix_turbo import Pix2PixTurboConfig, Pix2PixTurboObjective
from distill.types import SOURCE, Batch, Draws, Phase
from gen.generator import Generator
from gen.models.translation.files import open_translator
from gen.models.translation.network import TranslationBase
from gen.nn.registry import build
from tests.distill.cases import AUTOENCODER, TRANSLATION
from tests.distill.students import tiny_teacher
from tests.gen.conftest import randomise

TRANSLATOR = Phase("translator", "translator")
SIDES = {name: value for name, value in TRANSLATION.items() if name != "teacher"}


def unit(*shape: int, seed: int) -> Tensor:
    return nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


# ---- the contrast ----


def test_patch_nce_is_the_cross_entropy_of_finding_the_same_place():
    """Equation 3 by loops: -log(exp(q k+ / t) / sum exp(q k / t)), the mean over patches."""
    q, k = unit(2, 5, 3, seed=1), unit(2, 5, 3, seed=2)
    for row, found in enumerate(patch_nce(q, k, 0.07)):
        by_hand = 0.0
        for i in range(5):
            scores = [math.exp(float(q[row, i] @ k[row, j]) / 0.07) for j in range(5)]
            by_hand -= math.log(scores[i] / sum(scores)) / 5
        assert float(found) == pytest.approx(by_hand, rel=1e-9)


def test_patch_nce_does_not_depend_on_the_order_of_patches_or_move_the_keys():
    q, k = unit(2, 6, 4, seed=3).requires_grad_(), unit(2, 6, 4, seed=4).requires_grad_()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(5))
    loss = patch_nce(q, k)
    torch.testing.assert_close(patch_nce(q[:, order], k[:, order]), loss)
    assert not torch.allclose(patch_nce(q[:, order], k), loss)
    loss.sum().backward()
    assert q.grad is not None and q.grad.abs().sum() > 0 and k.grad is None


def test_patches_are_the_pixels_of_maps():
    maps = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).float()
    assert torch.equal(patches_of(maps, torch.tensor([[7], [19]])), torch.stack([maps[0, :, 1, 2], maps[1, :, 3, 4]])[:, None])


# ---- objectives ----


def batch_of(count: int = 2) -> Batch:
    images = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(6)) * 2 - 1
    return Batch(torch.arange(count), images, labels=torch.arange(count) % 3, extra={SOURCE: images.flip(3)})


def objective_of(kind: type, config: type, **changes) -> tuple:
    """(objective on a tiny model, its networks) with changes that matter."""
    teacher = tiny_teacher()
    teacher.autoencoder = randomise(build({**AUTOENCODER, "channels": 2}), 2).eval().requires_grad_(False)
    settings = {**SIDES, "made_from": None, "there": {"name": "icon"}, **changes}
    made = kind(config(**settings), nn.Identity(), None, teacher)
    networks = {name: role.network for name, role in made.roles.items()}
    with torch.no_grad():
        for index, parameter in enumerate(networks["translator"].parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return made, networks


def paired(**changes) -> tuple:
    return objective_of(Pix2PixTurboObjective, Pix2PixTurboConfig, **{"perceptual": 0.0, **changes})


def unpaired(**changes) -> tuple:
    plain = {"cycle_perceptual": 0.0, "identity_perceptual": 0.0}
    return objective_of(CycleGanTurboObjective, CycleGanTurboConfig, **{**plain, **changes})


def loss_of(made, networks, batch: Batch, step: int = 0):
    return made.loss(TRANSLATOR, networks, batch, Draws(0, batch.index, "translator"), step)


@pytest.mark.parametrize("make", [paired, lambda: unpaired(contrastive={"patches": 8, "dim": 8})])
def test_every_trained_part_has_a_gradient_and_nothing_else(make):
    made, networks = make()
    loss, _ = loss_of(made, networks, batch_of())
    loss.backward()
    without = [name for name, one in networks["translator"].named_parameters() if one.grad is None or not one.grad.any()]
    assert not without
    for name, network in networks.items():
        if name != "translator":
            assert all(one.grad is None for one in network.parameters()), name
    assert all(one.grad is None for one in made.teacher.autoencoder.parameters())


def test_the_paired_loss_is_the_sum_of_its_words():
    """On both directions: (mean squares, mean absolute differences) of what was made, nothing beyond white counting."""
    made, networks = paired(l2=1.0, l1=0.5, adversarial_weight=0.0)
    batch = batch_of()
    loss, _ = loss_of(made, networks, batch)
    expected, a, b = 0.0, batch.extra[SOURCE], batch.images
    for side, wanted in zip(made.sides(batch, Draws(0, batch.index, "translator")), (b, a), strict=True):
        assert torch.equal(side.wanted, wanted) and torch.equal(side.given, a if wanted is b else b)
        error = networks["translator"](made.job(batch, side))[0][0] - wanted
        expected += error.square().mean() + 0.5 * error.abs().mean()
    torch.testing.assert_close(loss, expected)


def test_what_leads_to_the_target_counts_as_much_as_the_strength():
    """With strengths of their own: the mean over samples of r times the error of that sample at its r."""
    made, networks = paired(l2=1.0, adversarial_weight=0.0, stochastic=1.0, back=None)
    batch = batch_of(3)
    draws = Draws(0, batch.index, "translator")
    (job,) = made.jobs(batch, made.sides(batch, draws), draws)
    assert len(set(job.strength.tolist())) == 3 and ((job.strength >= 0) & (job.strength < 1)).all()
    expected = 0.0
    for row in range(3):
        one = replace(
            job,
            images=job.images[row : row + 1],
            strength=float(job.strength[row]),
            noise=job.noise[row : row + 1],
            condition=job.condition[[row]],
        )
        error = networks["translator"](one)[0][0] - batch.images[row : row + 1]
        expected += float(job.strength[row]) * error.square().mean() / 3
    torch.testing.assert_close(loss_of(made, networks, batch)[0], expected, atol=1e-6, rtol=1e-5)


class Turned(nn.Module):
    """A translator that turns pictures over, and back; of which PatchNCE is 2."""

    def forward(self, *jobs, contrast=None):
        made = []
        for number, job in enumerate(jobs):
            contrasted = torch.full((len(job.images),), 2.0) if contrast and number in contrast else None
            made.append((-job.images, job.images if job.back is not None else None, contrasted))
        return made


def test_the_unpaired_loss_is_the_sum_of_its_words():
    """There and back again gives the picture: no cycle; what is of the kind already is turned over: twice its size."""
    made, networks = unpaired(identity=0.7, adversarial_weight=0.3, contrastive={"patches": 8, "dim": 8, "identity": 0.5})
    networks["translator"] = Turned()
    batch = batch_of()
    loss, logs = loss_of(made, networks, batch)
    assert float(logs["icon_cycle"]) == float(logs["outline_cycle"]) == 0.0
    a, b = batch.extra[SOURCE], batch.images
    expected = torch.tensor(2 * (2.0 + 0.5 * 2.0))
    for wanted, judge, given in ((b, "discriminator", a), (a, "discriminator_back", b)):
        expected = expected + 0.7 * (2 * wanted).abs().mean()
        expected = expected - 0.3 * torch.stack([logits.mean() for logits in networks[judge](-given)]).mean()
    torch.testing.assert_close(loss, expected)


def test_discriminators_judge_what_the_translator_has_just_drawn():
    made, networks = unpaired()
    batch = batch_of()
    loss_of(made, networks, batch, step=3)
    kept = made.judged(networks, batch, Draws(0, batch.index, "translator"), 3)
    with torch.no_grad():
        for parameter in networks["translator"].parameters():
            parameter.add_(1.0)
    again = made.judged(networks, batch, Draws(0, batch.index, "translator"), 3)
    assert all(one is other for one, other in zip(kept, again, strict=True))
    later = made.judged(networks, batch, Draws(0, batch.index, "translator"), 4)
    assert not torch.equal(later[0], kept[0])
    for role, real, fake in (("discriminator", batch.images, kept[0]), ("discriminator_back", batch.extra[SOURCE], kept[1])):
        loss, _ = made.loss(Phase(role, role), networks, batch, Draws(0, batch.index, role), 3)
        judge = networks[role]
        hinge = [(1 - x).relu().mean() + (1 + y).relu().mean() for x, y in zip(judge(real), judge(fake), strict=True)]
        torch.testing.assert_close(loss, torch.stack(hinge).mean())


def test_a_measurement_of_other_pictures_leaves_what_the_step_judges():
    """Held-out samples have the numbers of a step's own, here of one in which the translator is not updated."""
    (made, networks), batch = unpaired(), batch_of()
    wanted = made.judged(networks, batch, Draws(0, batch.index, "translator"), 3)
    with torch.no_grad():
        loss_of(made, networks, replace(batch, images=-batch.images, extra={SOURCE: -batch.extra[SOURCE]}), step=3)
    found = made.judged(networks, batch, Draws(0, batch.index, "translator"), 3)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def test_outlines_are_drawn_alike_for_all_updates_of_a_step():
    made, networks = paired(made_from="edges")
    batch = batch_of()
    (first, _), (second, _) = (made.sides(batch, Draws(0, batch.index, phase)) for phase in ("translator", "discriminator"))
    assert not torch.equal(first.given, second.given)  # by another phase's numbers others would be drawn
    loss_of(made, networks, batch)
    seen = {}
    made.judged = lambda models, batch, draws, step: seen.setdefault("phase", draws.phase) and [batch.images] * 2
    made.loss(Phase("discriminator", "discriminator"), networks, batch, Draws(0, batch.index, "discriminator"), 0)
    assert seen == {"phase": "translator"}


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (Pix2PixTurboConfig, {"l2": 0, "perceptual": 0}, "nothing leads to the paired picture"),
        (Pix2PixTurboConfig, {"back": {"name": "there"}}, "a name of its own"),
        (CycleGanTurboConfig, {}, "no way back"),
        (CycleGanTurboConfig, {"back": {"name": "b"}, "adversarial_weight": 0}, "adversarial_weight is 0"),
    ],
)
def test_settings_that_teach_nothing_are_refused(config, changes, says):
    with pytest.raises(ValidationError, match=says):
        config(**changes)


def test_data_of_one_domain_are_refused():
    made, networks = paired()
    with pytest.raises(ValueError, match="type pairs or unpaired, or made_from: edges"):
        loss_of(made, networks, replace(batch_of(), extra={}))


def test_an_export_opens_as_what_trained(tmp_path):
    made, networks = paired()
    made.export(networks, tmp_path)
    trained = networks["translator"].translator
    generator = Generator(made.teacher.model, made.teacher.network, made.teacher.autoencoder, device="cpu", dtype="float32")
    opened = open_translator(tmp_path, TranslationBase(generator.config, generator.network, generator.autoencoder))
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(opened.state_dict()[name], value.bfloat16().float())


# ---- data ----


def write(path, colour) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), colour).save(path)


def shades(batch: Batch) -> set[tuple[int, int]]:
    """(red of A's picture, red of B's) of every sample."""
    return {
        (round(float(a[0, 0, 0] + 1) * 127.5), round(float(b[0, 0, 0] + 1) * 127.5))
        for a, b in zip(batch.extra[SOURCE], batch.images, strict=True)
    }


def test_pairs_are_found_by_name_in_two_folders(tmp_path):
    for number in range(3):
        write(tmp_path / "a" / f"{number}.jpg", (10 * number, 0, 0))
        write(tmp_path / "b" / f"{number}.png", (100 + 10 * number, 0, 0))
    write(tmp_path / "b" / "alone.png", "white")
    (tmp_path / "b" / "1.txt").write_text("the second")
    config = {"type": "pairs", "folder": str(tmp_path / "b"), "a": str(tmp_path / "a"), "size": 16, "drop_caption": 0.0}
    source = make_source(config, 0)
    batch = source.batch(range(3))
    assert len(source) == 3 and {round((b - 100) / 10) for _, b in shades(batch)} == {0, 1, 2}
    assert all(abs((b - 100) - a) <= 2 for a, b in shades(batch))  # JPEG rounds
    assert sorted(batch.captions) == ["", "", "the second"]
    assert any("alone.png" in line and "no partner" in line for line in source.report.lines())
    again = source.batch([2, 0])
    assert torch.equal(again.images[1], batch.images[0]) and torch.equal(again.extra[SOURCE][1], batch.extra[SOURCE][0])


@pytest.mark.parametrize("ends", [("_edges", ""), ("_a", "_b")])
def test_pairs_are_found_by_the_ends_of_names_in_one_folder(tmp_path, ends):
    for number in range(2):
        write(tmp_path / f"{number}{ends[0]}.png", (10 * number, 0, 0))
        write(tmp_path / f"{number}{ends[1]}.png", (100 + 10 * number, 0, 0))
    source = make_source({"type": "pairs", "folder": str(tmp_path), "suffixes": list(ends), "size": 16}, 0)
    assert len(source) == 2 and shades(source.batch(range(2))) == {(0, 100), (10, 110)}


def test_pairs_are_mirrored_alike(tmp_path):
    gradient = Image.linear_gradient("L").rotate(90).convert("RGB")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        gradient.save(tmp_path / name / "0.png")
    config = {"type": "pairs", "folder": str(tmp_path / "b"), "a": str(tmp_path / "a"), "size": 16, "flip": 0.5}
    batch = make_source({**config, "random_crop": True}, 0).batch(range(12))
    left = {bool(one[0, 0, 0] < one[0, 0, -1]) for one in batch.images}
    assert left == {True, False} and torch.equal(batch.images, batch.extra[SOURCE])


def test_unpaired_sources_go_in_orders_of_their_own(tmp_path):
    for number in range(4):
        write(tmp_path / "a" / f"{number}.png", (10 * number, 0, 0))
        write(tmp_path / "b" / f"{number}.png", (100 + 10 * number, 0, 0))
    one = {"type": "images", "size": 16, "captions": "none"}
    config = {"type": "unpaired", "a": {**one, "folder": str(tmp_path / "a")}, "b": {**one, "folder": str(tmp_path / "b")}}
    found = shades(make_source(config, 0).batch(range(4)))
    assert {a for a, _ in found} == {0, 10, 20, 30} and {b for _, b in found} == {100, 110, 120, 130}
    assert found != {(shade, 100 + shade) for shade in (0, 10, 20, 30)}
    with pytest.raises(DataError, match="one size"):
        make_source({**config, "a": {**config["a"], "size": 32}}, 0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({}, "either a"), ({"suffixes": ["x", "x"]}, "two that differ"), ({"a": "q", "buckets": {}}, "of one shape")],
)
def test_pairs_that_cannot_be_are_refused(tmp_path, changes, says):
    with pytest.raises(ValueError, match=says):
        make_source({"type": "pairs", "folder": str(tmp_path), **changes}, 0)
