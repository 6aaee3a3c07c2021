"""R3GAN's relativistic loss and gradient penalties: exact, convergent, and an option of every discriminator."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from distill.losses.adversarial import AdversarialLossConfig, relativistic, squared_gradients, weighted_penalties
from distill.networks.discriminator import Noised, block_features, fooling_loss, tell_apart
from distill.objectives.adversarial_consistency import AdversarialConsistencyConfig, AdversarialConsistencyObjective
from distill.objectives.dmd2 import Compared
from distill.objectives.f_distill import DivergenceConfig
from distill.registry import OBJECTIVES
from distill.trainer import TrainingError
from distill.types import Draws, Phase
from gen.nn.backbones import recompute as blocks_again
from samplers.denoiser import Condition
from tests.distill.cases import CASES
from tests.distill.processes import on_processes
from tests.distill.states import close, everything
from tests.distill.students import FLOW, VP, latents, models_of, tiny_teacher
from tests.distill.test_adversarial_consistency import student
from tests.distill.test_every_objective import WITHOUT_BLOCKS, make_places, trainer

BOTH = {"adversarial_loss": "relativistic", "gradient_penalties": [0.5, 0.25]}


def has_discriminator(name: str) -> bool:
    module, config, _ = OBJECTIVES[name]
    return issubclass(getattr(importlib.import_module(module), config), AdversarialLossConfig)


WITHOUT = ("regularized_consistency",)  # distribution matching in which, as published, no discriminator can be had
ADVERSARIAL = sorted(name for name in OBJECTIVES if has_discriminator(name) and name not in WITHOUT)
CRITICS = ("distribution_matching", "sid", "decoupled_dmd", "f_distill", "dmdr", "swiftbrush")


def case_of(name: str, **options) -> dict:
    """The case of every objective with its discriminator at work."""
    case = CASES[name]
    weights = {"adversarial_weight": 0.1, "discriminator_weight": 0.1} if name in CRITICS else {}
    start = {"adversarial_start": 0} if name == "consistency_trajectory" else {}
    return {**case, "objective": {**case["objective"], **weights, **start, **options}}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    return make_places(tmp_path_factory.mktemp("models"))


# ---- the loss and the penalties themselves ----


def test_the_discriminators_and_the_students_losses_are_the_papers():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 5, 3, generator=generator).double().unbind(0)
    torch.testing.assert_close(relativistic(real, fake), (1 + (fake - real).exp()).log())
    torch.testing.assert_close(relativistic(fake, real), -(1 / (1 + (real - fake).exp())).log())
    assert relativistic(torch.tensor(20.0), torch.tensor(-20.0)) < 1e-12  # real is ahead: nothing to learn
    torch.testing.assert_close(relativistic(real, fake), relativistic(real + 3, fake + 3))  # pairs have no height


def test_penalties_of_a_quadratic_are_its_closed_form_and_wrong_forms_are_not():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(4, 4, generator=generator).double()
    a = (a + a.T).requires_grad_()
    x = torch.randn(6, 4, generator=generator).double().requires_grad_()
    scores = 0.5 * torch.einsum("bi,ij,bj->b", x, a, x)
    squared = squared_gradients(scores, [x])
    torch.testing.assert_close(squared.double(), (x @ a).square().sum(1), rtol=1e-5, atol=1e-6)
    config = AdversarialLossConfig(gradient_penalties=(0.3, 0.7))
    total, logged = weighted_penalties(config, *squared.chunk(2))
    exact = (x @ (a + a.T) / 2).square().sum(1)
    torch.testing.assert_close(total.double(), 0.15 * exact[:3].mean() + 0.35 * exact[3:].mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logged["r2"].double(), exact[3:].mean(), rtol=1e-5, atol=1e-6)
    (found,) = torch.autograd.grad(squared.mean(), a, retain_graph=True)
    (wanted,) = torch.autograd.grad(exact.mean(), a)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    # published slips: the gradient of the batch's mean (B^2 too small), the norm in the place of its square, a mean over pixels
    (of_mean,) = torch.autograd.grad(scores.mean(), x, retain_graph=True)
    torch.testing.assert_close(36 * of_mean.square().sum(1), exact)
    for wrong in (of_mean.square().sum(1), exact.sqrt(), exact / 4):
        assert (wrong - exact).abs().mean() > 0.1 * exact.mean()


@pytest.mark.parametrize(("gamma", "arrives"), [(0.0, False), (0.1, True), (1.0, True)])
def test_on_the_dirac_gan_only_the_penalised_loss_converges(gamma, arrives):
    """Data at 0, a student at theta, D(x) = psi x (arXiv 1801.04406, section 2): without penalties both circle for ever."""
    theta, psi = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)
    config = AdversarialLossConfig(gradient_penalties=(gamma, gamma))
    farthest = 0.0
    for number in range(2500 if arrives else 500):
        theta.requires_grad_(), psi.requires_grad_()
        at = torch.stack([torch.zeros(()).double(), theta.detach()])[:, None].requires_grad_()
        on_real, on_fake = (psi * at)[:, 0].unbind(0)
        penalty = weighted_penalties(config, *squared_gradients((psi * at)[:, 0], [at]).chunk(2))[0]
        (down,) = torch.autograd.grad(relativistic(on_real, on_fake) + penalty, psi)
        (drawn,) = torch.autograd.grad(relativistic(psi.detach() * theta, torch.zeros(()).double()), theta)
        with torch.no_grad():
            theta, psi = theta - 0.05 * drawn, psi - 0.05 * down
        farthest = max(farthest, math.hypot(theta, psi)) if number > 100 else farthest
    if arrives:
        assert math.hypot(theta, psi) < 0.02
    else:
        assert math.hypot(theta, psi) > 0.3 and farthest > 0.3


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"gradient_penalties \(-1.0, 0.0\) must be two numbers of at least 0"):
        AdversarialLossConfig(gradient_penalties=(-1, 0))
    for options in ({"adversarial_loss": "relativistic"}, {"gradient_penalties": (0.1, 0.0)}):
        with pytest.raises(ValueError, match="adversarial_weight is 0: give it a weight, or leave them out"):
            AdversarialConsistencyConfig(adversarial_weight=0.0, **options)
    with pytest.raises(ValueError, match=r"unknown up to a factor at every level.*give bins above 0"):
        DivergenceConfig(bins=0, adversarial_loss="relativistic")
    DivergenceConfig(bins=0, divergence="reverse_kl", adversarial_loss="relativistic")


# ---- on the features of a network ----


@pytest.mark.parametrize(("network", "path", "kind"), [("dit", FLOW, "flow"), ("uvit", VP, "v")])
def test_penalties_are_at_the_noised_latents_as_finite_differences_of_the_judge_say(network, path, kind):
    teacher, one = tiny_teacher(network, path, kind), student(network)
    config = AdversarialConsistencyConfig(start="network", teacher={"steps": 8}, gradient_penalties=(1.0, 0.0))
    objective = AdversarialConsistencyObjective(config, one, None, teacher)
    assert objective.roles["discriminator"].second_order
    assert teacher.network.attention_backend == "math"  # fused kernels, which long sequences have, are differentiated once
    batch, models = latents(), models_of(objective)
    with torch.no_grad():
        for value in models["discriminator"].parameters():
            value.mul_(3)
    draws = Draws(0, batch.index, "discriminator")
    loss, logged = objective.loss(Phase("discriminator", "discriminator"), models, batch, draws, 0)
    shown = objective.shown("real", batch.latents, draws)
    condition = objective.condition(batch, batch.latents.device, draws)

    def score(x: Tensor) -> Tensor:
        denoiser = objective.teacher.denoiser(models["teacher"], objective.dtype)
        return models["discriminator"](block_features(denoiser, x, shown.level, condition, objective.blocks)).mean(1)

    def differences(x: Tensor, step: float = 2e-2) -> Tensor:
        """(B,): the squared gradient, pixel by pixel."""
        squared = torch.zeros(len(x))
        for pixel in range(x[0].numel()):
            bump = torch.zeros(x[0].numel()).index_fill_(0, torch.tensor(pixel), step).view(1, *x.shape[1:])
            squared += ((score(x + bump) - score(x - bump)) / (2 * step)).square()
        return squared

    with torch.no_grad():
        exact, at_clean = differences(shown.x), differences(batch.latents)
    torch.testing.assert_close(logged["r1"], exact.mean(), rtol=2e-2, atol=1e-7)
    assert ((at_clean - exact).abs() > 0.1 * exact).any()  # a published slip: clean data under the noised data's level
    plain = AdversarialConsistencyConfig(start="network", teacher={"steps": 8})
    hinge = AdversarialConsistencyObjective(plain, one, None, teacher).loss(
        Phase("discriminator", "discriminator"), models, batch, draws, 0
    )[0]
    torch.testing.assert_close(loss, hinge + 0.5 * logged["r1"], rtol=1e-4, atol=1e-6)


class Linear(nn.Module):
    def forward(self, features) -> Tensor:
        return torch.cat([tokens.sum(2) for tokens in features], 1)


def test_pairs_are_of_one_row_and_real_stands_first():
    x = torch.arange(12.0).view(2, 3, 2) / 10
    level = tiny_teacher().path(torch.full((2,), 0.5))
    config = AdversarialLossConfig(adversarial_loss="relativistic")
    real, fake = Noised(x, level), Noised(x.flip(0) + 1, level)
    loss, logged = tell_apart(config, Linear(), lambda part: [part.x], real, fake)
    on_real, on_fake = x.sum(2), (x.flip(0) + 1).sum(2)
    torch.testing.assert_close(loss, nn.functional.softplus(on_fake - on_real).mean())
    torch.testing.assert_close(logged["real"], on_real.mean())
    back = fooling_loss(config, Linear(), lambda part: [part.x], lambda: real, fake, lambda logits: logits)
    torch.testing.assert_close(back, nn.functional.softplus(on_real - on_fake).mean())


# ---- every objective that has a discriminator ----


def test_the_objectives_with_a_discriminator_are_these(places, tmp_path):
    """Those that have its settings, and no other has a role of that name."""
    assert set(CRITICS) < set(ADVERSARIAL) and len(ADVERSARIAL) >= 13
    for name in WITHOUT:
        with pytest.raises(ValueError, match="are of a discriminator, and adversarial_weight is 0"):
            trainer({**CASES[name], "objective": {**CASES[name]["objective"], **BOTH}}, places, tmp_path / name, 1)
    for name in sorted(set(OBJECTIVES) - set(ADVERSARIAL)):
        assert "discriminator" not in trainer(CASES[name], places, tmp_path / name, 1).objective.roles, name


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_gradient_of_every_discriminators_loss_is_its_finite_difference(name, places, tmp_path, monkeypatch):
    """With the relativistic loss and penalties that count: that is the gradient of a gradient, through our networks. Smooth
    functions stand for rectifiers, at whose kinks a penalty jumps."""
    monkeypatch.setattr(nn.functional, "leaky_relu", lambda x, *slope: nn.functional.silu(x))
    options = {**BOTH, "gradient_penalties": [20.0, 10.0]}
    run = trainer(case_of(name, **options), places, tmp_path, 1)
    objective = run.objective
    (phase,) = [phase for phase in objective.phases(2) if phase.role in ("discriminator", "critic")]
    assert objective.roles[phase.role].second_order
    models = {role: part.network.eval() for role, part in objective.roles.items()}
    batch = run.source.batch(range(4))
    weights = [p for p in models[phase.role].parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in weights:
            value += 0.05 * torch.randn(value.shape, generator=generator)

    def value() -> tuple[Tensor, dict[str, Tensor]]:
        return objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), 2)

    loss, logged = value()
    assert logged["r1"] > 0 and logged["r2"] > 0 and torch.isfinite(loss)
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    direction = [torch.zeros_like(p) if g is None else g for p, g in zip(weights, gradients, strict=True)]
    norm = torch.stack([g.double().square().sum() for g in direction]).sum().sqrt()
    ends = []
    for sign in (1, -2):
        with torch.no_grad():
            for p, g in zip(weights, direction, strict=True):
                p += sign * 2e-3 / norm.float() * g
        ends.append(value()[0].double().detach())
    assert ((ends[0] - ends[1]) / 4e-3).item() == pytest.approx(norm.item(), rel=3e-2)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_student_is_moved_by_pairs_and_gets_no_gradient_from_data(name, places, tmp_path):
    losses = {}
    for options in ({}, {"adversarial_loss": "relativistic"}):
        run = trainer(case_of(name, **options), places, tmp_path / str(len(options)), 1)
        models = {role: part.network.eval() for role, part in run.objective.roles.items()}
        batch = run.source.batch(range(4))
        phase = run.objective.phases(2)[0]
        loss, logged = run.objective.loss(phase, models, batch, Draws(0, batch.index, phase.name), 2)
        loss.backward()
        judge = "critic" if name in CRITICS else "discriminator"
        assert all(p.grad is None for p in models[judge].parameters())
        assert any(p.grad is not None and p.grad.abs().max() > 0 for p in models[phase.role].parameters())
        # translators log a loss for each direction
        losses[len(options)] = next(value for key, value in logged.items() if key.endswith("adversarial"))
    assert losses[1] > 0 and not torch.equal(losses[0], losses[1])


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_every_run_with_both_is_the_same_with_gradient_checkpointing_and_after_a_resume(name, places, tmp_path):
    case = {**case_of(name, **BOTH), "optimizer": {"type": "adamw", "lr": 1e-3, "eps": 1e-2}}
    trainer(case, places, tmp_path / "whole", 3).train()
    trainer(case, places, tmp_path / "parts", 2).train()
    trainer(case, places, tmp_path / "parts", 3).train()
    whole, parts = everything(tmp_path / "whole"), everything(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.isfinite(value).all() and torch.equal(value, parts[key]) for key, value in whole.items())
    if name in WITHOUT_BLOCKS:
        with pytest.raises(TrainingError, match="gradient_checkpointing is for networks of blocks"):
            trainer({**case, "gradient_checkpointing": True}, places, tmp_path / "again", 3)
        return
    again, count = trainer({**case, "gradient_checkpointing": True}, places, tmp_path / "again", 3), 0

    def counted(*arguments, **options):
        nonlocal count
        count += 1
        return checkpoint(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_again, "checkpoint", counted)
        again.train()
    assert count >= 9  # three blocks, three steps
    close(whole, everything(tmp_path / "again"), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_r1_is_at_data_and_r2_at_what_the_student_draws(name, places, tmp_path):
    """Another student draws other samples: R2 changes, R1 does not. (A phase's real ends are drawn by the student too, and what
    is real to `yoso`.)"""
    run = trainer(case_of(name, **BOTH), places, tmp_path, 1)
    objective, batch = run.objective, run.source.batch(range(4))
    (phase,) = [phase for phase in objective.phases(2) if phase.role in ("discriminator", "critic")]
    models = {role: part.network.eval() for role, part in objective.roles.items()}
    draws = Draws(0, batch.index, phase.name)
    before = objective.loss(phase, models, batch, draws, 2)[1]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in models[objective.phases(2)[0].role].parameters():
            if value.requires_grad:
                value += 0.3 * torch.randn(value.shape, generator=generator)
    after = objective.loss(phase, models, batch, draws, 2)[1]
    assert not torch.isclose(after["r2"], before["r2"], rtol=1e-3)
    if name not in ("phased_consistency", "yoso"):
        torch.testing.assert_close(after["r1"], before["r1"], rtol=1e-4, atol=0)


def test_a_discriminator_with_penalties_is_not_compiled(places, tmp_path, monkeypatch):
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))
    for name in ("adversarial_consistency", "distribution_matching"):
        compiled.clear()
        run = trainer({**case_of(name, **BOTH), "compile": True}, places, tmp_path / name, 1)
        assert compiled == [run.networks["student"]]


PARALLEL = ("adversarial_consistency", "distribution_matching", "dmdr")


def _train(root: Path, kind: str, places: dict[str, str]) -> None:
    for name in PARALLEL:
        case = {
            **case_of(name, **BOTH),
            "optimizer": {"type": "adamw", "lr": 1e-3, "eps": 1e-2},
            "gradient_checkpointing": True,
        }
        run = trainer({**case, "parallel": kind}, places, root / kind / name, 3)
        assert run.world == 2 and run.parallel.kind == kind
        run.train()


def test_shards_are_what_replicas_are(tmp_path):
    """On two processes: what is differentiated twice stays whole, and calls are as many on both."""
    torch.manual_seed(0)
    places = make_places(tmp_path)
    for kind in ("ddp", "fsdp2"):
        on_processes(2, _train, tmp_path, kind, places)
    for name in PARALLEL:
        close(everything(tmp_path / "ddp" / name), everything(tmp_path / "fsdp2" / name), atol=5e-5, rtol=1e-5)


def test_the_height_of_paired_logits_changes_no_weight_of_f_distill(places, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x0, fake, real = torch.randn(3, 6, 2, 4, 4, generator=generator).unbind(0)
    logits = torch.randn(6, 5, generator=generator)
    found = {}
    for loss in ("own", "relativistic"):
        objective = trainer(case_of("f_distill", adversarial_loss=loss), places, tmp_path / loss, 1).objective
        level = objective.path(torch.tensor([0.1, 0.15, 0.3, 0.45, 0.8, 0.9], dtype=torch.float64))
        for height in (0.0, 5.0):
            seen = Compared(x0, x0, level, Condition(), 1.0, fake, SimpleNamespace(x0=real), logits + height)
            found[loss, height] = objective.matched({}, seen, Draws(0, torch.arange(6), "student"))
    torch.testing.assert_close(found["relativistic", 5.0], found["relativistic", 0.0], rtol=1e-4, atol=1e-6)
    assert (found["own", 5.0] - found["own", 0.0]).abs().max() > 1e-3
