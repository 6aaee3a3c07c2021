"""Teaching on two processes: with shards of what trains, or of its optimiser, the file is that of replicas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from customization.registry import METHODS
from distill.run_folder import TrainingError
from gen.models.folder import write_model
from gen.nn.registry import build
from tests.customization.kit import pictures, trainer
from tests.customization.test_methods import CONFIG, DIT, OWN
from tests.distill.processes import launched, on_processes
from tests.distill.states import close_exports
from tests.distill.test_every_objective_in_parallel import PLAIN, REST, place_of
from tests.gen.conftest import randomise, tiny_autoencoder, tiny_text_encoder

OBJECTIVES = {
    "lora": {"text_adapter": {"rank": 2}},
    "words": {"adapter": None, "tokens": {"<new>": {"init": "cat"}}},
    "res_adapter": {"type": "res_adapter"},
    "full": {"type": "full", "adapter": None},
    "esd": {"type": "esd", "adapter": None, "steps": 4, "kept": ["a dog"]},
    "sara": {"type": "sara", "adapter": None, "threshold": 0.05, "nuclear": 1e-3, "reselect_at": 2},
    **{kind: {"type": kind, **({"adapter": None} if kind == "custom_diffusion" else {}), **own} for kind, own in OWN.items()},
}


def _train(root: Path, kind: str, again: bool) -> None:
    if kind == "zero":
        launched(2)
    for name, objective in OBJECTIVES.items():
        settings = {"optimizer": {"lr": 1e-3, "eps": 1e-2}, "max_steps": 3, "batch_size": 4}
        settings |= {"parallel": kind} if kind != "zero" else {}
        data = {"prompt": "a <new> cat"} if "tokens" in objective else {}
        torch.manual_seed(0)
        settings["gradient_checkpointing"] = again
        run = trainer(
            place_of(root, kind, again) / name, root / "images", root / "dit", objective=objective, data=data, **settings
        )
        assert run.world == 2 and run.parallel.kind == kind
        run.train()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel")
    torch.manual_seed(0)
    write_model(folder / "dit", CONFIG, randomise(build(DIT), 1), tiny_autoencoder(), tiny_text_encoder())
    pictures(folder / "images")
    for kind, again in PLAIN:
        on_processes(2, _train, folder, kind, again)
    return folder


@pytest.fixture(scope="module")
def whole_product(root) -> Path:
    for kind, again in REST:
        on_processes(2, _train, root, kind, again)
    return root


def test_every_method_is_here():
    assert {objective.get("type", "lora") for objective in OBJECTIVES.values()} == set(METHODS) - {"unlearning"}


def _unlearn(root: Path) -> None:
    prior = {"prompt": "a dog", "count": 3, "folder": str(root / "images")}
    objective = {"type": "unlearning", "adapter": None}
    with pytest.raises(TrainingError, match="adds up gradients in one process"):
        trainer(
            root / "forget", root / "images", root / "dit", objective=objective, data={"prior": prior}, batch_size=4
        ).train()


def test_unlearning_is_for_one_process(root):
    on_processes(2, _unlearn, root)


@pytest.mark.parametrize(("kind", "again"), PLAIN[1:])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_files_are_those_of_replicas(root, name, kind, again):
    close_exports(root / "ddp" / name, place_of(root, kind, again) / name, atol=2e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "again"), REST)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_so_are_those_of_the_whole_product(whole_product, name, kind, again):
    close_exports(whole_product / "ddp" / name, place_of(whole_product, kind, again) / name, atol=2e-6, rtol=1e-5)
