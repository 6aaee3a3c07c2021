"""Learning from pairs: Diffusion-DPO (arXiv 2311.12908), PSO (2410.03190), SPO (2406.04314), DDO (2503.01103).

Against closed forms with two parameters, in float64: at the reference every loss is a multiple of ln 2, and its gradient known.
"""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from PIL import Image

from distill.data.errors import DataError
from distill.data.preferences import parse_pair
from distill.data.report import Unusable
from distill.data.source import make_source
from distill.losses.transitions import log_prob
from distill.objectives.bases.paired import own_error, preference_loss
from distill.objectives.diffusion_dpo import DiffusionDpoConfig, DiffusionDpoObjective
from distill.objectives.direct_discriminative import DirectDiscriminativeConfig, DirectDiscriminativeObjective
from distill.objectives.pairwise_sample import PairwiseSampleConfig, PairwiseSampleObjective, held_ratio
from distill.objectives.step_preferences import StepPreferencesConfig, StepPreferencesObjective
from distill.types import Draws
from gen.ui.preferences import Preference
from samplers.denoiser import Condition
from tests.distill.policies import gradients, policy, quadratic
from tests.distill.students import batch_of, loss_of, models_of

LN2 = math.log(2)


def moved(objective, a: float = 0.05, b: float = -0.02):
    """The student a little away from the reference."""
    with torch.no_grad():
        student = objective.roles["student"].network
        student.a += a
        student.b += b
    return objective


def dpo(**config) -> DiffusionDpoObjective:
    return policy(DiffusionDpoObjective, DiffusionDpoConfig, **{"beta": 3.0, **config})


def errors_by_hand(objective, batch, draws):
    """(student's errors, the reference's), (B,), of x0 = a + b x at levels and with noise that a pair shares."""
    pair = Draws(draws.seed, draws.index[::2], draws.phase)
    t = pair.uniform("time").double().repeat_interleave(2).view(-1, 1, 1, 1)
    eps = pair.normal("eps", (2, 2, 2)).double().repeat_interleave(2, 0)
    x = (1 - t) * batch.latents + t * eps
    networks = objective.roles["student"].network, objective.teacher.network
    return [(network.a + network.b * x - batch.latents).square().flatten(1).mean(1) for network in networks]


# ---- Diffusion-DPO ----


def test_dpo_is_its_closed_form():
    """And with the sign the other way, or a noise for each picture, it is another."""
    objective, batch = moved(dpo()), batch_of(6)
    draws = Draws(0, batch.index, "student")
    change = torch.stack(errors_by_hand(objective, batch, draws))
    difference = (change[0] - change[1])[::2] - (change[0] - change[1])[1::2]
    loss = loss_of(objective, batch)
    assert loss.item() == pytest.approx(torch.log1p((1.5 * difference).exp()).mean().item(), rel=1e-9)
    assert loss.item() != pytest.approx(torch.log1p((-1.5 * difference).exp()).mean().item(), rel=1e-4)
    own = change[0]
    share = torch.sigmoid(1.5 * difference).detach()
    by_hand = (1.5 * share * (own[::2] - own[1::2])).mean()
    assert gradients(objective, loss) == pytest.approx(gradients(objective, by_hand), rel=1e-9)


def test_dpo_at_the_reference():
    """ln 2, and the gradient beta / 4 (of the chosen's error - of the rejected's); a step down denoises the chosen better."""
    objective, batch = dpo(), batch_of(2)
    loss = loss_of(objective, batch)
    assert loss.item() == pytest.approx(LN2, rel=1e-12)
    own, _ = errors_by_hand(objective, batch, Draws(0, batch.index, "student"))
    slope = gradients(objective, loss)
    assert slope == pytest.approx(gradients(objective, 0.75 * (own[0] - own[1])), rel=1e-9)
    before = own.detach()
    moved(objective, *(-0.01 * value for value in slope))
    after, _ = errors_by_hand(objective, batch, Draws(0, batch.index, "student"))
    assert (after[0] - before[0]) < (after[1] - before[1])


def test_errors_are_of_what_a_network_predicts():
    from samplers.path import RectifiedFlow
    from samplers.prediction import Prediction

    level = RectifiedFlow()(torch.tensor([0.3], dtype=torch.float64))
    x0, eps = (torch.full((1, 1, 2, 2), v, dtype=torch.float64) for v in (0.5, -1.0))
    x = level.mix(x0, eps)
    for row, target in (((0.0, 1.0), eps), ((1.0, 0.0), x0), ((-1.0, 1.0), eps - x0)):
        assert own_error(Prediction(x, level, target + 0.1, row), x0, eps).item() == pytest.approx(0.01)


def test_ties_count_nothing():
    margin = torch.tensor([2.0, -1.0, 0.0])
    loss, logged = preference_loss(margin, torch.tensor([1.0, 1.0, 0.0]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.e)) / 3, rel=1e-6)
    assert logged["in_order"].item() == 0.5


def test_an_odd_batch_is_a_sentence():
    with pytest.raises(ValueError, match="3 samples on a process do not split into groups of 2"):
        loss_of(dpo(), batch_of(3))


# ---- PSO ----


def pso(**config) -> PairwiseSampleObjective:
    objective = policy(PairwiseSampleObjective, PairwiseSampleConfig, **{"steps": 3, "beta": 2.0, **config})
    objective.rewards = [(1.0, quadratic)]
    return objective


def pso_by_hand(objective, batch, clip):
    """The loss from trajectories made here: x_t = alpha x0 + sigma n, from noise that a pair shares."""
    student, teacher = objective.roles["student"].network, objective.teacher.network
    draws = Draws(0, batch.index, "student")
    x = Draws(0, batch.index[::2], "student").normal("eps", (2, 2, 2)).double().repeat_interleave(2, 0)
    changes = []
    for number, t in ((3, 2 / 3), (2, 1 / 3)):
        means = [(1 - t) * (network.a + network.b * x) for network in (student, teacher)]
        ahead = (means[0] + t * draws.normal(f"noise {number}", (2, 2, 2)).double()).detach()
        normals = [torch.distributions.Normal(mean, t) for mean in means]
        changes.append(sum(s * n.log_prob(ahead) for s, n in zip((1, -1), normals, strict=True)).flatten(1).mean(1))
        x = ahead
    rewards = quadratic(((student.a + student.b * x) / 2 + 0.5).clamp(0, 1), ())
    order = (rewards[::2] - rewards[1::2]).sign().detach()
    total = 0.0
    for change in changes:
        change = held_ratio(change, clip)
        total = total + torch.log1p((-2.0 * order * (change[::2] - change[1::2])).exp()).mean() / 2
    return total, changes, order


@pytest.mark.parametrize("clip", [None, 0.1, 1e-3])
def test_pso_is_its_closed_form(clip):
    objective, batch = moved(pso(clip=clip)), batch_of(6)
    loss, (by_hand, *_) = loss_of(objective, batch), pso_by_hand(objective, batch, clip)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-9)
    assert gradients(objective, loss) == pytest.approx(gradients(objective, by_hand), rel=1e-8, abs=1e-12)


def test_pso_at_the_reference_climbs_the_winners_probability():
    """ln 2, and the gradient -beta / 2 (of log p of the winner's steps - of the loser's)."""
    objective, batch = pso(), batch_of(4)
    loss = loss_of(objective, batch)
    assert loss.item() == pytest.approx(LN2, rel=1e-12)
    _, changes, order = pso_by_hand(objective, batch, None)
    expected = sum(-(order * (change[::2] - change[1::2])).mean() / 2 for change in changes)  # beta is 2
    assert gradients(objective, loss) == pytest.approx(gradients(objective, expected), rel=1e-9)


def test_ratios_are_held_where_asked():
    values = torch.tensor([-1.0, 0.05, 1.0])
    assert torch.equal(held_ratio(values, None), values)
    assert held_ratio(values, 0.1).exp().tolist() == pytest.approx([0.9, math.exp(0.05), 1.1], rel=1e-6)


def test_the_preferred_mode_of_a_bandit_grows():
    """Pictures brighter by noise are preferred: over updates the sampled pictures get brighter, on and on."""
    objective = pso(clip=None)
    objective.rewards = [(1.0, lambda images, prompts: images.flatten(1).mean(1))]
    student, found = objective.roles["student"].network, []
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05)
    for number in range(12):
        batch = batch_of(64, first=64 * number)
        loss, logged = objective.loss(None, models_of(objective), batch, Draws(0, batch.index), number)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(logged["reward"].item())
    assert found[-1] > found[0] + 0.02 and student.a > objective.teacher.network.a


# ---- SPO ----


def spo(**config) -> StepPreferencesObjective:
    settings = {"steps": 4, "skipped": 0, "threshold": 0.0, "beta": 2.0, "clip": None, "candidates": 3, **config}
    objective = policy(StepPreferencesObjective, StepPreferencesConfig, **settings)
    objective.rewards = [(1.0, quadratic)]
    return objective


def chosen_of(objective, batch):
    draws, condition = Draws(0, batch.index, "student"), Condition(label=batch.labels)
    return objective.choose(objective.roles["student"].network, batch, condition, 1.0, draws)[0], draws


def test_spo_compares_candidates_of_one_x_by_the_picture_that_they_lead_to():
    objective, batch = spo(), batch_of(40)
    student = objective.roles["student"].network
    steps, draws = chosen_of(objective, batch)
    assert [one.number for one in steps] == [4, 3, 2]
    gone_on = torch.zeros(3)
    for one, following in itertools.pairwise(steps):
        mean, deviation = objective.transition(student, one.x, one.number, Condition(label=batch.labels), 1.0)
        noise = [draws.normal_like(f"candidate {one.number} {k}", one.x) for k in range(3)]
        nexts = torch.stack([mean + deviation.view(-1, 1, 1, 1) * n for n in noise])
        rewards = torch.stack([quadratic(((student.a + student.b * n) / 2 + 0.5).clamp(0, 1), ()) for n in nexts])
        rows = torch.arange(40)
        torch.testing.assert_close(one.best, nexts[rewards.argmax(0), rows])
        torch.testing.assert_close(one.worst, nexts[rewards.argmin(0), rows])
        gone_on += torch.stack([(following.x - n).flatten(1).abs().amax(1) < 1e-9 for n in nexts]).sum(1)
    assert gone_on.sum() == 80 and ((gone_on - 80 / 3) ** 2 / (80 / 3)).sum() < 13.8  # chi squared, 1 in 1000


def test_spo_is_its_closed_form_and_ln_2_at_the_reference():
    objective, batch = spo(), batch_of(8)
    assert loss_of(objective, batch).item() == pytest.approx(LN2, rel=1e-9)
    moved(objective)
    steps, _ = chosen_of(objective, batch)
    condition, total = Condition(label=batch.labels), 0.0
    for one in steps:
        own, reference = (
            objective.transition(network, one.x, one.number, condition, 1.0)
            for network in (objective.roles["student"].network, objective.teacher.network)
        )
        margin = sum(s * (log_prob(y, *own) - log_prob(y, *reference)) for s, y in ((1, one.best), (-1, one.worst)))
        total = total + torch.log1p((-2.0 * margin).exp()).mean() / len(steps)
    loss = loss_of(objective, batch)
    assert loss.item() == pytest.approx(total.item(), rel=1e-9)
    assert gradients(objective, loss) == pytest.approx(gradients(objective, total), rel=1e-9)


def test_spo_leaves_out_pairs_that_hardly_differ_and_the_first_steps():
    batch = batch_of(8)
    none = spo(threshold=1e9)
    assert loss_of(none, batch).item() == 0
    assert [one.number for one in chosen_of(spo(skipped=2), batch)[0]] == [2]
    with pytest.raises(ValueError, match="skipped is 3 of 4 steps"):
        StepPreferencesConfig(steps=4, skipped=3)


# ---- DDO ----


def ddo(**config) -> DirectDiscriminativeObjective:
    return policy(
        DirectDiscriminativeObjective, DirectDiscriminativeConfig, **{"steps": 2, "beta": 2.0, "alpha": 0.5, **config}
    )


def ddo_errors(objective, batch):
    """The errors ((student on data, on fakes), (reference on ...)), each (B,), fakes being the reference's own pictures."""
    draws, reference, student = Draws(0, batch.index, "student"), objective.teacher.network, objective.roles["student"].network
    x = draws.normal("fake", (2, 2, 2)).double()
    for s, t in ((1.0, 0.5), (0.5, 0.0)):
        x0 = reference.a + reference.b * x
        x = (1 - t) * x0 + t / s * (x - (1 - s) * x0)
    time, eps = draws.uniform("time").double().view(-1, 1, 1, 1), draws.normal("eps", (2, 2, 2)).double()
    found = []
    for network in (student, reference):
        pair = []
        for clean in (batch.latents, x):
            noisy = (1 - time) * clean + time * eps
            pair.append((network.a + network.b * noisy - clean).square().flatten(1).mean(1))
        found.append(pair)
    return found


def test_ddo_is_its_closed_form():
    objective, batch = moved(ddo()), batch_of(4)
    (data, fakes), (data_ref, fakes_ref) = ddo_errors(objective, batch)
    by_hand = torch.log1p((2 * (data - data_ref)).exp()).mean() + 0.5 * torch.log1p((-2 * (fakes - fakes_ref)).exp()).mean()
    loss = loss_of(objective, batch)
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-9)
    assert gradients(objective, loss) == pytest.approx(gradients(objective, by_hand), rel=1e-9)


def test_ddo_at_the_reference():
    objective, batch = ddo(), batch_of(4)
    loss = loss_of(objective, batch)
    assert loss.item() == pytest.approx(1.5 * LN2, rel=1e-12)
    (data, fakes), _ = ddo_errors(objective, batch)
    assert gradients(objective, loss) == pytest.approx(gradients(objective, data.mean() - 0.5 * fakes.mean()), rel=1e-9)


def test_rounds_make_the_student_the_reference():
    objective = moved(ddo(round_steps=2))
    student, reference = (objective.roles[name].network for name in ("student", "reference"))
    objective.roles["reference"].network.a.fill_(9.0)
    objective.after_step(0)
    assert reference.a == 9.0
    objective.after_step(1)
    assert reference.a == student.a and set(objective.kept()) == {"reference"}


# ---- pairs from files ----


@pytest.fixture
def pairs(tmp_path):
    (tmp_path / "p").mkdir()
    rows = []
    for number in range(4):
        names = [f"p/{number}{kind}.png" for kind in "cr"]
        for name, shade in zip(names, (200, 50), strict=True):
            Image.new("RGB", (20, 20), (shade, 60 * number, 0)).save(tmp_path / name)
        rows.append({"prompt": f"picture {number}", "chosen": names[0], "rejected": names[1], "who": "somebody"})
    return tmp_path, rows


def write(folder, rows) -> str:
    (folder / "pairs.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return str(folder / "pairs.jsonl")


def test_two_samples_are_a_pair(pairs):
    """Chosen, then rejected, with one caption, whichever samples are asked for; a split keeps pairs whole."""
    folder, rows = pairs
    source = make_source({"type": "preferences", "file": write(folder, rows), "size": 16}, 3, 8)
    batch = source.batch(range(8))
    assert batch.captions[::2] == batch.captions[1::2] and sorted(batch.captions[::2]) == [row["prompt"] for row in rows]
    red = (batch.images[:, 0].mean((1, 2)) + 1) * 127.5
    assert red.tolist() == pytest.approx([200, 50] * 4, abs=1)
    green = batch.images[:, 1].mean((1, 2))
    torch.testing.assert_close(green[::2], green[1::2])
    assert torch.equal(source.batch([5]).images[0], batch.images[5])
    rest, held = source.split(0.3)
    assert len(rest) + len(held) == 8 and len(held) % 2 == 0 and len(held) > 0
    assert not set(rest.batch(range(len(rest))).captions) & set(held.batch(range(len(held))).captions)
    with pytest.raises(ValueError, match="A batch of 3 does not split into pairs"):
        make_source({"type": "preferences", "file": write(folder, rows), "size": 16}, 3, 3)


def test_what_the_page_writes_is_read():
    line = Preference('a café, "quoted"', "a-1.png", "b 2.png").line()
    assert parse_pair(line.encode()) == ('a café, "quoted"', "a-1.png", "b 2.png")


@pytest.mark.parametrize(("line", "reason"), [
    ("{", "is not JSON"),
    ('["a"]', "is not an object with prompt, chosen and rejected"),
    ('{"prompt": "a", "chosen": 3, "rejected": "b.png"}', "is not an object with prompt, chosen and rejected"),
    ('{"prompt": "a", "chosen": "b.png", "rejected": "./b.png"}', "names one picture twice"),
])  # fmt: skip
def test_lines_that_are_no_pairs(line, reason):
    with pytest.raises(Unusable, match=reason):
        parse_pair(line.encode())


def test_pictures_are_read_below_the_files_folder_only(pairs):
    folder, _ = pairs
    Image.new("RGB", (20, 20)).save(folder / "outside.png")
    (folder / "p" / "link.png").symlink_to(folder / "outside.png")
    inner = folder / "p"
    good = {"prompt": "good", "chosen": "0c.png", "rejected": "0r.png"}
    bad = [{**good, "chosen": name} for name in ("../outside.png", str(folder / "outside.png"), "link.png", "absent.png")]
    source = make_source({"type": "preferences", "file": write(inner, [*bad, good]), "size": 16}, 0)
    assert len(source) == 2 and set(source.batch(range(2)).captions) == {"good"}
    said = "\n".join(source.report.lines())
    assert said.count("leads out of the folder") == 2 and "is missing" in said and "line 1, ../outside.png" in said
    with pytest.raises(DataError):
        make_source({"type": "preferences", "file": write(inner, bad), "size": 16}, 0)
    with pytest.raises(DataError):
        make_source({"type": "preferences", "file": str(folder / "no.jsonl"), "size": 16}, 0)
