"""What must hold for every registered objective: its run resumes bit for bit, and its result is written."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import distill.networks.classifier
import distill.networks.evaluator  # noqa: F401  (these make their network types known)
from distill.config import TrainConfig
from distill.objectives import make_objective
from distill.registry import OBJECTIVES
from distill.trainer import Trainer, TrainingError
from distill.types import Batch
from gen.models.components import save_component
from gen.models.folder import write_model
from gen.nn.backbones import recompute as blocks_again
from gen.nn.registry import build
from tests.distill.cases import AUTOENCODER, CASES
from tests.distill.states import close, everything
from tests.distill.students import Source, tiny_teacher
from tests.gen.conftest import tiny_text_encoder


class Pictures:
    concepts = ("cat", "dog", "heart")

    def batch(self, counters) -> Batch:
        rows = [torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in counters]
        index = torch.tensor(list(counters))
        words = [self.concepts[i % 3] for i in counters]
        return Batch(index=index, images=torch.stack(rows), captions=[f"a red {word}" for word in words], labels=index % 3)


class Layered(Pictures):
    """The same with layers: a square of each picture upon another one."""

    def batch(self, counters) -> Batch:
        plain = super().batch(counters)
        alpha = torch.zeros(len(plain), 1, 16, 16)
        alpha[..., 4:12, 5:11] = 0.75
        colour, background = (plain.images + 1) / 2, (plain.images.flip(0) + 1) / 2
        layer = torch.cat([colour * alpha, alpha], 1)
        images = (colour * alpha + (1 - alpha) * background) * 2 - 1
        return replace(plain, images=images, extra={"foreground": layer, "background": background})


def make_places(folder) -> dict[str, str]:
    """What cases call by these names, as files."""
    teacher = tiny_teacher()
    write_model(folder / "model", teacher.model, teacher.network)
    write_model(folder / "decoded", teacher.model, teacher.network, build({**AUTOENCODER, "channels": 2}))
    save_component(tiny_text_encoder(), folder / "text")
    return places_in(folder)


def places_in(folder) -> dict[str, str]:
    return {"MODEL": str(folder / "model"), "DECODED": str(folder / "decoded"), "TEXT": str(folder / "text")}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    return make_places(tmp_path_factory.mktemp("models"))


def trainer(case: dict, places: dict[str, str], output, max_steps: int) -> Trainer:
    text = json.dumps(case)
    for name, place in places.items():
        text = text.replace(f'"{name}"', json.dumps(place))
    config = TrainConfig(**{**json.loads(text), "output": output, "max_steps": max_steps})
    torch.manual_seed(0)
    network = build(config.network) if config.network else nn.Identity()  # the objective makes its own
    network.train().requires_grad_(True)
    source = {"labels": Source, "pictures": Pictures, "layered": Layered}[config.data["type"]]()
    held_out = None if config.validation is None else type(source)()
    return Trainer(config, make_objective(config.objective, network, source), source, held_out)


def test_there_is_a_case_for_every_objective():
    assert set(CASES) == set(OBJECTIVES)


# nothing to compute again
WITHOUT_BLOCKS = ("autoencoder", "decoder", "transparent", "text", "evaluator", "classifier", "collaborate", "step_policy")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_checkpointing_changes_no_update(name, places, tmp_path):
    """Weights, averages and optimiser state after three steps; and blocks were computed again."""
    case = {**CASES[name], "optimizer": {"type": "adamw", "lr": 1e-3, "eps": 1e-2}}
    if name in WITHOUT_BLOCKS:
        with pytest.raises(TrainingError, match="gradient_checkpointing is for networks of blocks"):
            trainer({**case, "gradient_checkpointing": True}, places, tmp_path / "again", 3)
        return
    trainer(case, places, tmp_path / "plain", 3).train()
    again = trainer({**case, "gradient_checkpointing": True}, places, tmp_path / "again", 3)
    count = 0

    def counted(*arguments, **options):
        nonlocal count
        count += 1
        return checkpoint(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks_again, "checkpoint", counted)
        again.train()
    assert count >= 9  # three blocks, three steps
    close(everything(tmp_path / "plain"), everything(tmp_path / "again"), atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_twice_n_steps_equal_n_a_resume_and_n_more_bit_for_bit(name, places, tmp_path):
    """The run in parts measures held-out samples besides, which changes nothing and has the same numbers when asked again."""
    state = torch.random.get_rng_state()
    trainer(CASES[name], places, tmp_path / "whole", 4).train()
    watched = trainer({**CASES[name], "validation": {"every": 1, "batches": 2}}, places, tmp_path / "parts", 2)
    watched.train()
    found = [watched.validation.measure(watched.networks, watched.averaged, 1) for _ in range(2)]
    assert found[0] == found[1] and all(math.isfinite(value) for value in found[0].values())
    rows = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    losses = [name for row in rows for name in row if name.startswith("validation/") and name.endswith("loss")]
    assert len(losses) == 2 * len(set(losses)) > 0
    first = everything(tmp_path / "parts")
    trainer(CASES[name], places, tmp_path / "parts", 4).train()
    whole, parts = everything(tmp_path / "whole"), everything(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert torch.isfinite(value).all() and torch.equal(value, parts[key]), key
    assert any(not torch.equal(value, first[key]) for key, value in whole.items() if key in first)
    assert list((tmp_path / "whole" / "export").iterdir())
    torch.random.set_rng_state(state)
