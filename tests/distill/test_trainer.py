"""The loop: exact resume, sample order, accumulation, roles, guards."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys

import pytest
import torch

from distill import logs
from distill.checkpointing import folder as checkpoints
from distill.optim.precision import LossScaler
from distill.run_folder import run_lock
from distill.trainer import TrainingError
from distill.types import Phase
from gen.io.weights import CheckpointError
from tests.distill.processes import forked
from tests.distill.states import everything, stop_after
from tests.distill.toy import ToySource, duel_trainer, toy_trainer


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_twice_n_steps_equal_n_resume_n_bit_for_bit(tmp_path):
    toy_trainer(tmp_path / "whole").train()
    stop_after(toy_trainer(tmp_path / "parts"), 6)
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


def test_a_loss_that_is_not_finite_names_step_and_samples(tmp_path):
    trainer = toy_trainer(tmp_path, fail_at=7)
    with pytest.raises(TrainingError, match=r"step 7.*'net'.*nan.*samples 56 to 63"):
        trainer.train()
    assert checkpoints.load_latest(tmp_path).step == 5  # what was saved stays
    row = json.loads((tmp_path / "nonfinite.jsonl").read_text())
    assert row["step"] == 7 and row["role"] == "net" and row["samples"] == list(range(56, 64))


def test_a_gradient_that_is_not_finite_is_noticed_before_a_weight_changes(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=4)
    network = trainer.networks["net"]
    network.head.weight.register_hook(lambda grad: grad * float("inf") if trainer.step == 2 else grad)
    seen = []
    trainer.objective.after_step = lambda step: seen.append({n: p.clone() for n, p in network.named_parameters()})
    with pytest.raises(TrainingError, match=r"step 2, the gradient norm.*role 'net'.*samples 16 to 23"):
        trainer.train()
    assert same(seen[-1], dict(network.named_parameters()))


def test_skipping_leaves_out_that_update_alone(tmp_path):
    trainer = toy_trainer(tmp_path / "skip", fail_at=7, on_nonfinite="skip", log_every=12)
    weights = []
    trainer.objective.after_step = lambda step: weights.append(trainer.networks["net"].head.weight.clone())
    trainer.train()
    assert trainer.step == 12 and torch.equal(weights[6], weights[7]) and not torch.equal(weights[7], weights[8])
    row = json.loads((tmp_path / "skip" / "log.jsonl").read_text())
    assert row["skipped"] == pytest.approx(1 / 12) and row["loss"] == row["loss"]


def test_skipping_ends_after_as_many_in_a_row_as_allowed(tmp_path):
    trainer = toy_trainer(tmp_path, on_nonfinite="skip", max_skips=2)
    real, failing = trainer.objective.loss, {1, 2, 4, 5, 6}

    def loss(phase, models, batch, draws, step):
        value, logs = real(phase, models, batch, draws, step)
        return (value * float("inf") if step in failing else value), logs

    trainer.objective.loss = loss
    with pytest.raises(TrainingError, match=r"step 6.*2 updates in a row were skipped"):
        trainer.train()


def test_float16_halves_its_scale_and_tries_again(tmp_path):
    """The scaler by itself; a CPU has no use for it, so it is put into a run in float32."""
    trainer = toy_trainer(tmp_path / "scaled", max_steps=6)
    trainer.roles.scalers["net"] = LossScaler(True, scale=2.0**140)  # overflows in float32 until halved often enough
    trainer.train()
    saved = checkpoints.load_latest(tmp_path / "scaled")
    assert 0 < saved.tensors["scaler-net"]["scale"].item() < 2.0**140
    small, plain = toy_trainer(tmp_path / "small", max_steps=6), toy_trainer(tmp_path / "plain", max_steps=6)
    small.roles.scalers["net"] = LossScaler(True, scale=2.0**10)
    small.train()
    plain.train()
    a, b = everything(tmp_path / "small"), everything(tmp_path / "plain")
    assert all(torch.equal(a[name], b[name]) for name in b)  # a power of two changes no bit


def test_roles_have_their_own_settings(tmp_path):
    changes = {"critic": {"optimizer": {"lr": 1e-3}, "every": 2, "schedule": {"type": "constant", "warmup": 0}}}
    trainer = duel_trainer(tmp_path, max_steps=5, roles=changes, log_every=5)
    rates = []
    trainer.objective.after_step = lambda step: rates.append(trainer.roles.optimizers["critic"].parts[0].param_groups[0]["lr"])
    trainer.train()
    assert trainer.objective.updates == [
        (step, role) for step in range(5) for role in ("generator", "critic") if role == "generator" or step % 2 == 0
    ]
    assert set(rates) == {1e-3}
    assert trainer.roles.optimizers["generator"].peaks == [1e-2]
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert row["generator/lr_factor"] < 1 and row["critic/lr_factor"] == 1


def test_a_phase_fills_the_gradients_of_its_role_alone(tmp_path):
    trainer = duel_trainer(tmp_path, max_steps=1, roles={"critic": {"every": 1}})
    trainer.objective.phases = lambda step: (Phase("generator", "generator"),)
    trainer.train()
    assert all(p.grad is None for p in trainer.networks["critic"].parameters())
    assert all(p.grad is not None for p in trainer.networks["generator"].parameters())


def test_an_unknown_role_is_named(tmp_path):
    with pytest.raises(TrainingError, match=r"'critik'.*did you mean 'critic'.*generator, critic\."):
        duel_trainer(tmp_path, roles={"critik": {"every": 2}})


def test_a_run_of_two_roles_resumes_bit_for_bit(tmp_path):
    duel_trainer(tmp_path / "whole", max_steps=8, roles={"critic": {"every": 3}}).train()
    half = duel_trainer(tmp_path / "parts", max_steps=8, checkpoint_every=3, roles={"critic": {"every": 3}})
    stop_after(half, 4)
    duel_trainer(tmp_path / "parts", max_steps=8, roles={"critic": {"every": 3}}).train()
    assert same(everything(tmp_path / "whole"), everything(tmp_path / "parts"))


def test_resume_never_and_from_a_path(tmp_path):
    toy_trainer(tmp_path / "a", keep=9).train()
    with pytest.raises(TrainingError, match=r"already holds step-00000012.*resume=auto"):
        toy_trainer(tmp_path / "a", resume="never").train()
    with pytest.raises(TrainingError, match="step-00000012, which is later than step-00000005"):
        toy_trainer(tmp_path / "a", resume=str(tmp_path / "a" / "step-00000005")).train()
    branch = toy_trainer(tmp_path / "b", resume=str(tmp_path / "a" / "step-00000005"))
    branch.train()
    assert min(branch.source.asked) == 5 * 8
    assert same(everything(tmp_path / "a"), everything(tmp_path / "b"))
    again = toy_trainer(tmp_path / "b", resume=str(tmp_path / "a" / "step-00000005"), max_steps=13)
    again.train()
    assert min(again.source.asked) == 12 * 8  # the run's own newest step, not the start of the branch
    with pytest.raises(CheckpointError, match="absent"):
        toy_trainer(tmp_path / "c", resume=str(tmp_path / "absent")).train()


def test_changes_of_settings_are_told(tmp_path, capsys):
    toy_trainer(tmp_path, max_steps=5).train()
    toy_trainer(tmp_path, max_steps=6, optimizer={"type": "muon", "lr": 5e-3, "muon_lr": 1e-2}).train()
    assert "optimizer.lr: 0.01 -> 0.005" in capsys.readouterr().out


def test_checkpoints_that_are_kept_for_good(tmp_path):
    toy_trainer(tmp_path, max_steps=10, checkpoint_every=1, keep=2, keep_every=4).train()
    assert sorted(p.name[-2:] for p in tmp_path.glob("step-*")) == ["04", "08", "09", "10"]


def test_a_tracker_that_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(TrainingError, match="did you mean 'tensorboard'"):
        toy_trainer(tmp_path, trackers=("tensorbord",))
    monkeypatch.setattr(logs, "get_available_trackers", lambda: [])
    with pytest.raises(TrainingError, match="'tensorboard', whose package"):
        toy_trainer(tmp_path, trackers=("tensorboard",))


def test_trackers_get_what_the_log_gets(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "get_available_trackers", lambda: ["tensorboard"])
    trainer = toy_trainer(tmp_path)
    said, started = [], []
    trainer.log.config = trainer.config.model_copy(update={"trackers": ("tensorboard",)})
    monkeypatch.setattr(trainer.accelerator, "init_trackers", lambda name, config: started.append(config))
    monkeypatch.setattr(trainer.accelerator, "log", lambda row, step: said.append((step, row)))
    monkeypatch.setattr(trainer.accelerator, "end_training", lambda: said.append("end"))
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [step for step, _ in said[:-1]] == [3, 6, 9, 12] and said[-1] == "end"
    assert said[0][1]["loss"] == rows[0]["loss"] and started[0]["optimizer.lr"] == 1e-2
    assert all(isinstance(value, str | int | float | bool) for value in started[0].values())


def test_the_log_holds_every_window(tmp_path):
    toy_trainer(tmp_path).train()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [3, 6, 9, 12]
    assert all(row["loss"] == pytest.approx(row["error"]) for row in rows)
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_a_run_in_use_is_refused(tmp_path):
    code = (
        f"import time; from pathlib import Path; from distill.run_folder import run_lock\n"
        f"with run_lock(Path({str(tmp_path)!r})): print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(TrainingError, match=f"in use by process {other.pid}"):
            toy_trainer(tmp_path).train()
        (tmp_path / "lock").write_text("4194000\n")  # what the file says decides nothing
        with pytest.raises(TrainingError, match="in use; stop it"):
            toy_trainer(tmp_path).train()
    finally:
        other.kill()
        other.wait()
    (tmp_path / "lock").write_text(f"{os.getppid()}\n")  # nor where it names a process that lives, of another container say
    toy_trainer(tmp_path).train()  # its owner is gone: taken over
    assert not (tmp_path / "lock").exists()


def test_of_many_that_start_at_once_one_gets_the_folder(tmp_path):
    """A file `lock` is left of a killed run, and six processes want the folder in the same moment, twenty times."""
    for trial in range(20):
        run = tmp_path / str(trial)
        run.mkdir()
        (run / "lock").write_text("4194000\n")
        begin, held, done = (os.pipe() for _ in range(3))

        def compete(run=run, begin=begin, held=held, done=done) -> None:
            os.close(begin[1]), os.close(done[1])
            os.read(begin[0], 1)  # ends for all at once
            try:
                with run_lock(run):
                    os.write(held[1], b"+")
                    os.read(done[0], 1)  # until all have tried
            except TrainingError:
                os.write(held[1], b"-")

        processes = [forked(compete) for _ in range(6)]
        os.close(begin[1])
        told = b""
        while len(told) < 6:
            told += os.read(held[0], 6)
        os.close(done[1])
        for process in processes:
            os.waitpid(process, 0)
        for end in (begin[0], held[0], held[1], done[0]):
            os.close(end)
        assert sorted(told) == sorted(b"+-----") and not (run / "lock").exists()


def test_a_lock_that_its_owner_deletes_meanwhile_is_made_anew(tmp_path, monkeypatch):
    """Opened while another held it, locked when that one has deleted it: it would be a lock on a file that nobody sees."""
    real, calls = fcntl.flock, []

    def flock(descriptor, how):
        if not calls:
            (tmp_path / "lock").unlink()
        calls.append(how)
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_lock(tmp_path):
        assert len(calls) == 2 and (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(TrainingError, match=f"in use by process {os.getpid()}"), run_lock(tmp_path):
            raise AssertionError("two own it")


def test_a_full_disk_leaves_no_lock(tmp_path, monkeypatch):
    real = os.write

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(TrainingError, match="No space left on device"), run_lock(tmp_path):
        raise AssertionError("it was had")
    monkeypatch.setattr(os, "write", real)
    assert not (tmp_path / "lock").exists()
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("on_nonfinite", ["skip", "stop"])
def test_weights_that_are_not_finite_are_neither_saved_nor_exported(tmp_path, on_nonfinite):
    """The update of step 9 makes infinities of finite gradients; whatever the losses of the three steps after it are."""
    changes = {"on_nonfinite": on_nonfinite, "checkpoint_every": 4, "optimizer": {"lr": 1e-2}}
    trainer = toy_trainer(tmp_path, **changes)

    def break_weights(step: int) -> None:
        if step == 9:
            with torch.no_grad():
                trainer.networks["net"].head.weight.fill_(float("inf"))

    trainer.objective.after_step = break_weights
    with pytest.raises(TrainingError):
        trainer.train()
    assert not trainer.objective.exported and not (tmp_path / "export").exists()
    assert [f.name for f in checkpoints.folders(tmp_path)] == ["step-00000008", "step-00000004"]
    again = toy_trainer(tmp_path, **changes)
    again.train()  # from step 8
    assert min(again.source.asked) == 64 and again.objective.exported


def test_a_run_of_skipped_updates_alone_is_an_error(tmp_path):
    trainer = toy_trainer(tmp_path, on_nonfinite="skip", max_steps=6, checkpoint_every=100)
    trainer.objective.loss = lambda phase, models, batch, draws, step: (models["net"](batch.images).mean() * float("nan"), {})
    with pytest.raises(TrainingError, match="All 6 updates were skipped"):
        trainer.train()
    assert not trainer.objective.exported and not checkpoints.folders(tmp_path)


def test_rows_after_a_checkpoint_stand_once(tmp_path):
    """Killed at step 8 with the last checkpoint of step 5: rows 6 to 8 are written again, and what was half written is gone."""
    trainer = toy_trainer(tmp_path, log_every=1, on_nonfinite="skip", fail_at=6)

    def die(step: int) -> None:
        if step == 8:
            raise KeyboardInterrupt

    trainer.objective.after_step = die
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"note": "of no step"}\n{"time": 1, "st')
    toy_trainer(tmp_path, log_every=1, on_nonfinite="skip", fail_at=6).train()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "step" in row] == list(range(1, 13)) and {"note": "of no step"} in rows
    assert [json.loads(line)["step"] for line in (tmp_path / "nonfinite.jsonl").read_text().splitlines()] == [6]


def test_a_run_that_goes_on_says_what_has_changed(tmp_path, capsys):
    def run(data: str, teacher: str, steps: int) -> str:
        trainer = toy_trainer(tmp_path, max_steps=steps)
        trainer.source.digest, type(trainer.source).__len__ = lambda: data, lambda self: 7
        trainer.objective.inputs = lambda: {"teacher": teacher}
        capsys.readouterr()
        trainer.train()
        return capsys.readouterr().out

    try:
        run("a", "x", 2)
        same = run("a", "x", 4)
        assert "Resuming" in same and "not what" not in same
        assert "The data are not what they were at that step: 7 pictures as then" in run("b", "x", 6)
        assert "The teacher is not what it was at that step" in run("b", "y", 8)
    finally:
        del ToySource.__len__


def test_a_batch_that_does_not_split_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="multiple of 3"):
        toy_trainer(tmp_path, accumulate=3)


def test_another_network_is_not_resumed(tmp_path):
    toy_trainer(tmp_path, max_steps=5).train()
    with pytest.raises(TrainingError, match="another network"):
        toy_trainer(tmp_path, network={"type": "toy", "dim": 2}).train()


def test_compile_is_for_trained_networks_only_and_changes_no_name(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    trainer = toy_trainer(tmp_path / "run", compile=True)
    assert compiled == [trainer.networks["net"]]
    trainer.train()
    toy_trainer(tmp_path / "plain").train()
    assert same(everything(tmp_path / "run"), everything(tmp_path / "plain"))
