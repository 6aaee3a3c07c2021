"""Every registered objective on two processes: shards of weights (FSDP2) or of the optimiser (ZeRO) are what replicas are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.objectives import OBJECTIVES
from tests.distill.cases import CASES
from tests.distill.processes import on_processes
from tests.distill.test_every_objective import everything, make_places, trainer
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
    same(everything(root / "ddp" / name), everything(root / kind / name))
    replicas, shards = (root / k / name / "export" for k in ("ddp", kind))
    files = sorted(path.relative_to(replicas) for path in replicas.rglob("*.safetensors"))
    assert files
    for file in files:
        same(load_file(replicas / file), load_file(shards / file))


def same(replicas: dict[str, torch.Tensor], shards: dict[str, torch.Tensor]) -> None:
    assert replicas.keys() == shards.keys()
    for name, value in replicas.items():
        torch.testing.assert_close(shards[name], value, atol=2e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
