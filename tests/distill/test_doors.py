"""Methods, data and networks of the user's own: registered by a file of theirs, named by a config, asked for by a resume."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from torch import nn

from customization.registry import METHODS, register_method
from distill.checkpointing.folder import load_latest
from distill.objectives.diffusion import DiffusionConfig, DiffusionObjective
from distill.registry import OBJECTIVES, SOURCES, register_objective, register_source
from distill.train import main, make_trainer
from gen.io import user_code
from gen.nn.registry import COMPONENTS, Config
from tests.distill.toy import BASE, ToyObjective, ToySource, toy_trainer

FILE = '''
import torch
from torch import nn

from distill.objectives.bases.objective import Objective
from distill.registry import register_objective, register_source
from distill.types import Batch, Role
from gen.nn.registry import Config, register_network


class LineConfig(Config):
    width: int = 6


class Line(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.layer = config, nn.Linear(config.width, 1)

    def forward(self, x):
        return self.layer(x)


class SumConfig(Config):
    factor: float = 1.0


class Sum(Objective):
    """Learn factor times the sum of a vector."""

    def __init__(self, config, network, source=None):
        self.config, self.roles = config, {"line": Role(network)}

    def loss(self, phase, models, batch, draws, step):
        target = self.config.factor * batch.images.sum(1, keepdim=True)
        return (models["line"](batch.images) - target).square().mean(), {}


class VectorsConfig(Config):
    length: int = 6


class Vectors:
    def __init__(self, config, seed):
        self.length = config.length

    def __len__(self):
        return 100

    def batch(self, counters):
        rows = [torch.randn(self.length, generator=torch.Generator().manual_seed(int(i))) for i in counters]
        return Batch(index=torch.tensor([int(i) for i in counters]), images=torch.stack(rows))


register_network("line", Line, LineConfig)
register_objective("vector_sum", Sum, SumConfig)
register_source("vectors", Vectors, VectorsConfig)
'''


@pytest.fixture(autouse=True)
def own_process(monkeypatch):
    """Tables and imported files as they were, as in a process of one's own."""
    for table in (OBJECTIVES, SOURCES, METHODS, COMPONENTS):
        before = dict(table)
        for name in before:
            monkeypatch.setitem(table, name, before[name])
    kept = [(table, dict(table)) for table in (OBJECTIVES, SOURCES, METHODS, COMPONENTS)]
    monkeypatch.setattr(user_code, "_modules", {})
    monkeypatch.setattr(user_code, "_imported", {})
    yield
    for table, rows in kept:
        table.clear()
        table.update(rows)


def forget_imports(monkeypatch) -> None:
    """As a new process begins: what was registered before stays, but no file counts as imported."""
    monkeypatch.setattr(user_code, "_modules", {})
    monkeypatch.setattr(user_code, "_imported", {})


def write(tmp_path, **changes):
    values = {
        **{key: value for key, value in BASE.items() if key not in ("objective", "network", "data")},
        "output": str(tmp_path / "run"),
        "objective": {"type": "vector_sum", "factor": 2.0},
        "network": {"type": "line", "width": 6},
        "data": {"type": "vectors"},
        "max_steps": 3,
        "checkpoint_every": 3,
        "device": "cpu",
        **changes,
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(values, default=str))))
    return path


def test_a_file_of_ones_own_is_named_by_a_config(tmp_path, capsys):
    code = tmp_path / "my_methods.py"
    code.write_text(FILE)
    config = write(tmp_path)
    assert main([str(config)]) == 2
    assert "Unknown" in capsys.readouterr().err
    assert main([str(config), "--import", str(code)]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "export" / "config.json").is_file()
    saved = load_latest(tmp_path / "run")
    assert saved.state["imported"] == user_code.imported() and list(saved.state["imported"]) == ["my_methods.py"]
    assert saved.state["config"]["objective"] == {"type": "vector_sum", "factor": 2.0}


def test_options_of_ones_own_are_checked(tmp_path, capsys):
    code = tmp_path / "my_methods.py"
    code.write_text(FILE)
    assert main([str(write(tmp_path)), "objective.factr=3", "--import", str(code)]) == 2
    assert "factr" in capsys.readouterr().err


def test_a_resume_asks_for_the_same_file(tmp_path, capsys, monkeypatch):
    code = tmp_path / "my_methods.py"
    code.write_text(FILE)
    config = write(tmp_path)
    assert main([str(config), "--import", str(code)]) == 0
    forget_imports(monkeypatch)
    assert main([str(config), "max_steps=5"]) == 2
    assert "was trained with my_methods.py" in (said := capsys.readouterr().err) and "--import" in said
    code.write_text(FILE.replace("target = ", "target = 0 + "))
    for table, name in ((OBJECTIVES, "vector_sum"), (SOURCES, "vectors"), (COMPONENTS, "line")):
        del table[name]
    assert main([str(config), "max_steps=5", "--import", str(code)]) == 2
    assert "differs from the my_methods.py imported now" in capsys.readouterr().err


def test_a_run_without_files_of_ones_own_records_none(tmp_path):
    toy_trainer(tmp_path, max_steps=1).train()
    assert "imported" not in load_latest(tmp_path).state


def test_a_broken_file_is_a_sentence(tmp_path, capsys):
    code = tmp_path / "broken.py"
    code.write_text("raise RuntimeError('on purpose')")
    assert main([str(write(tmp_path)), "--import", str(code)]) == 2
    assert "failed: RuntimeError: on purpose" in capsys.readouterr().err
    assert main([str(write(tmp_path)), "--import", str(tmp_path / "none.py")]) == 2
    assert "is not a file" in capsys.readouterr().err


class MineConfig(Config):
    """No options."""


class Mine:
    """A stand-in."""


def test_names_that_are_taken_are_refused():
    with pytest.raises(ValueError, match="objective 'diffusion' exists already; choose another name"):
        register_objective("diffusion", Mine, MineConfig)
    with pytest.raises(ValueError, match="data source 'images' exists already"):
        register_source("images", Mine, MineConfig)
    with pytest.raises(ValueError, match="method 'lora' exists already"):
        register_method("lora", Mine, MineConfig)
    register_objective("diffusion", DiffusionObjective, DiffusionConfig)  # the same once more changes nothing
    register_source("mine", Mine, MineConfig)
    with pytest.raises(ValueError, match="top of one module"):
        register_source("mixed", Mine, DiffusionConfig)


def test_objects_take_the_place_of_names(tmp_path):
    """A network, a source and an objective of one's own, without a name for any of them."""
    from distill.config import TrainConfig

    settings = {**BASE, "output": tmp_path, "objective": {}, "network": {}, "data": {}, "max_steps": 2}
    source, network = ToySource(), nn.Linear(6, 1)
    made = make_trainer(TrainConfig(**settings), network, source, lambda network, source: ToyObjective(network))
    before = network.weight.detach().clone()
    made.train()
    assert made.source is source and made.networks["net"] is network
    assert not torch.equal(network.weight, before)
