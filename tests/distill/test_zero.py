"""ZeRO by DeepSpeed on two CPU processes: one process's run, each with its share of the optimiser."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType

from distill.checkpointing import folder as checkpoints
from distill.config import TrainConfig
from distill.memory import rows
from distill.parallel.data_parallel import Parallel
from distill.parallel.deepspeed_settings import zero_settings
from distill.parallel.launch import make_accelerator
from distill.trainer import Trainer, TrainingError
from gen.models.pretrained import fast_bfloat16
from tests.distill.processes import launched, on_processes
from tests.distill.states import close, equals_one, everything, stop_after
from tests.distill.toy import BASE, Net, ToyObjective, ToySource, duel_trainer, toy_trainer

pytest.importorskip("deepspeed")
ADAMW = {"lr": 1e-2}


def check_shares(trainer: Trainer, stage: int) -> None:
    """Two runs that share out nothing would agree as well."""
    assert trainer.parallel.kind == "zero"
    for optimizer in trainer.roles.optimizers.values():
        assert optimizer.engine.zero_optimization_stage() == stage
        for group, members in zip(optimizer.part.param_groups, optimizer.members, strict=True):
            (share,) = group["params"]
            wanted = sum(p.numel() for p in members) / trainer.world
            assert wanted <= share.numel() <= wanted + 2  # of an even number of elements on each process


def _toy(output: Path, stage: int, offload: str, changes: dict) -> None:
    launched(stage, offload)
    trainer = toy_trainer(output, max_steps=6, **changes)
    check_shares(trainer, stage)
    trainer.train()
    if trainer.rank == 0:
        assert trainer.objective.exported


@pytest.mark.parametrize(
    ("stage", "offload", "changes"),
    [
        (1, "none", {"optimizer": ADAMW}),
        (2, "none", {"optimizer": ADAMW}),
        (2, "cpu", {"optimizer": ADAMW}),
        (2, "none", {"optimizer": {"type": "radam", "lr": 1e-2, "weight_decay": 0.1}}),
        (1, "none", {"optimizer": ADAMW, "accumulate": 2}),
        (2, "none", {"optimizer": {**ADAMW, "clip": 0.05}, "accumulate": 2}),
        (2, "cpu", {"optimizer": ADAMW, "accumulate": 2}),
    ],
)
def test_two_processes_equal_one(tmp_path, stage, offload, changes):
    """Weights, averages and optimiser state after six steps."""
    equals_one(tmp_path, toy_trainer(tmp_path / "one", max_steps=6, **changes), _toy, stage, offload, changes)


def _duel(output: Path) -> None:
    launched()
    trainer = duel_trainer(output, max_steps=6, roles={"critic": {"every": 2}})
    check_shares(trainer, 2)
    trainer.train()


def test_two_networks_against_one_another(tmp_path):
    equals_one(tmp_path, duel_trainer(tmp_path / "one", max_steps=6, roles={"critic": {"every": 2}}), _duel)


class Twice(ToyObjective):
    """A network that is called twice, once more without gradients, and whose gradient by its input is in the loss."""

    def loss(self, phase, models, batch, draws, step):
        error, scalars = super().loss(phase, models, batch, draws, step)
        with torch.no_grad():
            target = models["net"](batch.images)
        x = (2 * batch.images).requires_grad_()
        out = models["net"](x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        return error + (out - target).square().mean() + 0.1 * slope.square().mean(), scalars


def twice_trainer(output: Path, **changes) -> Trainer:
    torch.manual_seed(0)
    settings = {**BASE, "output": output, "optimizer": ADAMW, "max_steps": 6, "precision": "bf16", **changes}
    network = Net()
    network.rates = {"head.weight": 0.1, "head.bias": 0.1}  # a group of parameters of their own
    return Trainer(TrainConfig(**settings), Twice(network), ToySource())


def _twice(output: Path, zero: bool) -> None:
    if zero:
        launched()
    twice_trainer(output).train()


def test_a_network_called_often_and_differentiated_twice_in_bfloat16(tmp_path):
    """Under the trainer's autocast, as under DDP: a run in float32 goes elsewhere by a thousand times the tolerance, where the
    processor multiplies bfloat16."""
    on_processes(2, _twice, tmp_path / "ddp", False)
    on_processes(2, _twice, tmp_path / "zero", True)
    twice_trainer(tmp_path / "fp32", precision="fp32").train()
    ddp, fp32 = everything(tmp_path / "ddp"), everything(tmp_path / "fp32")
    close(ddp, everything(tmp_path / "zero"))
    apart = max((ddp[name] - fp32[name]).abs().max() for name in ddp)
    assert apart > 1e-3 if fast_bfloat16(torch.device("cpu")) else apart < 1e-6


def _skips(output: Path, stage: int, offload: str, bad: str) -> None:
    launched(stage, offload)
    trainer = toy_trainer(output, max_steps=6, optimizer=ADAMW, accumulate=2, on_nonfinite="skip")
    fails_at_three(trainer, bad, trainer.rank == 1)
    trainer.train()


def fails_at_three(trainer: Trainer, bad: str, here: bool) -> None:
    """At step 3 the loss is not finite, or its gradient, or both."""
    loss, weight = trainer.objective.loss, trainer.networks["net"].head.weight
    change = {
        "loss": lambda error: error + torch.inf,
        "gradient": lambda error: error + (0 * weight.sum()).sqrt(),
        "both": lambda error: error * torch.nan,
    }

    def failing(phase, models, batch, draws, step):
        error, scalars = loss(phase, models, batch, draws, step)
        return change[bad](error) if step == 3 and here else error, scalars

    trainer.objective.loss = failing


@pytest.mark.parametrize(
    ("stage", "offload", "bad"),
    [(1, "none", "loss"), (2, "none", "gradient"), (2, "none", "loss"), (2, "cpu", "loss"), (2, "cpu", "both")],
)
def test_an_update_left_out_is_left_out_on_all_and_leaves_nothing_behind(tmp_path, stage, offload, bad):
    one = toy_trainer(tmp_path / "one", max_steps=6, optimizer=ADAMW, accumulate=2, on_nonfinite="skip")
    fails_at_three(one, bad, True)
    equals_one(tmp_path, one, _skips, stage, offload, bad)


def _whole_run(output: Path, stage: int) -> None:
    launched(stage)
    toy_trainer(output, optimizer=ADAMW).train()


def _stops_at_six(output: Path, stage: int) -> None:
    launched(stage)
    trainer = toy_trainer(output, optimizer=ADAMW)
    stop_after(trainer, 6, here=trainer.rank == 1)


def test_a_resumed_run_is_bit_for_bit_the_whole_one(tmp_path):
    on_processes(2, _whole_run, tmp_path / "whole", 2)
    on_processes(2, _stops_at_six, tmp_path / "halves", 2)
    assert checkpoints.load_latest(tmp_path / "halves").step == 6
    on_processes(2, _whole_run, tmp_path / "halves", 2)
    close(everything(tmp_path / "whole"), everything(tmp_path / "halves"), 0)


def test_a_run_goes_on_with_another_number_of_processes_and_back(tmp_path):
    """Two processes of ZeRO-1, then one without DeepSpeed; and one without, then three of ZeRO-2."""
    toy_trainer(tmp_path / "one", optimizer=ADAMW, batch_size=12).train()
    on_processes(2, _stops_of_twelve, tmp_path / "shrinks")
    toy_trainer(tmp_path / "shrinks", optimizer=ADAMW, batch_size=12).train()
    close(everything(tmp_path / "one"), everything(tmp_path / "shrinks"))

    stop_after(toy_trainer(tmp_path / "grows", optimizer=ADAMW, batch_size=12), 6)
    on_processes(3, _goes_on_of_twelve, tmp_path / "grows")
    close(everything(tmp_path / "one"), everything(tmp_path / "grows"))


def _stops_of_twelve(output: Path) -> None:
    launched(1)
    stop_after(toy_trainer(output, optimizer=ADAMW, batch_size=12), 6)


def _goes_on_of_twelve(output: Path) -> None:
    launched(2)
    trainer = toy_trainer(output, optimizer=ADAMW, batch_size=12)
    trainer.train()
    assert min(trainer.source.asked) >= 72


def _one_process(output: Path) -> None:
    launched(2, "cpu")
    trainer = toy_trainer(output, optimizer=ADAMW, max_steps=6)
    assert trainer.parallel.kind == "zero" and trainer.world == 1
    trainer.train()


def test_one_process_can_offload(tmp_path):
    equals_one(tmp_path, toy_trainer(tmp_path / "one", optimizer=ADAMW, max_steps=6), _one_process, world=1)


def _muon(output: Path) -> None:
    launched()
    with pytest.raises(TrainingError, match=r"muon does not work under ZeRO.*fsdp2\.yaml.*adamw, radam"):
        toy_trainer(output)


def test_muon_is_refused(tmp_path):
    on_processes(1, _muon, tmp_path)


def _memory(output: Path) -> None:
    launched(2)
    row = rows(toy_trainer(output, optimizer=ADAMW, precision="bf16"))["net"]
    weights = 4 * (6 * 16 + 16 + 16 * 16 + 16 + 16 + 1)
    assert row["weights"] == row["averages"] == weights
    assert abs(row["gradients"] - weights / 2) <= 8  # a share of an even number
    assert abs(row["optimizer"] - 3 * weights / 2) <= 3 * 8  # two moments, and the weights once more


def test_the_memory_table_counts_shares(tmp_path):
    on_processes(2, _memory, tmp_path)


def accelerator(**changes) -> SimpleNamespace:
    """As accelerate.DeepSpeedPlugin reads a launch file."""
    zero = {"stage": 2, "offload_optimizer": {"device": "none", "nvme_path": None}, "offload_param": {"device": "none"}}
    config = {"train_batch_size": "auto", "gradient_accumulation_steps": "auto", "zero_optimization": zero, **changes}
    plugin = SimpleNamespace(deepspeed_config=config)
    state = SimpleNamespace(deepspeed_plugin=plugin)
    return SimpleNamespace(num_processes=2, process_index=0, distributed_type=DistributedType.DEEPSPEED, state=state)


@pytest.mark.parametrize(
    ("launch", "config", "sentence"),
    [
        ({"zero_optimization": {"stage": 3}}, {}, r"has ZeRO-3; launch with configs/accelerate/fsdp2\.yaml"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, {}, r"offload_param.*fsdp2\.yaml"),
        ({"zero_optimization": {"stage": 0}}, {}, r"stage 0; use stage 1 or 2.*ddp\.yaml"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, {}, "to nvme.*can offload to cpu"),
        ({"optimizer": {"type": "Adam"}}, {}, "a section optimizer; leave it out"),
        ({"scheduler": {"type": "WarmupLR"}}, {}, "training config's section schedule decides"),
        ({"bf16": {"enabled": True}}, {}, "bf16 enabled; leave it out"),
        ({}, {"parallel": "fsdp2"}, "parallel is fsdp2, but accelerate was launched with DeepSpeed"),
        ({}, {"precision": "fp16"}, "use precision=bf16 or fp32"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(tmp_path, launch, config, sentence):
    with pytest.raises(TrainingError, match=sentence):
        Parallel(TrainConfig(**{**BASE, "output": tmp_path, **config}), accelerator(**launch))


def test_what_is_left_open_is_the_training_configs_or_deepspeeds():
    zero = {"stage": 1, "reduce_bucket_size": "auto", "overlap_comm": True}
    given = {
        "zero_optimization": zero,
        "bf16": {"enabled": "auto"},
        "gradient_accumulation_steps": 4,
        "wall_clock_breakdown": True,
    }
    settings = zero_settings(given)
    assert settings["zero_optimization"] == {"stage": 1, "overlap_comm": True} and settings["wall_clock_breakdown"]
    assert settings["gradient_accumulation_steps"] == 1 and "bf16" not in settings
    assert zero["reduce_bucket_size"] == "auto"  # the plugin's own is as it was


def test_a_process_that_was_not_launched_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(TrainingError, match="launched processes, one or more"):
        make_accelerator(TrainConfig(**BASE, output=tmp_path))


def _use_cpu(output: Path) -> None:
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
    with pytest.raises(TrainingError, match="use_cpu: true; set it to false"):
        make_accelerator(TrainConfig(**BASE, output=output))


def test_replicas_are_not_trained_in_silence(tmp_path):
    """accelerate leaves DeepSpeed out with `use_cpu: true`."""
    on_processes(1, _use_cpu, tmp_path)
