"""Every backbone on two processes, trained and distilled: replicas and shards come out as one process does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.objectives import make_objective
from distill.trainer import Trainer
from gen.models.folder import write_model
from gen.nn.registry import COMPONENTS, build
from tests.distill.cases import COMMON, SIZES
from tests.distill.processes import on_processes
from tests.distill.states import close, everything
from tests.distill.students import Source, model
from tests.distill.test_every_objective import TrainConfig
from tests.gen.conftest import randomise

STEPS = 2
DIMR = {"size": 4, "channels": 2, "num_classes": 3, "stages": [
    {"kind": "transformer", "dim": 16, "hidden": 24, "depth": 2, "heads": 2, "patch": 2},
    {"kind": "convnext", "dim": 8, "hidden": 16, "depth": 2, "patch": 1},
]}  # fmt: skip
NETWORKS = {"uvit": {"type": "uvit", **SIZES}, "dit": {"type": "dit", **SIZES}, "dimr": {"type": "dimr", **DIMR}}
READS = {**SIZES, "text_tokens": 4, "text_dim": 6, "depth": 2}
NETWORKS |= {
    "mmdit": {"type": "mmdit", **READS, "dual_blocks": 1, "pooled_text": True},
    "flux": {"type": "flux", **READS, "single_depth": 1, "axes": [2, 2, 4]},
    "qwen_image": {"type": "qwen_image", **READS, "axes": [2, 2, 4]},
    "z_image": {"type": "z_image", **READS, "axes": [2, 2, 4], "refiner_depth": 1},
}
# those of a case of their own (cases.py): they do not draw pictures
OTHERS = {
    "autoencoder",
    "text_encoder",
    "influence",
    "dit_control",
    "reference_encoder",
    "transparency",
    "upsampler",
    "adm",
    "adm_classifier",
    "step_policy",
    "multimarginal",
    "joint_adapter",
    "positional_query",
}
TAUGHT = {"latent_consistency": {"teacher": {"steps": 6}, "steps": 2}, "distribution_matching": {"steps": 2}}
RUNS = [(kind, "diffusion") for kind in NETWORKS] + [("dimr", name) for name in TAUGHT]


def trainer(root: Path, network: str, objective: str, parallel: str) -> Trainer:
    config = {"type": objective, **TAUGHT.get(objective, {})}
    if objective != "diffusion":
        config["teacher"] = {"model": str(root / network), "guidance_scale": 2.0, **config.get("teacher", {})}
    settings = TrainConfig(**{
        **COMMON, "objective": config, "network": NETWORKS[network], "data": {"type": "labels"}, "batch_size": 4,
        "max_steps": STEPS, "optimizer": {"type": "adamw", "lr": 1e-3, "eps": 1e-2}, "parallel": parallel,
        "output": root / parallel / network / objective,
    })  # fmt: skip
    torch.manual_seed(0)
    network = build(settings.network).train().requires_grad_(True)
    return Trainer(settings, make_objective(settings.objective, network, Source()), Source())


def _train(root: Path, parallel: str) -> None:
    for network, objective in RUNS:
        run = trainer(root, network, objective, parallel)
        assert run.parallel.kind == ("none" if parallel == "auto" else parallel)
        run.train()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    write_model(folder / "dimr", model(), randomise(build(NETWORKS["dimr"]), 1))
    _train(folder, "auto")
    for kind in ("ddp", "fsdp2"):
        on_processes(2, _train, folder, kind)
    return folder


def test_every_network_that_draws_is_among_them():
    assert set(NETWORKS) | OTHERS == set(COMPONENTS) - {"evaluator", "noisy_classifier"}


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize(("network", "objective"), RUNS)
def test_two_processes_come_out_as_one(root, network, objective, kind):
    alone, together = (root / parallel / network / objective for parallel in ("auto", kind))
    close(everything(alone), everything(together), atol=3e-6, rtol=1e-5)
