"""Two processes equal one, replicated or in shards; what one notices, all do."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_simple_launcher_cmd_env
from torch import nn

from distill.checkpointing import folder as checkpoints
from distill.config import TrainConfig
from distill.objectives.bases.frozen_copies import ema_update, frozen_copy
from distill.optim.optimizer import Muon, orthogonalize
from distill.parallel.data_parallel import Parallel
from distill.parallel.launch import asked_for_more
from distill.parallel.shards import fill, is_sharded, local
from distill.trainer import Trainer, TrainingError
from tests.distill.processes import on_processes
from tests.distill.states import close, equals_one, everything, stop_after
from tests.distill.toy import BASE, DuelObjective, Net, ToyObjective, ToySource, duel_trainer, toy_trainer


def run_toy(output, kind, **changes) -> None:
    trainer = toy_trainer(output, parallel=kind, world_size=2, max_steps=6, **changes)
    assert trainer.world == 2 and trainer.parallel.kind == kind  # two runs of one process would agree as well
    weight = trainer.networks["net"].blocks[0].weight
    held = weight.to_local().numel() if kind == "fsdp2" else weight.numel()
    assert held == weight.numel() // (2 if kind == "fsdp2" else 1)
    trainer.train()
    if kind == "fsdp2" and trainer.rank == 0:
        assert trainer.objective.exported


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("type", ["adamw", "muon"])
def test_two_processes_equal_one(tmp_path, kind, type, monkeypatch):
    """Weights, averages and optimiser state after six steps; the global batch and so the samples are the same.

    Muon orthogonalises in float64 here: what bfloat16 makes of gradients that differ in their last bit is measured below."""
    monkeypatch.setattr(Muon, "dtype", torch.float64)
    optimizer = {"type": type, "lr": 1e-2, "muon_lr": 1e-2}
    equals_one(tmp_path, toy_trainer(tmp_path / "one", max_steps=6, optimizer=optimizer), _run_two, kind, optimizer)
    logs = [[json.loads(row) for row in (tmp_path / n / "log.jsonl").read_text().splitlines()] for n in ("one", "two")]
    assert [row["step"] for row in logs[1]] == [3, 6]  # one process writes, what all of them found
    for one, two in zip(*logs, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-5) and two["grad_norm"] == pytest.approx(
            one["grad_norm"], rel=1e-4
        )


def test_only_bfloat16_sets_the_updates_of_muon_apart():
    """Gradients that differ as the sums of one process and of two do, in the last bits of float32."""
    g = torch.Generator().manual_seed(0)
    one = torch.randn(64, 16, 32, generator=g)
    two = one * (1 + 2**-20 * torch.randint(-1, 2, one.shape, generator=g))
    settings = ((3.4445, -4.775, 2.0315), 5, 1e-7)
    apart = {
        dtype: (orthogonalize(one, *settings, dtype).double() - orthogonalize(two, *settings, dtype).double()).abs().max()
        for dtype in (torch.bfloat16, torch.float64)
    }
    assert 0 < apart[torch.float64] < 2e-6 < 1e-3 < apart[torch.bfloat16] < 2e-2


def _run_two(output, kind, optimizer) -> None:
    run_toy(output, kind, optimizer=optimizer)


def _accumulate(output, kind) -> None:
    run_toy(output, kind, accumulate=2, optimizer={"lr": 1e-2})


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_of_two_micro_batches_equal_one(tmp_path, kind):
    equals_one(tmp_path, toy_trainer(tmp_path / "one", max_steps=6, optimizer={"lr": 1e-2}), _accumulate, kind)


def _duel(output, kind) -> None:
    trainer = duel_trainer(output, parallel=kind, max_steps=6, roles={"critic": {"every": 2}})
    assert trainer.world == 2
    trainer.train()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_networks_against_one_another(tmp_path, kind):
    equals_one(tmp_path, duel_trainer(tmp_path / "one", max_steps=6, roles={"critic": {"every": 2}}), _duel, kind)


def _first_half(output, kind) -> None:
    toy_trainer(output, parallel=kind, max_steps=12, optimizer={"lr": 1e-2}).train()


def _stops_at_six(output, kind) -> None:
    trainer = toy_trainer(output, parallel=kind, optimizer={"lr": 1e-2})
    stop_after(trainer, 6, here=trainer.rank == 1)  # the signal reaches one process alone


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_run_goes_on_with_another_number_of_processes(tmp_path, kind):
    """Six steps on two processes, stopped by a signal to one of them; then one process; and the other way round."""
    toy_trainer(tmp_path / "one", optimizer={"lr": 1e-2}).train()
    on_processes(2, _stops_at_six, tmp_path / "shrinks", kind)
    assert checkpoints.load_latest(tmp_path / "shrinks").step == 6
    resumed = toy_trainer(tmp_path / "shrinks", optimizer={"lr": 1e-2})
    resumed.train()
    assert min(resumed.source.asked) == 48
    close(everything(tmp_path / "one"), everything(tmp_path / "shrinks"))

    stop_after(toy_trainer(tmp_path / "grows", optimizer={"lr": 1e-2}), 6)
    on_processes(2, _first_half, tmp_path / "grows", kind)
    close(everything(tmp_path / "one"), everything(tmp_path / "grows"))


@pytest.mark.parametrize(("count", "asked"), [(1, False), (2, True)])
def test_one_process_where_accelerate_was_asked_for_two(tmp_path, monkeypatch, count, asked):
    """In the environment that its own launcher gives the one process that it starts on CPUs."""
    given = launch_command_parser().parse_args(["--cpu", "--num_processes", str(count), "train.py"])
    given.num_machines, given.mixed_precision, given.dynamo_backend = 1, "no", "no"
    command, environment = prepare_simple_launcher_cmd_env(given)
    assert command[-1] == "train.py"
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "MASTER_PORT"):
        if name in environment:
            monkeypatch.setenv(name, environment[name])
    if asked:
        with pytest.raises(TrainingError, match=r"told to start several processes .*starts one.*torch\.distributed\.run"):
            toy_trainer(tmp_path)
    else:
        toy_trainer(tmp_path)


def test_an_address_alone_is_no_wish_for_several_processes():
    told = {"ACCELERATE_USE_CPU": "True", "MASTER_ADDR": "127.0.0.1"}
    assert asked_for_more(told, {}) and asked_for_more(told, None)
    assert not asked_for_more(told, {"MASTER_ADDR": "10.0.0.1"}) and not asked_for_more({**told, "RANK": "0"}, {})
    assert not asked_for_more({"MASTER_ADDR": "127.0.0.1"}, {}) and not asked_for_more({"ACCELERATE_USE_CPU": "True"}, {})


def _nan_on_one(output) -> None:
    trainer = toy_trainer(output, parallel="ddp")
    trainer.objective.fail_at = 3 if trainer.rank == 1 else -1
    try:
        trainer.train()
    except TrainingError as error:
        assert ("samples 28 to 31" if trainer.rank else "in another process") in str(error), str(error)
    else:
        raise AssertionError("it went on")


def test_a_nan_on_one_process_stops_all_of_them(tmp_path):
    on_processes(2, _nan_on_one, tmp_path)


def _skips(output) -> None:
    trainer = toy_trainer(output, parallel="ddp", on_nonfinite="skip")
    trainer.objective.fail_at = 3 if trainer.rank == 1 else -1
    trainer.train()
    weights = torch.cat([p.detach().flatten() for p in trainer.networks["net"].parameters()])
    everyone = [torch.empty_like(weights) for _ in range(2)]
    torch.distributed.all_gather(everyone, weights)
    assert torch.equal(*everyone) and torch.isfinite(weights).all()


def test_a_skip_on_one_process_is_a_skip_on_all(tmp_path):
    on_processes(2, _skips, tmp_path)


def _gathered(output, kind) -> None:
    trainer = toy_trainer(output, parallel=kind, max_steps=2, optimizer={"lr": 1e-2})
    trainer.train()
    groups = trainer.state.gather(trainer.step)
    held = sum(value.numel() for tensors in groups.values() for value in tensors.values())
    assert set(groups) == {"net", "ema-net", "optim-net"}
    if trainer.rank:
        assert held == 0  # not even what it could have without asking
    else:
        weights = sum(math.prod(p.shape) for p in trainer.networks["net"].parameters())
        assert held == 4 * weights + len(list(trainer.networks["net"].parameters()))  # two moments, and step counts
        assert all(value.device.type == "cpu" for tensors in groups.values() for value in tensors.values())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_one_process_alone_holds_what_is_saved(tmp_path, kind):
    on_processes(2, _gathered, tmp_path, kind)


def _infinite_on_all(output, kind) -> None:
    trainer = toy_trainer(output, parallel=kind, max_steps=4, optimizer={"lr": 1e-2})

    def break_weights(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                for parameter in trainer.networks["net"].parameters():
                    local(parameter).fill_(float("inf"))

    trainer.objective.after_step = break_weights
    with pytest.raises(TrainingError, match="NaN or infinite values"):
        trainer.train()
    assert not checkpoints.folders(output)


def test_no_process_waits_for_one_that_refuses_to_save(tmp_path):
    on_processes(2, _infinite_on_all, tmp_path, "fsdp2")


def watched(output, **changes):
    torch.manual_seed(0)
    settings = {**BASE, "output": output, "validation": {"every": 2, "batches": 2}, "max_steps": 4, **changes}
    return Trainer(TrainConfig(**settings), ToyObjective(Net()), ToySource(), ToySource())


def test_the_loss_of_what_is_held_out_is_that_of_one_process(tmp_path):
    watched(tmp_path / "one", optimizer={"lr": 1e-2}).train()
    on_processes(2, _watched_two, tmp_path / "two")
    found = []
    for name in ("one", "two"):
        rows = [json.loads(row) for row in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        found.append([row["validation/loss"] for row in rows if "validation/loss" in row])
    assert len(found[0]) == 2 and found[0] == pytest.approx(found[1], rel=1e-5)


def _watched_two(output) -> None:
    watched(output, parallel="ddp", optimizer={"lr": 1e-2}).train()


def _raises_on_one(output) -> None:
    trainer = toy_trainer(output, parallel="ddp")

    def fail(step: int) -> None:
        if step == 2 and trainer.rank == 1:
            raise ValueError("broken on one")

    trainer.objective.after_step = fail
    trainer.train()


def test_an_error_on_one_process_ends_the_run(tmp_path):
    with pytest.raises(Exception, match=r"broken on one|exit code|Connection"):
        on_processes(2, _raises_on_one, tmp_path)


class Penalized(DuelObjective):
    """A critic whose gradient is in its loss, by weight more than anything else."""

    def __init__(self, *networks):
        super().__init__(*networks)
        self.roles["critic"] = replace(self.roles["critic"], second_order=True)

    def loss(self, phase, models, batch, draws, step):
        total, logged = super().loss(phase, models, batch, draws, step)
        if phase.name == "critic":
            x = batch.images[:, :1].clone().requires_grad_()
            (slope,) = torch.autograd.grad(models["critic"](x).sum(), x, create_graph=True)
            total = total + 10 * slope.square().mean()
        return total, logged


def penalized_trainer(output: Path, **changes):
    trainer = duel_trainer(output, **changes, objective=Penalized, accumulate=2, max_steps=6)
    assert trainer.parallel.kind == "none" or not is_sharded(next(trainer.networks["critic"].parameters()))
    return trainer


def _penalized(output, kind) -> None:
    penalized_trainer(output, parallel=kind).train()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_gradient_penalties(tmp_path, kind):
    """In shards the gradient of a gradient is lost without a word, so such a network stays whole."""
    equals_one(tmp_path, penalized_trainer(tmp_path / "one"), _penalized, kind)


class ScaledNet(Net):
    """With a single number among the weights, and a weight in another order in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))
        self.blocks[1].weight.data = self.blocks[1].weight.data.T.contiguous().T

    def forward(self, x):
        return self.scale * super().forward(x)


class Scaled(ToyObjective):
    """With a running average of the network, which it is pulled to, and falls back to after step 3."""

    def __init__(self, network):
        super().__init__(network)
        self.roles["average"] = frozen_copy(network)

    def loss(self, phase, models, batch, draws, step):
        error, logged = super().loss(phase, models, batch, draws, step)
        with torch.no_grad():
            behind = models["average"](batch.images)
        return error + (models["net"](batch.images) - behind).square().mean(), logged

    def after_step(self, step):
        average, network = self.roles["average"].network, self.roles["net"].network
        ema_update(average, network, 0.5)
        if step == 3:
            ema_update(network, average, 0.0)

    def state_dict(self):
        return dict(self.roles["average"].network.state_dict())

    def load_state_dict(self, state):
        fill(self.roles["average"].network, state)


def scaled_trainer(output: Path, **changes) -> Trainer:
    torch.manual_seed(0)
    even = {"schedule": {"type": "constant", "warmup": 0}, "accumulate": 2}  # in two parts the same as in one
    settings = {**BASE, **even, "output": output, "optimizer": {"lr": 1e-2, "clip": 0.5}, **changes}
    return Trainer(TrainConfig(**settings), Scaled(ScaledNet()), ToySource())


def _scaled(output, kind) -> None:
    trainer = scaled_trainer(output, parallel=kind, max_steps=4)
    trainer.train()
    scaled_trainer(output, parallel=kind).train()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_single_numbers_any_order_in_memory_and_copies_that_follow(tmp_path, kind):
    equals_one(tmp_path, scaled_trainer(tmp_path / "one"), _scaled, kind)


def test_a_launch_of_fewer_processes_than_asked_for_is_an_error(tmp_path):
    with pytest.raises(TrainingError, match="world_size 2, but 1 process started"):
        toy_trainer(tmp_path, world_size=2)
    assert toy_trainer(tmp_path, world_size=1).world == 1


@pytest.mark.parametrize(
    ("launched", "wanted", "kind"),
    [
        (DistributedType.MULTI_GPU, "auto", "ddp"),
        (DistributedType.FSDP, "auto", "fsdp2"),
        (DistributedType.FSDP, "ddp", "ddp"),
        (DistributedType.MULTI_CPU, "fsdp2", "fsdp2"),
    ],
)
def test_the_kind_follows_the_launch_unless_the_config_says(tmp_path, launched, wanted, kind):
    config = TrainConfig(**BASE, output=tmp_path, parallel=wanted)
    accelerator = SimpleNamespace(num_processes=2, process_index=0, distributed_type=launched)
    assert Parallel(config, accelerator).kind == kind
    accelerator.num_processes = 1
    assert Parallel(config, accelerator).kind == "none"


def test_megatron_is_refused_with_what_to_use_instead(tmp_path):
    accelerator = SimpleNamespace(num_processes=2, process_index=0, distributed_type=DistributedType.MEGATRON_LM)
    with pytest.raises(TrainingError, match=r"Megatron-LM; launch with a file of configs/accelerate"):
        Parallel(TrainConfig(**BASE, output=tmp_path), accelerator)


@pytest.mark.parametrize(
    ("name", "kind"), [("ddp", "MULTI_GPU"), ("fsdp2", "FSDP"), ("deepspeed", "DEEPSPEED"), ("deepspeed_offload", "DEEPSPEED")]
)
def test_accelerate_reads_the_launch_files(name, kind):
    path = Path(__file__).parents[2] / "configs" / "accelerate" / f"{name}.yaml"
    config = load_config_from_file(str(path))
    assert config.distributed_type == kind and config.num_processes == 8 and config.mixed_precision == "no"
    if name == "fsdp2":
        assert config.fsdp_config["fsdp_version"] == 2
    if kind == "DEEPSPEED":
        offload = "cpu" if name.endswith("offload") else "none"
        assert config.deepspeed_config["zero_stage"] == 2 and config.deepspeed_config["offload_optimizer_device"] == offload
