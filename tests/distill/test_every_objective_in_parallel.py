"""Every registered objective on two processes: shards of weights (FSDP2) or of the optimiser (ZeRO) are what replicas are, with
gradient checkpointing and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.registry import OBJECTIVES
from tests.distill.cases import CASES
from tests.distill.processes import launched, on_processes
from tests.distill.states import close, close_exports, everything
from tests.distill.test_every_objective import WITHOUT_BLOCKS, make_places, places_in, trainer

STEPS = 4
# (how, with checkpointing). The rest of the product is slow; ZeRO shares out the optimiser alone, and has `test_zero` besides
PLAIN = [("ddp", False), ("fsdp2", True)]
REST = [("ddp", True), ("fsdp2", False), ("zero", False), ("zero", True)]


def case_of(name: str) -> dict:
    """In float32 and by AdamW, whose eps keeps gradients that are 0 but for rounding from becoming whole steps."""
    case = CASES[name]
    size = 4 if name == "moment_matching" else case["batch_size"]  # two particles a process
    optimizer = {"type": "adamw", "lr": 1e-3, "eps": 1e-2}
    return {**case, "batch_size": size, "precision": "fp32", "optimizer": optimizer}


def place_of(root: Path, kind: str, again: bool) -> Path:
    return root / (f"{kind}-checkpointed" if again else kind)


def _train(root: Path, kind: str, again: bool, places: dict[str, str]) -> None:
    if kind == "zero":
        launched(2)
    for name in OBJECTIVES:
        case = case_of(name) | ({"parallel": kind} if kind != "zero" else {})
        case["gradient_checkpointing"] = again and name not in WITHOUT_BLOCKS
        run = trainer(case, places, place_of(root, kind, again) / name, STEPS)
        assert run.world == 2 and run.parallel.kind == kind
        run.train()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    torch.manual_seed(0)  # of the teachers
    places = make_places(folder)
    for kind, again in PLAIN:
        on_processes(2, _train, folder, kind, again, places)
    return folder


@pytest.fixture(scope="module")
def whole_product(root) -> Path:
    for kind, again in REST:
        on_processes(2, _train, root, kind, again, places_in(root))
    return root


def same(root: Path, name: str, kind: str, again: bool) -> None:
    """Weights, averages, optimiser state and what the method keeps, after four steps; and what the run wrote for use."""
    replicas, shards = root / "ddp" / name, place_of(root, kind, again) / name
    # its penalty has second derivatives, which round most; sums of features are of the order of 1
    atol = {"adversarial_diffusion": 5e-5, "frechet": 5e-5}.get(name, 5e-6)
    close(everything(replicas), everything(shards), atol=atol, rtol=1e-5)
    close_exports(replicas, shards, atol=atol, rtol=1e-5)


@pytest.mark.parametrize(("kind", "again"), PLAIN[1:])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_shards_are_what_replicas_are(root, name, kind, again):
    same(root, name, kind, again)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "again"), REST)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_so_is_the_whole_product(whole_product, name, kind, again):
    same(whole_product, name, kind, again)
