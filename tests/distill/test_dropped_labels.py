"""A class-conditional network learns the row that stands for no label: guidance asks for it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from distill.objectives import make_objective
from distill.registry import OBJECTIVES
from distill.types import Batch, Draws, Phase, drop_labels
from gen.nn.registry import build
from tests.customization.kit import shake
from tests.distill.cases import CASES, SIZES
from tests.distill.students import Source, batch_of, latents, models_of
from tests.distill.test_every_objective import make_places, trainer

# the networks of these read pictures, latents or texts, are to tell labels themselves, add to one that reads them, or are not
# asked without a label
WITHOUT_LABELS = {
    *("autoencoder", "decoder", "transparent", "text", "evaluator", "classifier", "control", "reference", "joint"),
    *("pix2pix_turbo", "cycle_gan_turbo", "upsampler", "positional_query", "multimarginal", "step_policy"),
}
LABELLED = [name for name in OBJECTIVES if name not in WITHOUT_LABELS]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    return make_places(tmp_path_factory.mktemp("models"))


def objective_of(name: str, places: dict[str, str], **changes):
    case = json.dumps(CASES[name])
    for place, path in places.items():
        case = case.replace(f'"{place}"', json.dumps(path))
    case = json.loads(case)
    config = {**case["objective"], **changes}
    config.pop("lora", None)  # which leaves the table as it is
    torch.manual_seed(0)
    network = build(case["network"]) if case["network"] else torch.nn.Identity()
    for module in network.train().requires_grad_(True).modules():  # what starts at zero lets no gradient through
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d) and not module.weight.any():
            torch.nn.init.normal_(module.weight, std=0.1)
    objective = make_objective(config, network, Source())
    _, *others = (role.network for role in objective.roles.values() if role.trains)
    for other in others:  # a critic that is the teacher's copy has nothing against what a student makes without a label
        shake(other, 0.05)
    return objective


def null_gradient(objective, batch: Batch) -> float:
    """Of the last row of every table of labels, over 12 batches."""
    total = 0.0
    role = next(name for name, role in objective.roles.items() if role.trains)
    tables = [
        module
        for name, module in objective.roles[role].network.named_modules()
        if isinstance(module, torch.nn.Embedding) and "label" in name
    ]
    assert tables
    for number in range(12):
        index = batch.index + len(batch) * number
        draws = Draws(0, index, role)
        loss, _ = objective.loss(Phase(role, role), models_of(objective), replace(batch, index=index), draws, 2)
        for table in tables:
            table.weight.grad = None
        loss.backward()
        total += sum(float(table.weight.grad[-1].abs().sum()) for table in tables if table.weight.grad is not None)
    return total


@pytest.mark.parametrize("name", LABELLED)
def test_the_row_for_no_label_is_trained_by_default_and_only_where_asked(name, places):
    batch = latents(4)
    assert null_gradient(objective_of(name, places), batch) > 0
    assert null_gradient(objective_of(name, places, drop_label=0.0), batch) == 0


def test_the_share_of_dropped_labels_is_the_one_asked_for_whatever_the_batch():
    batch = batch_of(4000)
    dropped = drop_labels(batch, 0.1, Draws(3, batch.index)).labels
    assert abs(float((dropped < 0).float().mean()) - 0.1) < 0.015  # three standard deviations
    assert torch.equal(dropped[dropped >= 0], batch.labels[dropped >= 0])
    part = replace(batch, index=batch.index[100:110], labels=batch.labels[100:110])
    assert torch.equal(drop_labels(part, 0.1, Draws(3, part.index)).labels, dropped[100:110])
    together = drop_labels(batch, 0.5, Draws(3, batch.index), group=4).labels.unflatten(0, (-1, 4)) < 0
    assert (together == together[:, :1]).all() and together.any() and not together.all()


@pytest.mark.parametrize("name", ["diffusion", "mean_flow"])
def test_a_run_moves_the_row(name, places, tmp_path):
    case = {**CASES[name], "batch_size": 16}
    run = trainer(case, places, tmp_path, 4)
    role = next(name for name, role in run.objective.roles.items() if role.trains)
    table = next(m for n, m in run.objective.roles[role].network.named_modules() if n.endswith("label_embed"))
    before = table.weight.detach().clone()
    run.train()
    assert (table.weight.detach() - before).abs().sum(1).min() > 1e-6


@pytest.mark.parametrize("sizes", [{"num_classes": 0}, {"num_classes": 3, "null_label": False}])
def test_a_network_without_such_a_row_keeps_its_labels(sizes):
    network = build({"type": "uvit", **SIZES, **sizes})
    objective = make_objective({"type": "diffusion", "drop_label": 1.0}, network)
    batch = latents(4)
    loss, _ = objective.loss(Phase("denoiser", "denoiser"), {"denoiser": network}, batch, Draws(0, batch.index), 0)
    loss.backward()
    assert torch.isfinite(loss)
