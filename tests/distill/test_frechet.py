"""Fréchet distance as a loss: the gradient of a whole population through a batch, what is remembered, what is matched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from distill.eval import metrics
from distill.networks.evaluator.network import Evaluator, EvaluatorConfig
from distill.networks.feature_moments import Population, transport
from distill.networks.features import FEATURES, Features
from distill.objectives.bases import representations as module
from distill.objectives.frechet import FrechetConfig, FrechetObjective
from distill.objectives.latent_consistency import LatentConsistencyConfig, LatentConsistencyObjective
from distill.optim.precision import autocast
from distill.types import Draws
from gen.nn.registry import build
from tests.distill.cases import AUTOENCODER
from tests.distill.processes import on_processes
from tests.distill.students import FLOW, SIZES, STUDENT, VP, Source, latents, models_of, tiny_teacher
from tests.gen.conftest import randomise


def normal(seed: int, count: int, width: int = 5) -> Tensor:
    """Correlated vectors about a centre (count, width), float64."""
    g = torch.Generator().manual_seed(seed)
    mixed = torch.randn(count, width, generator=g).double() @ torch.randn(width, width, generator=g).double()
    return mixed + torch.randn(width, generator=g).double()


def remembered(data: Tensor, drawn: Tensor, **options) -> Population:
    found = Population(data, memory=len(drawn), **{"shrinkage": 0.0, **options})
    found.drawn(drawn)
    found.learn()
    found.refresh()
    return found


def distance(a: Tensor, b: Tensor) -> Tensor:
    """The Fréchet distance of fits with divisor N, differentiable, by another road: eigenvalues of the product."""
    of_a, of_b = (torch.cov(v.T, correction=0) for v in (a, b))
    values, vectors = torch.linalg.eigh(of_b)
    half = (vectors * values.sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(half @ of_a @ half).sqrt().sum()
    return (a.mean(0) - b.mean(0)).square().sum() + of_a.trace() + of_b.trace() - 2 * cross


# ---- the population ----


def test_the_error_and_its_gradient_are_those_of_the_frechet_distance_of_all_that_was_drawn():
    data, x = normal(0, 400), normal(1, 60).requires_grad_()
    wanted = distance(x, data)
    (gradient,) = torch.autograd.grad(wanted, x)
    found = remembered(data, x.detach())
    error = found.error(x).mean() * found.total
    torch.testing.assert_close(error, wanted, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.apart, wanted.detach(), atol=1e-10, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(error, x)[0], gradient, atol=1e-12, rtol=0)
    assert wanted > 1 and gradient.abs().max() > 0.01
    # as the measure has it, up to the divisors N and N - 1
    assert float(wanted.detach()) == pytest.approx(metrics.frechet_distance(x, data), rel=0.02)


def test_the_gradient_of_a_part_is_its_share_of_the_wholes():
    data, x = normal(0, 400), normal(1, 60)
    found, part = remembered(data, x), x[:4].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(distance(torch.cat([part, x[4:]]), data), part)
    (of_part,) = torch.autograd.grad(found.error(part).sum() * found.total / 60, part)
    torch.testing.assert_close(of_part, gradient, atol=1e-12, rtol=0)


def test_transport_takes_one_covariance_to_the_other():
    a, b = (torch.cov(normal(seed, 50).T) for seed in (0, 1))
    matrix = transport(a, b)
    torch.testing.assert_close(matrix @ a @ matrix, b, atol=1e-10, rtol=0)
    torch.testing.assert_close(matrix, matrix.T, atol=1e-12, rtol=0)
    assert torch.linalg.eigvalsh(matrix).min() > 0


def test_batches_add_up_to_a_population_and_old_ones_fade():
    data, x = normal(0, 100), normal(1, 64)
    whole, parts = remembered(data, x), Population(data, memory=64, shrinkage=0.0)
    for rows in x.split((7, 20, 1, 36)):
        parts.drawn(rows[: len(rows) // 2])
        parts.drawn(rows[len(rows) // 2 :])  # micro-batches of one step
        parts.learn()
    parts.refresh()
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value, atol=1e-11, rtol=0, msg=name)
    other = normal(2, 16)
    parts.drawn(other)
    parts.learn()  # a quarter of the memory
    wanted = 0.75 * x.mean(0) + 0.25 * other.mean(0) - data.mean(0)
    torch.testing.assert_close(parts.mean, wanted, atol=1e-11, rtol=0)
    parts.learn()  # nothing new
    torch.testing.assert_close(parts.mean, wanted, atol=1e-11, rtol=0)


def test_there_is_no_map_before_enough_was_drawn():
    data, x = normal(0, 100), normal(1, 30).requires_grad_()
    found = Population(data, memory=31, shrinkage=0.0)
    for drawn in (x, x[:1]):
        assert not found.known and torch.equal(found.error(x), torch.zeros(30).double())
        found.drawn(drawn)
        found.learn()
        found.refresh()
    assert found.known and found.error(x).min() > 0


def test_numbers_that_are_not_finite_are_not_remembered():
    data, x = normal(0, 100), normal(1, 30)
    broken = torch.cat([x, torch.full((2, 5), torch.nan), torch.full((1, 5), torch.inf)])
    found = Population(data, memory=30)
    found.drawn(broken)
    found.learn()
    assert found.seen.item() == 30
    torch.testing.assert_close(found.mean, x.mean(0) - data.mean(0), atol=1e-12, rtol=0)


def test_units_do_not_matter_where_every_number_is_brought_to_the_datas_deviation():
    data, x, units = normal(0, 100), normal(1, 30), torch.tensor([1.0, 100.0, 0.01, 3.0, 1.0]).double()
    plain, other = (remembered(data * by, x * by, unit=True, shrinkage=0.1) for by in (torch.ones(5).double(), units))
    torch.testing.assert_close(other.apart, plain.apart, atol=1e-9, rtol=0)
    raw = [remembered(data * by, x * by).apart for by in (torch.ones(5).double(), units)]
    assert (raw[0] - raw[1]).abs() > 1


def test_directions_that_few_samples_do_not_show_are_not_stretched():
    data, x = normal(0, 400, 20), normal(1, 400, 20)
    x[:, 0] = 0  # the population does not move in this direction at all
    stretch = [remembered(data, x, shrinkage=s).matrix.diagonal().max() for s in (1e-9, 0.05)]
    assert stretch[0] > 100 > 20 > stretch[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_smaller_than_the_space_learns_a_distribution_from_a_large_population(seed):
    """24 numbers, 8 samples a step: what a batch alone would be fitted by has no inverse; the population's map has."""
    width, batch = 24, 8
    data, g = normal(seed, 4000, width), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    student = torch.nn.Linear(width, width).double()
    found = Population(data, memory=512, shrinkage=1e-3)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    eighths = torch.randn(4000, width, generator=g).double()
    before = metrics.frechet_distance(student(eighths), data)
    for step in range(2000):
        x = student(torch.randn(batch, width, generator=g).double())
        found.drawn(x)
        loss = found.error(x).mean()
        if loss.requires_grad and found.known:
            optimizer.zero_grad()
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = 0.02 * (1 - step / 2000)
            optimizer.step()
        found.learn()
        if step % 4 == 0:
            found.refresh()
    after = metrics.frechet_distance(student(eighths), data)
    assert after < 0.05 * before and before > 10


def _learn(places) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    assert accelerator.num_processes == 2
    data, x = normal(0, 100), normal(1, 64)
    found = Population(data, memory=32)
    for rows in x.split(16):
        own = rows.chunk(2)[accelerator.process_index]
        found.drawn(own)
        found.learn()
    found.refresh()
    torch.save(found.state_dict(), places / f"{accelerator.process_index}.pt")


def test_two_processes_remember_what_one_would(tmp_path):
    on_processes(2, _learn, tmp_path)
    found = Population(normal(0, 100), memory=32)
    for rows in normal(1, 64).split(16):
        found.drawn(rows)
        found.learn()
    found.refresh()
    assert found.known
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in found.state_dict().items():
            torch.testing.assert_close(state[name], value, atol=1e-9, rtol=0, msg=name)


# ---- the objective ----


def small(path: str | None) -> Features:
    torch.manual_seed(1)
    network = Evaluator(EvaluatorConfig(size=16, widths=(4, 6), dim=8, text_dim=8)).eval()
    return Features("evaluator", network.features, network)


def objective(monkeypatch, network: str = "dit", path=FLOW, kind: str = "flow", decoded=True, **changes) -> FrechetObjective:
    monkeypatch.setitem(FEATURES, "evaluator", small)
    teacher = tiny_teacher(network, path, kind)
    if decoded:
        teacher.autoencoder = randomise(build({**AUTOENCODER, "channels": 2}), 5).eval().requires_grad_(False)
    torch.manual_seed(0)
    student = randomise(build({"type": network, **SIZES}), 7).requires_grad_(True)
    own = {"start": "network", "steps": 2, "teacher": {"guidance_scale": 3.0, "steps": 8}, "reference": 48, "population": 8}
    return FrechetObjective(FrechetConfig(**{**own, **changes}), student, Source(), teacher)


def run(found: FrechetObjective, steps: int, seed: int = 0) -> None:
    for step in range(steps):
        batch = latents(8)
        batch.index += 8 * step
        found.loss(STUDENT, models_of(found), batch, Draws(seed, batch.index, "student"), step)
        found.after_step(step)


@pytest.mark.parametrize(("network", "path", "kind"), [("dit", FLOW, "flow"), ("uvit", VP, "v")])
def test_the_loss_is_consistency_and_how_far_features_are_from_where_the_map_takes_them(monkeypatch, network, path, kind):
    found = objective(
        monkeypatch, network, path, kind, representations=["evaluator", "teacher"], consistency_weight=0.3, frechet_weight=0.7
    )
    run(found, 8)
    batch, models = latents(8), models_of(found)
    draws = Draws(1, batch.index, "student")
    loss, logged = found.loss(STUDENT, models, batch, draws, 8)
    z_t, i, condition, scale = found.noised(batch, draws)
    prediction, consistency, _ = LatentConsistencyObjective.consistency(found, models, z_t, i, condition, scale)
    rows = i == 7  # of those that start from pure noise
    assert 0 < rows.sum() < 8
    total = torch.zeros(int(rows.sum()), dtype=torch.float64)
    features = found.represent(prediction.x0[rows], condition[rows], draws.normal("noise", (2, 4, 4))[rows])
    for name, population in found.of.items():
        assert population.known
        total += population.error(features[name])
        torch.testing.assert_close(logged[f"frechet_{name}"], population.apart / population.total)
    assert total.mean() > 1e-3 and consistency > 1e-3
    torch.testing.assert_close(loss.double(), 0.3 * consistency.double() + 0.7 * total.mean() / 2, atol=1e-6, rtol=1e-5)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in models["student"].parameters())
    for part in (found.autoencoder, found.teacher.network):
        assert all(p.grad is None for p in part.parameters())


def test_without_consistency_no_teacher_is_asked(monkeypatch):
    found = objective(monkeypatch, consistency_weight=0.0, population=4, refresh=1)
    monkeypatch.setattr(found, "teacher_predict", lambda *args: pytest.fail("the teacher was asked"))
    run(found, 4)
    batch, models = latents(8), models_of(found)
    loss, _ = found.loss(STUDENT, models, batch, Draws(1, batch.index, "student"), 4)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in models["student"].parameters()])
    assert gradient.abs().max() > 0


def test_a_batch_without_a_sample_from_pure_noise_has_consistency_alone(monkeypatch):
    found = objective(monkeypatch, noisiest_share=0.0, population=2, refresh=1, teacher={"guidance_scale": 3.0, "steps": 10**4})
    batch, models = latents(4), models_of(found)
    draws = Draws(1, batch.index, "student")
    loss, logged = found.loss(STUDENT, models, batch, draws, 0)
    z_t, i, condition, scale = found.noised(batch, draws)
    assert i.max() < 10**4 - 1 and not any(name.startswith("frechet") for name in logged)
    torch.testing.assert_close(loss, found.consistency(models, z_t, i, condition, scale)[1])
    found.after_step(0)
    assert found.of["evaluator"].seen == 0


def test_before_the_population_is_known_the_loss_is_consistency_alone(monkeypatch):
    found = objective(monkeypatch, population=1000)
    run(found, 2)
    batch, models = latents(8), models_of(found)
    draws = Draws(1, batch.index, "student")
    loss, _ = found.loss(STUDENT, models, batch, draws, 2)
    z_t, i, condition, scale = found.noised(batch, draws)
    torch.testing.assert_close(loss, found.consistency(models, z_t, i, condition, scale)[1])


def test_the_datas_features_are_those_of_decoded_latents(monkeypatch):
    found = objective(monkeypatch, reference=40)
    batch = Source().batch(range(40))
    with torch.no_grad(), autocast(torch.device("cpu")):
        features = small(None).function(found.decode(found.clean(batch)).clamp(-1.2, 1.2)).double()
    torch.testing.assert_close(found.of["evaluator"].center, features.mean(0), atol=1e-2, rtol=1e-2)


def test_the_teachers_tokens_are_of_latents_with_a_little_noise(monkeypatch):
    found = objective(monkeypatch, decoded=False, representations=["teacher"], judged=-3.0, block=1)
    batch = latents(2)
    x0, condition = found.clean(batch), found.condition(batch, torch.device("cpu"))
    noise = Draws(0, batch.index, "student").normal("noise", x0.shape[1:])
    seen: list[Tensor] = []
    monkeypatch.setattr(module, "block_features", lambda d, x, level, c, b: seen.extend([x, level.sigma / level.alpha]) or [x0])
    monkeypatch.setattr(module.PooledHeads, "pooled", staticmethod(lambda features: features[0][:, None]))
    found.represent.tokens(x0, condition, noise)
    ratio = torch.tensor(-3.0).exp()
    torch.testing.assert_close(seen[1].float(), ratio.expand(2))
    torch.testing.assert_close(seen[0], (x0 + ratio * noise) / (1 + ratio))


def test_a_choice_of_networks_is_checked_in_sentences(monkeypatch):
    with pytest.raises(
        ValueError,
        match=r"Unknown representation 'inceptoin': did you mean 'inception'\? Known: evaluator, inception, .*, teacher",
    ):
        objective(monkeypatch, representations=["inceptoin"])
    with pytest.raises(ValueError, match=r"draws 2 channels and has no autoencoder.*representations: \[teacher\]"):
        objective(monkeypatch, decoded=False)
    with pytest.raises(ValueError, match="give a data section"):
        FrechetObjective(FrechetConfig(), randomise(build({"type": "dit", **SIZES}), 7), None, tiny_teacher())
    both = objective(monkeypatch, representations=["evaluator:a", "teacher", "evaluator:b"])
    assert list(both.of) == ["evaluator_0", "teacher", "evaluator_2"]
    assert [len(p.spread.unique()) > 1 for p in both.of.values()] == [False, True, False]  # whose numbers come in many units


def test_perceptual_distance_needs_pictures_too():
    config = LatentConsistencyConfig(perceptual=0.5)
    with pytest.raises(ValueError, match=r"draws 2 channels and has no autoencoder.*leave perceptual out"):
        LatentConsistencyObjective(config, randomise(build({"type": "dit", **SIZES}), 7), None, tiny_teacher())


def test_networks_may_count_by_their_own_distances(monkeypatch):
    """The gradient is that of the logarithm of each distance: over its value, as far as the population knows it."""
    options = {"representations": ["evaluator", "teacher"], "consistency_weight": 0.0, "population": 4, "refresh": 1}
    losses = {}
    for balance in ("variance", "own"):
        found = objective(monkeypatch, balance=balance, noisiest_share=1.0, **options)
        run(found, 4)
        batch = latents(8)
        draws = Draws(1, batch.index, "student")
        z_t, i, condition, scale = found.noised(batch, draws)
        x0 = found.predict(models_of(found)["student"], z_t, found.teacher_levels[i + 1], condition, scale).x0
        features = found.represent(x0, condition, draws.normal("noise", (2, 4, 4)))
        errors = {name: population.error(features[name]).mean() for name, population in found.of.items()}
        shares = {name: (population.apart / population.total).item() for name, population in found.of.items()}
        losses[balance] = found.loss(STUDENT, models_of(found), batch, draws, 4)[0].item()
        weight = {name: 1.0 if balance == "variance" else 1 / (share + 0.01) for name, share in shares.items()}
        assert losses[balance] == pytest.approx(sum(weight[n] * errors[n].item() for n in errors) / 2, rel=1e-4)
    assert losses["own"] != pytest.approx(losses["variance"], rel=0.01)
