"""The networks of a method in a run: on their device, averaged, cut into shards or wrapped, each with its optimiser."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import nn

from distill.checkpointing.state import RunState, Stateful
from distill.config import OptimizerConfig, TrainConfig
from distill.names import did_you_mean
from distill.optim.ema import Ema, make_averages, write_snapshot
from distill.optim.optimizer import Optimizer
from distill.optim.precision import LossScaler
from distill.optim.table import advice
from distill.parallel import recompute
from distill.parallel.data_parallel import Parallel
from distill.parallel.shards import copy_on_cpu, fill, whole_state
from distill.run_folder import TrainingError
from distill.types import Role


def check_roles(config: TrainConfig, roles: Mapping[str, Role]) -> None:
    """TrainingError where the config's section `roles` names a role that does not train."""
    trained = [name for name, role in roles.items() if role.trains]
    for name in config.roles:
        if name not in trained:
            raise TrainingError(
                f"The section roles names {name!r}: {did_you_mean(name, trained)}Roles that train: {', '.join(trained)}."
            )


class RoleNetworks:
    """networks: every role's. trained: the names of the roles that train; all other tables are of these alone.

    emas: role -> suffix of the file's name -> average. wrapped: what a phase of the role calls in training.
    whole: copies on the CPU that an export fills, on the main process of a run in shards.
    """

    def __init__(self, config: TrainConfig, roles: Mapping[str, Role], parallel: Parallel):
        self.config, self.parallel = config, parallel
        device, main = parallel.accelerator.device, parallel.accelerator.is_main_process
        self.networks = {name: role.network.to(device) for name, role in roles.items()}
        self.trained = [name for name, role in roles.items() if role.trains]
        settings = {name: config.of_role(name) for name in self.trained}
        self.schedules = {name: schedule for name, (_, schedule, _, _) in settings.items()}
        self.every = {name: every for name, (_, _, _, every) in settings.items()}
        self.emas: dict[str, dict[str, Ema]] = {
            name: make_averages(self.networks[name], settings[name][2]) for name in self.trained if roles[name].ema
        }
        # the export is written from whole networks: the main process keeps copies where networks are cut into shards
        self.sharded = parallel.kind == "fsdp2"
        self.whole = {name: copy_on_cpu(self.networks[name]) for name in self.trained if self.sharded and main}
        for name, role in roles.items():
            if role.trains or role.follows:
                for network in (self.networks[name], *(ema.network for ema in self.emas.get(name, {}).values())):
                    parallel.shard(network, whole=role.second_order)
        if config.gradient_checkpointing:
            self._recompute()
        if config.compile:  # in place and after the copies, so that names and checkpoints stay as they are
            for name in self.trained:
                if not roles[name].second_order:  # compiled code has no gradient of its gradient
                    self.networks[name].compile()
        self.optimizers = {name: self._optimizer(self.networks[name], settings[name][0]) for name in self.trained}
        if main:
            for name in self.trained:
                for sentence in advice(settings[name][0], settings[name][1]):
                    warnings.warn(sentence, stacklevel=2)
        self.scalers = {name: LossScaler(config.precision == "fp16") for name in self.trained}
        # optimisers and data stay ours, so nothing scales the learning rate or reorders samples
        self.wrapped = {name: parallel.replicate(self.networks[name]) for name in self.trained}

    def _recompute(self) -> None:
        if not sum(recompute.enable(self.networks[name]) for name in self.trained):
            kinds = ", ".join(sorted({type(self.networks[name]).__name__ for name in self.trained}))
            raise TrainingError(
                f"gradient_checkpointing is for networks of blocks (uvit, dit, dimr, diffusers'), not {kinds}; leave it out."
            )

    def _optimizer(self, network: nn.Module, config: OptimizerConfig) -> Optimizer:
        if self.parallel.kind != "zero":
            return Optimizer(network, config, self.config.max_steps)
        from distill.optim.zero import ZeroOptimizer

        return ZeroOptimizer(network, config, self.parallel.zero, self.config.max_steps)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, trained networks have the weights that their optimisers are for, where these train others. Every process must
        enter alike."""
        with ExitStack() as stack:
            for optimizer in self.optimizers.values():
                stack.enter_context(optimizer.evaluating())
            yield

    @property
    def averaged(self) -> dict[str, nn.Module]:
        """Every role's network, the (first) averaged copy where there is one."""
        shown = {name: next(iter(emas.values())).network for name, emas in self.emas.items()}
        return {name: shown.get(name, network) for name, network in self.networks.items()}

    def state(self, objective: Stateful) -> RunState:
        """What a checkpoint holds of these networks and of the method."""
        trained = {name: self.networks[name] for name in self.trained}
        return RunState(trained, self.optimizers, self.scalers, self.emas, objective, self.parallel)

    @torch.no_grad()
    def average(self, run: Path, step: int) -> None:
        """Update every average after a step (0-based), and write the snapshots that the config asks for."""
        main = self.parallel.accelerator.is_main_process
        for name, emas in self.emas.items():
            every = self.config.of_role(name)[2].snapshot_every
            with self.optimizers[name].evaluating():
                for ema in emas.values():
                    ema.update(self.networks[name], step)
            for suffix, ema in emas.items():
                if every and (step + 1) % every == 0:
                    whole = whole_state(ema.network, keep=main)
                    if main:
                        write_snapshot(run, name, suffix, step + 1, whole)

    def exported(self) -> dict[str, nn.Module]:
        """The averaged networks, whole on the main process. Every process must call this alike."""
        models, main = self.averaged, self.parallel.accelerator.is_main_process
        for name in self.trained if self.sharded else ():
            state = whole_state(models[name], keep=main)
            if name in self.whole:
                fill(self.whole[name], state)
        return {**models, **self.whole}
