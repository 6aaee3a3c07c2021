"""Every registered objective on two processes: shards of weights (FSDP2) or of the optimiser (ZeRO) are what replicas are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.objectives import OBJECTIVES
from tests.distill.cases import CASES
from tests.distill.processes import on_processes
from tests.distill.states import close, close_exports, everything
from tests.distill.test_every_objective import make_places, trainer
from tests.distill.test_zero import launched

STEPS = 4


def case_of(name: str) -> dict:
    """In float32 and by AdamW, whose eps keeps gradients that are 0 but for rounding from becoming whole steps."""
    case = CASES[name]
    size = 4 if name == "moment_matching" else case["batch_size"]  # two particles a process
    optimizer = {"type": "adamw", "lr": 1e-3, "eps": 1e-2}
    return {**case, "batch_size": size, "precision": "fp32", "optimizer": optimizer}


def _train(root: Path, kind: str, places: dict[str, str]) -> None:
    if kind == "zero":
        launched(2)
    for name in OBJECTIVES:
        case = case_of(name) | ({"parallel": kind} if kind != "zero" else {})
        run = trainer(case, places, root / kind / name, STEPS)
        assert run.world == 2 and run.parallel.kind == kind
        run.train()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    torch.manual_seed(0)  # of the teachers
    places = make_places(folder)
    for kind in ("ddp", "fsdp2", "zero"):
        on_processes(2, _train, folder, kind, places)
    return folder


@pytest.mark.parametrize("kind", ["fsdp2", "zero"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_shards_are_what_replicas_are(root, name, kind):
    """Weights, averages, optimiser state and what the method keeps, after four steps; and what the run wrote for use."""
    replicas, shards = root / "ddp" / name, root / kind / name
    close(everything(replicas), everything(shards), atol=2e-6, rtol=1e-5)
    close_exports(replicas, shards, atol=2e-6, rtol=1e-5)
