"""The loop: exact resume, sample order, accumulation, ranks, guards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distill import checkpoint as checkpoints
from distill.optim import Muon
from distill.trainer import TrainingError
from tests.distill.toy import toy_trainer

ROOT = Path(__file__).parents[2]


def everything(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoints.load_latest(run)
    return {f"{group}/{name}": value for group, tensors in saved.tensors.items() for name, value in tensors.items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def launch(*arguments: str, processes: int = 1, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.distill.toy", *arguments]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [sys.executable, *torchrun, "-m", "tests.distill.toy", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **options)


def test_twice_n_steps_equal_n_resume_n_bit_for_bit(tmp_path):
    toy_trainer(tmp_path / "whole").train()
    half = toy_trainer(tmp_path / "parts")
    half.objective.after_step = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None
    with pytest.raises(SystemExit) as stop:
        half.train()
    assert stop.value.code == 143
    assert checkpoints.load_latest(tmp_path / "parts").step == 6
    resumed = toy_trainer(tmp_path / "parts")
    resumed.train()
    assert min(resumed.source.asked) == 6 * 8  # it did not start over
    assert same(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_the_average_and_the_optimiser_state_are_part_of_the_state(tmp_path):
    toy_trainer(tmp_path, max_steps=5).train()
    names = everything(tmp_path)
    assert any(name.startswith("ema-net/") for name in names)
    assert "optim-net/blocks.0.weight::momentum_buffer" in names  # Muon's
    assert "optim-net/head.weight::exp_avg_sq" in names  # AdamW's
    assert not torch.equal(names["ema-net/head.weight"], names["net/head.weight"])


def test_averages_follow_their_formula(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=4)
    expected, seen = trainer.networks["net"].head.weight.detach().double().clone(), []

    def follow(step):
        nonlocal expected
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * trainer.networks["net"].head.weight.detach().double()
        seen.append(step)

    trainer.objective.after_step = follow
    trainer.train()
    assert seen == [0, 1, 2, 3]
    torch.testing.assert_close(trainer.averaged["net"].head.weight.double(), expected, atol=1e-7, rtol=0)


def test_every_sample_is_used_once_in_order(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=3)
    trainer.train()
    assert trainer.source.asked == list(range(24))


def test_prefetching_changes_nothing(tmp_path):
    toy_trainer(tmp_path / "plain").train()
    toy_trainer(tmp_path / "ahead", prefetch=True).train()
    assert same(everything(tmp_path / "plain"), everything(tmp_path / "ahead"))


def test_four_micro_batches_equal_one_batch(tmp_path):
    toy_trainer(tmp_path / "one").train()
    toy_trainer(tmp_path / "four", accumulate=4).train()
    one, four = everything(tmp_path / "one"), everything(tmp_path / "four")
    for name in one:
        torch.testing.assert_close(four[name], one[name], atol=2e-4, rtol=0)
    assert not same(one, {name: value + 1e-3 for name, value in four.items()})


def test_two_processes_equal_one(tmp_path):
    one = launch(str(tmp_path / "one"), "6", "0", "6", stdout=subprocess.PIPE)
    two = launch(str(tmp_path / "two"), "6", "0", "6", processes=2, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert one.wait(120) == 0 and "world=1" in one.stdout.read()
    assert two.wait(120) == 0 and "world=2" in two.stdout.read()
    a, b = everything(tmp_path / "one"), everything(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(b[name], a[name], atol=2e-5, rtol=0)


def test_killed_while_saving_leaves_a_loadable_run(tmp_path):
    """SIGKILL at many moments of a run that saves on every step; what is left must load and go on."""
    reached = 0
    for attempt in range(6):
        process = launch(str(tmp_path), "100000", "0", "1", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            saved = sorted(tmp_path.glob("step-*"))
            if saved and int(saved[-1].name[5:]) > reached:
                break
            time.sleep(0.005)
        time.sleep(0.013 * attempt)
        process.kill()
        process.wait()
        newest = checkpoints.load_latest(tmp_path)
        assert newest is not None and newest.step > reached
        reached = newest.step
    trainer = toy_trainer(tmp_path, max_steps=reached + 2)
    trainer.train()
    assert trainer.step == reached + 2
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_loss_that_is_not_finite_names_step_and_samples(tmp_path):
    trainer = toy_trainer(tmp_path, fail_at=7)
    with pytest.raises(TrainingError, match=r"step 7.*'net'.*nan.*samples 56 to 63"):
        trainer.train()
    assert checkpoints.load_latest(tmp_path).step == 5  # what was saved stays


def test_the_log_holds_every_window(tmp_path):
    toy_trainer(tmp_path).train()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert all(row["loss"] == pytest.approx(row["error"]) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_run_in_use_is_refused(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "lock").write_text(f"{other.pid}\n")
        with pytest.raises(TrainingError, match=f"in use by process {other.pid}"):
            toy_trainer(tmp_path).train()
    finally:
        other.kill()
        other.wait()
    toy_trainer(tmp_path).train()  # its owner is gone: taken over


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="multiple of 3"):
        toy_trainer(tmp_path, accumulate=3)


def test_another_network_is_not_resumed(tmp_path):
    toy_trainer(tmp_path, max_steps=5).train()
    with pytest.raises(TrainingError, match="another network"):
        toy_trainer(tmp_path, network={"type": "toy", "dim": 2}).train()


@pytest.mark.parametrize("shapes", [[(24, 16), (16, 24), (24, 16), (16, 16)]])
def test_muon_in_batches_is_torchs_muon(shapes):
    """Same state, same updates to bfloat16 rounding (an update has entries of about 0.2 lr)."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in shapes]
    grads = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(3)]

    def run(kind, **settings):
        parameters = [torch.nn.Parameter(value.clone()) for value in start]
        optimizer = kind(parameters, lr=0.1, weight_decay=0.2, momentum=0.9, **settings)
        for step in grads:
            for parameter, grad in zip(parameters, step, strict=True):
                parameter.grad = grad.clone()
            optimizer.step()
        return parameters, optimizer

    ours, optimizer = run(Muon)
    theirs, reference = run(torch.optim.Muon, adjust_lr_fn="match_rms_adamw")
    for a, b, before in zip(ours, theirs, start, strict=True):
        assert (a - b).abs().max() < 0.02 * (b - before).abs().max()
        assert torch.allclose(optimizer.state[a]["momentum_buffer"], reference.state[b]["momentum_buffer"], atol=1e-6)


def test_compile_is_for_trained_networks_only_and_changes_no_name(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    trainer = toy_trainer(tmp_path / "run", compile=True)
    assert compiled == [trainer.networks["net"]]
    trainer.train()
    toy_trainer(tmp_path / "plain").train()
    assert same(everything(tmp_path / "run"), everything(tmp_path / "plain"))
