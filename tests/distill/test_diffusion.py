"""The diffusion objective: its loss is the error of the reading it names, and it learns what it should."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from distill.config import TrainConfig
from distill.objectives import make_objective
from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective, averaged
from distill.trainer import Trainer
from distill.types import Batch, Draws, Phase
from gen.nn.registry import build
from samplers.denoiser import Condition
from samplers.prediction import Prediction, prediction_row

CPU = torch.device("cpu")
PHASE = Phase("denoiser", "denoiser")
VP = {"type": "variance_preserving", "betas": "scaled_linear"}
FLOW = {"type": "rectified_flow"}


class Fixed(nn.Module):
    """A network that ignores its input and returns what it was told to."""

    def __init__(self, raw: torch.Tensor):
        super().__init__()
        self.raw = nn.Parameter(raw)

    def forward(self, x, time, condition, context):
        self.time = time
        return self.raw


def batch_of(count: int, first: int = 0) -> Batch:
    rows = [torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(first, first + count)]
    return Batch(index=torch.arange(first, first + count), latents=torch.stack(rows).double())


@pytest.mark.parametrize(("predicted", "measured"), itertools.product(["eps", "x0", "v", "flow"], repeat=2))
@pytest.mark.parametrize("path", [VP, FLOW], ids=["vp", "flow"])
def test_the_loss_is_the_squared_error_of_the_measured_reading(path, predicted, measured):
    raw = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(5)).double()
    config = DiffusionConfig(path=path, prediction=predicted, loss=measured, min_sigma=1e-9)
    objective = DiffusionObjective(config, Fixed(raw))
    objective.clean = lambda batch: batch.latents  # in float64
    batch = batch_of(6)
    draws = Draws(3, batch.index, "denoiser")
    loss, _ = objective.loss(PHASE, {"denoiser": objective.roles["denoiser"].network}, batch, draws, 0)

    level = objective.levels(draws, batch.latents.device)
    eps = draws.normal("eps", (2, 4, 4))
    x = level.mix(batch.latents, eps)
    truth = {
        kind: a * batch.latents + b * eps
        for kind in ("eps", "x0", "v", "flow")
        for a, b in [[v.reshape(-1, 1, 1, 1) if torch.is_tensor(v) else v for v in prediction_row(kind, level, objective.path)]]
    }
    said = Prediction(x, level, raw, prediction_row(predicted, level, objective.path))
    reading = said.flow(objective.path) if measured == "flow" else getattr(said, measured)
    expected = (reading - truth[measured]).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=2e-4)  # levels are drawn in float32


def test_min_sigma_bounds_the_weight():
    config = DiffusionConfig(path=FLOW, prediction="x0", loss="flow", min_sigma=0.1)
    objective = DiffusionObjective(config, nn.Identity())
    level = objective.path(torch.tensor([0.001, 0.1, 0.5]))
    # alpha / max(sigma, 0.1) + 1, which is 1 / sigma where sigma is above the bound
    torch.testing.assert_close(objective.weight(level).abs(), torch.tensor([0.999 / 0.1 + 1, 10.0, 2.0]))


def test_the_network_reads_its_own_clock():
    objective = DiffusionObjective(DiffusionConfig(time={"type": "uniform"}), Fixed(torch.zeros(4, 2, 4, 4)))
    batch = batch_of(4)
    draws = Draws(0, batch.index, "denoiser")
    network = objective.roles["denoiser"].network
    objective.loss(PHASE, {"denoiser": network}, batch, draws, 0)
    torch.testing.assert_close(network.time, 1000 * draws.uniform("time"))


def test_a_sample_draws_the_same_numbers_in_any_batch():
    whole, part = Draws(1, torch.arange(8)), Draws(1, torch.arange(5, 7))
    assert torch.equal(whole.normal("eps", (3,))[5:7], part.normal("eps", (3,)))
    assert not torch.equal(whole.normal("eps", (3,)), whole.normal("other", (3,)))
    assert not torch.equal(whole.normal("eps", (3,)), Draws(2, torch.arange(8)).normal("eps", (3,)))


def test_times_follow_the_logit_normal():
    objective = DiffusionObjective(DiffusionConfig(time={"mean": 0.5, "std": 0.7}), nn.Identity())
    t = objective.levels(Draws(0, torch.arange(4000)), torch.device("cpu")).t
    logit = t.log() - (1 - t).log()
    assert logit.mean().item() == pytest.approx(0.5, abs=4 * 0.7 / 4000**0.5)
    assert logit.std().item() == pytest.approx(0.7, abs=0.04)


class LatentSource:
    def batch(self, counters) -> Batch:
        batch = batch_of(len(counters), counters[0])
        batch.latents = batch.latents.float()
        batch.labels = batch.index % 3
        return batch


TEXT = {"text_tokens": 4, "text_dim": 6}


@pytest.mark.parametrize("network", ["uvit", "dit", "mmdit", "flux", "qwen_image", "z_image"])
def test_a_backbone_resumes_bit_for_bit(tmp_path, network):
    sizes = {"size": 4, "patch": 2, "channels": 2, "dim": 16, "depth": 3, "heads": 2, "num_classes": 3}
    sizes |= TEXT if network not in ("uvit", "dit") else {}
    sizes |= {"axes": [2, 2, 4]} if network in ("flux", "qwen_image", "z_image") else {}
    sizes |= {"single_depth": 2} if network == "flux" else {}

    def trainer(output, max_steps):
        torch.manual_seed(0)
        config = TrainConfig(
            output=output, max_steps=max_steps, batch_size=4, checkpoint_every=100, log_every=2, device="cpu", precision="bf16",
            objective={}, network={"type": network, **sizes}, data={}, schedule={"warmup": 0, "cooldown": 0},
            optimizer={"type": "muon"},
        )  # fmt: skip
        objective = DiffusionObjective(DiffusionConfig(prediction="x0", loss="flow"), build(config.network))
        return Trainer(config, objective, LatentSource())

    whole, first = trainer(tmp_path / "whole", 6), trainer(tmp_path / "parts", 3)
    whole.train()
    first.train()
    second = trainer(tmp_path / "parts", 6)
    second.train()
    assert second.step == 6
    for name, value in whole.networks["denoiser"].state_dict().items():
        assert torch.equal(value, second.networks["denoiser"].state_dict()[name]), name
        assert torch.equal(whole.averaged["denoiser"].state_dict()[name], second.averaged["denoiser"].state_dict()[name]), name


# ---- several resolutions ----

STAGES = [
    {"kind": "transformer", "dim": 16, "hidden": 24, "depth": 2, "heads": 2, "patch": 2, "pool": 2},
    {"kind": "convnext", "dim": 12, "hidden": 24, "depth": 2, "patch": 1, "pool": 2},
    {"kind": "convnext", "dim": 8, "hidden": 16, "depth": 2, "patch": 1},
]


@pytest.mark.parametrize("prediction", ["eps", "flow", "x0"])
def test_every_resolution_is_trained_on_its_own_targets(prediction):
    """A quarter of the next finer one's weight each, with the noise averaged to variance 1 again."""
    network = build({"type": "dimr", "size": 8, "channels": 3, "num_classes": 3, "stages": STAGES})
    objective = make_objective({"type": "diffusion", "prediction": prediction, "drop_label": 0.0}, network)
    batch = Batch(index=torch.arange(4), latents=torch.randn(4, 3, 8, 8), labels=torch.tensor([0, 1, 2, 0]))
    draws = Draws(0, batch.index)
    loss, _ = objective.loss(Phase("denoiser", "denoiser"), {"denoiser": network}, batch, draws, 0)
    loss.backward()
    assert all(p.grad is not None for p in network.parameters())

    level, eps = objective.levels(draws, CPU), draws.normal("eps", (3, 8, 8))
    x = level.mix(batch.latents, eps)
    outputs = network.predictions(x, 1000 * level.t, Condition(label=batch.labels))
    expected = torch.zeros(())
    for output, weight, side in zip(outputs, (1 / 16, 1 / 4, 1.0), (4, 2, 1), strict=True):
        data, noise = (v.unfold(2, side, side).unfold(3, side, side).sum((-1, -2)) for v in (batch.latents, eps))
        data, noise = data / side**2, noise / side
        target = {"eps": noise, "x0": data, "flow": noise - data}[prediction]
        expected = expected + weight * (output - target).square().mean()
    torch.testing.assert_close(loss.double(), expected.double(), rtol=1e-5, atol=1e-6)


def test_averaged_noise_has_a_deviation_of_one():
    eps = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for side in (2, 4, 8):
        assert averaged(eps, eps, (32 // side, 32 // side))[1].std().item() == pytest.approx(1, abs=0.02)
