"""What a run holds, counted against what is there; gradient checkpointing; the command."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import nn

from distill import memory
from distill.parallel import recompute
from distill.run_folder import TrainingError
from distill.train import main
from gen.nn.registry import build
from samplers.denoiser import Condition, Context
from tests.distill.toy import duel_trainer, toy_trainer

UVIT = {"type": "uvit", "size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 4, "heads": 2, "num_classes": 3}
DIT = {"type": "dit", "size": 8, "patch": 2, "channels": 4, "dim": 32, "depth": 3, "heads": 2, "text_dim": 6, "text_tokens": 5}
STAGES = [
    {"kind": "transformer", "patch": 2, "pool": 2, "dim": 16, "depth": 2, "heads": 2, "hidden": 24},
    {"kind": "convnext", "patch": 2, "pool": 1, "dim": 12, "depth": 2, "hidden": 24, "kernel": 3},
]
DIMR = {"type": "dimr", "size": 8, "channels": 4, "num_classes": 3, "stages": STAGES}


def gradients(network: nn.Module, hooks=()) -> tuple[dict[str, torch.Tensor], int]:
    """(gradients, bytes kept for the backward pass) of one loss."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 8, 8, generator=generator).double()
    text = torch.randn(2, 5, 6, generator=generator).double()
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    reads_text = getattr(network.config, "text_dim", 0)
    condition = Condition(tokens=text, mask=mask) if reads_text else Condition(label=torch.tensor([0, 2]))
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = network(x, torch.tensor([0.2, 0.7]).double() * 1000, condition, Context()).square().mean()
    loss.backward()
    return {name: p.grad for name, p in network.named_parameters()}, kept


@pytest.mark.parametrize("config", [UVIT, DIT, DIMR], ids=["uvit", "dit", "dimr"])
def test_gradient_checkpointing_gives_the_same_gradients_and_keeps_less(config):
    torch.manual_seed(0)
    plain = build(config).double()
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    torch.manual_seed(0)
    other = build(config).double()
    other.load_state_dict(plain.state_dict())
    blocks = recompute.enable(other)
    assert blocks == {"uvit": 5, "dit": 3, "dimr": 6}[config["type"]]
    (a, kept), (b, kept_less) = gradients(plain), gradients(other)
    assert a.keys() == b.keys() and any(grad.abs().max() > 0 for grad in a.values() if grad is not None)
    for name in a:
        if a[name] is None:
            assert b[name] is None
        else:
            torch.testing.assert_close(b[name], a[name], atol=1e-12, rtol=1e-10)
    assert kept_less < 0.7 * kept


def test_networks_without_blocks_cannot_be_recomputed(tmp_path):
    with pytest.raises(TrainingError, match="not Net; leave it out"):
        toy_trainer(tmp_path, gradient_checkpointing=True)


@pytest.mark.parametrize("type", ["adamw", "radam", "muon"])
def test_counted_bytes_are_those_that_are_there(tmp_path, type):
    trainer = toy_trainer(tmp_path, max_steps=1, optimizer={"type": type}, ema={"type": "power", "widths": [0.05, 0.1]})
    row = memory.rows(trainer)["net"]
    numbers = 6 * 16 + 16 + 16 * 16 + 16 + 16 + 1
    assert row["weights"] == 4 * numbers and row["gradients"] == 4 * numbers and row["averages"] == 8 * numbers
    assert row["low precision"] == 0
    trainer.train()
    state = trainer.roles.optimizers["net"].state_dict()
    assert row["optimizer"] == sum(value.nbytes for value in state.values())


def test_frozen_roles_and_other_networks_hold_weights_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("distill.optim.precision.fast_bfloat16", lambda device: True)
    trainer = duel_trainer(tmp_path, precision="bf16")
    trainer.objective.encoder = nn.Linear(10, 10)
    rows = memory.rows(trainer)
    assert rows["teacher"]["weights"] == 4 * 401 and rows["teacher"]["gradients"] == rows["teacher"]["optimizer"] == 0
    assert rows["teacher"]["low precision"] == 2 * (6 * 16 + 16 * 16 + 16)
    assert rows["critic"]["averages"] == 0 and rows["generator"]["averages"] == 4 * 401
    assert rows["encoder"] == {**dict.fromkeys(memory.COLUMNS, 0), "weights": 440}
    text = memory.table(trainer)
    assert "total" in text and "without activations" in text


def test_the_command_prints_the_table_and_trains_nothing(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    from tests.distill.test_sources import png

    (tmp_path / "data" / "a.png").write_bytes(png())
    config = {
        "output": str(tmp_path / "run"),
        "max_steps": 2,
        "batch_size": 2,
        "device": "cpu",
        "network": {**UVIT, "channels": 3, "size": 16, "num_classes": 0},
        "objective": {"type": "diffusion"},
        "data": {"type": "images", "folder": str(tmp_path / "data"), "size": 16},
        "gradient_checkpointing": True,
        "ema": {"type": "power", "widths": [0.05, 0.1], "snapshot_every": 1},
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main([str(path), "--memory"]) == 0
    said = capsys.readouterr().out
    assert "denoiser" in said and "optimizer" in said and not (tmp_path / "run").exists()
    # the same run, trained on pixels of a folder, and exported with an average made afterwards
    assert main([str(path)]) == 0
    from distill.ema import main as ema_main
    from gen.generator import Generator

    code = ema_main(["reconstruct", str(tmp_path / "run"), "--width", "0.07"])
    told = capsys.readouterr()
    assert code == 0 and "width 0.07 at step 2" in told.out, told.err
    opened = Generator.from_pretrained(tmp_path / "run" / "export-0.070", device="cpu", dtype="float32")
    assert opened is not None
    assert main([str(path), "data.folder=" + str(tmp_path / "absent")]) == 2
    assert "is not a folder" in capsys.readouterr().err
