"""The training loop: one for every objective.

Step k of a run uses the samples with counters k B ... (k + 1) B - 1, B the global batch. Every random number is a function
of the seed and a counter, and the learning rate a function of the step, so the step number and the saved tensors are the
whole state: 2N steps equal N, a resume, and N more, bit for bit, and ranks share the stream without talking.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill.checkpointing import folder as checkpoints
from distill.checkpointing.resume import resume
from distill.config import TrainConfig
from distill.data.source import Source
from distill.eval.during_training import TrainingEvaluation
from distill.eval.validation import Validation
from distill.logs import Log, check_trackers
from distill.objectives.bases.objective import Objective
from distill.optim.nonfinite import NonFiniteGuard
from distill.optim.precision import autocast
from distill.optim.schedule import lr_factor
from distill.parallel.data_parallel import Parallel
from distill.parallel.host_memory import keep_freed_memory
from distill.parallel.launch import make_accelerator
from distill.role_networks import RoleNetworks, check_roles
from distill.run_folder import TrainingError, finish_on_signal, run_lock
from distill.types import Batch, Draws, Phase
from gen.io.folders import written_folder
from gen.io.user_code import imported

__all__ = ["Trainer", "TrainingError"]


class Trainer:
    """Runs an objective on a data source as a config says."""

    def __init__(self, config: TrainConfig, objective: Objective, source: Source, held_out: Source | None = None):
        """held_out: the samples whose loss the config's section `validation` asks for."""
        self.config, self.objective, self.source = config, objective, source
        self.run = Path(config.output)
        if config.threads:
            torch.set_num_threads(config.threads)
        check_trackers(config.trackers)
        self.accelerator = make_accelerator(config)
        self.parallel = Parallel(config, self.accelerator)
        self.world, self.rank = self.parallel.world, self.parallel.rank
        check_machine(config, self.accelerator.device, self.world)
        check_roles(config, objective.roles)
        if self.accelerator.device.type == "cpu":
            keep_freed_memory()
        self.micro = config.batch_size // (self.world * config.accumulate)
        self.roles = RoleNetworks(config, objective.roles, self.parallel)
        self.state = self.roles.state(objective)
        self.guard, self.log = NonFiniteGuard(config, self.parallel), Log(config, self.accelerator, self.parallel)
        self.evaluation = self._make_evaluation(held_out)
        self.validation = self._make_validation(held_out)
        self.step = 0
        self._inputs: dict[str, dict[str, Any]] | None = None

    def _make_evaluation(self, held_out: Source | None) -> TrainingEvaluation | None:
        config = self.config
        if config.evaluation is None or not self._takes_part:
            return None
        shown = self.source if held_out is None else held_out
        return TrainingEvaluation(config, config.evaluation, self.objective, shown, self.accelerator.device)

    def _make_validation(self, held_out: Source | None) -> Validation | None:
        config = self.config
        if config.validation is None:
            return None
        if held_out is None:
            raise TrainingError("The section validation needs held-out data, which this run was not given.")
        return Validation(config, config.validation, self.objective, held_out, self.parallel, self.micro)

    # ---- the networks, by role ----

    @property
    def networks(self) -> dict[str, nn.Module]:
        """Every role's network."""
        return self.roles.networks

    @property
    def averaged(self) -> dict[str, nn.Module]:
        """Every role's network, the (first) averaged copy where there is one."""
        return self.roles.averaged

    @property
    def _takes_part(self) -> bool:
        """Does this process call networks for previews and measurements? With shards every process must, and the main one
        writes."""
        return self.accelerator.is_main_process or self.roles.sharded

    # ---- what the run reads ----

    def inputs(self) -> dict[str, dict[str, Any]]:
        """What the run reads, by name, with a hash of each: whether it is the same is told when a run goes on."""
        if self._inputs is None:
            given: Any = self.source
            data = {"data": {"digest": given.digest(), "count": len(given)}} if hasattr(given, "digest") else {}
            self._inputs = data | {name: {"digest": value} for name, value in self.objective.inputs().items()}
        return self._inputs

    def _check_inputs(self) -> None:
        """TrainingError, on all processes, where they read different data or weights."""
        everyone = self.parallel.gather(self.inputs())
        for name in everyone[0]:
            if any(other.get(name) != everyone[0][name] for other in everyone):
                raise TrainingError(f"The processes do not read the same {name}; give all machines the same files.")

    # ---- one step ----

    def counters(self, step: int, micro: int) -> range:
        """The sample counters of this rank's micro-batch."""
        start = step * self.config.batch_size + (self.rank * self.config.accumulate + micro) * self.micro
        return range(start, start + self.micro)

    def _batches(self, first: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step from `first` on, made ahead of time in a thread if the config says so."""

        def make(step: int) -> list[Batch]:
            return [self.source.batch(self.counters(step, micro)) for micro in range(self.config.accumulate)]

        if not self.config.prefetch:
            yield from map(make, range(first, self.config.max_steps))
            return
        with ThreadPoolExecutor(1) as pool:
            ahead = pool.submit(make, first)
            for step in range(first, self.config.max_steps):
                ready = ahead.result()
                if step + 1 < self.config.max_steps:
                    ahead = pool.submit(make, step + 1)
                yield ready

    def _update(self, phase: Phase, batches: list[Batch], step: int) -> dict[str, Tensor]:
        """One optimiser update; returns the logged scalars, averaged over micro-batches."""
        config, roles, role = self.config, self.roles, phase.role
        optimizer, scaler = roles.optimizers[role], roles.scalers[role]
        # only the phase's own network is called through DDP, whose gradients alone are wanted
        models, share = {**roles.networks, role: roles.wrapped[role]}, scaler.scale / len(batches)
        # other networks' weights need no gradients; a sharded network has other tensors in its graph than its parameters
        alone = len(roles.optimizers) > 1 and not roles.sharded
        inputs = optimizer.parameters if alone else None
        optimizer.zero_grad()
        logged: dict[str, Tensor] = {}
        losses = []
        for micro, batch in enumerate(batches):
            draws = Draws(config.seed, batch.index, phase.name)
            last = micro == len(batches) - 1
            with self.parallel.no_sync(models[role], skip=not last):
                with autocast(self.accelerator.device, config.precision):
                    loss, scalars = self.objective.loss(phase, models, batch.to(self.accelerator.device), draws, step)
                optimizer.backward(loss * share, last, inputs)
            losses.append(loss.detach())
            for name, value in {"loss": loss.detach(), **scalars}.items():
                logged[name] = logged.get(name, 0) + value.float() / len(batches)
        factor = lr_factor(step, config.max_steps, roles.schedules[role])
        for other in roles.optimizers.values():
            if other is not optimizer:
                other.zero_grad()
        scaler.unscale(optimizer.parameters)
        norm = optimizer.clip_gradients()
        allowed = self.guard.allows(phase, step, losses, norm, batches, scaler)
        if allowed:
            optimizer.step(factor)
            logged |= {"grad_norm": norm, "lr_factor": torch.tensor(factor)}
        else:
            optimizer.discard()
        may_skip = scaler.enabled or config.on_nonfinite == "skip"
        rate = {"skipped": torch.tensor(float(not allowed))} if may_skip else {}
        return {**(logged if allowed else {}), **rate}

    # ---- the run ----

    def train(self) -> None:
        """Train to max_steps, resuming as the config says."""
        config, main = self.config, self.accelerator.is_main_process
        with run_lock(self.run) if main else nullcontext(), finish_on_signal() as received:
            checkpoints.clean(self.run) if main else None
            self.accelerator.wait_for_everyone()
            self._check_inputs()
            self.step = resume(self.state, config, self.inputs)
            if self.evaluation is not None and self.step < config.max_steps:
                self.evaluation.prepare()
            self.log.start(self.step)
            stopped = False
            for batches in self._batches(self.step):
                if self.step == 0 and (config.preview_every or config.export_every):
                    self._preview(batches[0])
                scalars: dict[str, Tensor] = {}
                for phase in self.objective.phases(self.step):
                    if self.step % self.roles.every[phase.role] == 0:
                        values = self._update(phase, batches, self.step)
                        prefix = "" if len(self.objective.roles) == 1 else f"{phase.name}/"
                        scalars |= {prefix + name: value for name, value in values.items()}
                self.roles.average(self.run, self.step)
                self.objective.after_step(self.step)
                self.step += 1
                self.log.add(scalars)
                done = self.step == config.max_steps
                if done:
                    self.guard.check_made()
                if self.step % config.log_every == 0 or done:
                    self.log.write_window(self.step)
                sheet_every = [every for every in (config.preview_every, config.export_every) if every]
                self._look(batches[0], sheet=any(self.step % every == 0 for every in sheet_every) or bool(sheet_every and done))
                stopped = self.parallel.any(bool(received()))
                if self.step % config.checkpoint_every == 0 or done or stopped:
                    self.save()
                if config.export_every and self.step % config.export_every == 0 and not done:
                    self._export(self.run / "exports" / f"step-{self.step:08d}")
                if stopped:
                    break
            self.log.close()
            if stopped:
                if main:
                    tqdm.write(f"Stopped by a signal at step {self.step}; run the same command again to continue.")
                raise SystemExit(128 + (received() or 15))
            self._export(self.run / "export")

    def _look(self, batch: Batch, sheet: bool) -> None:
        """Whatever the config wants to see after this step."""
        config, done = self.config, self.step == self.config.max_steps

        def due(every: int) -> bool:
            return bool(every) and (self.step % every == 0 or done)

        validate = self.validation is not None and due(self.validation.config.every)
        evaluate = config.evaluation is not None and due(config.evaluation.every)  # on all processes alike
        if not (sheet or due(config.measure_every) or validate or evaluate):
            return
        with self.roles.evaluating():
            if sheet:
                self._preview(batch)
            if due(config.measure_every):
                self._measure()
            if self.validation is not None and validate:
                self.log.write({"step": self.step, **self.validation.measure(self.networks, self.averaged, self.step)})
            if self.evaluation is not None and evaluate:
                self._evaluate(self.evaluation)

    def _preview(self, batch: Batch) -> None:
        from gen.io.contact_sheet import contact_sheet, to_pictures, write_png

        if not self._takes_part:
            return
        with torch.no_grad():
            shown = self.objective.preview(self.averaged, batch.to(self.accelerator.device), self.config.seed)
        if shown is not None and self.accelerator.is_main_process:
            folder = self.run / "samples"
            folder.mkdir(exist_ok=True)
            images, captions = shown
            write_png(contact_sheet(to_pictures(images), captions), folder / f"{self.step:08d}.png")

    def _measure(self) -> None:
        if self._takes_part:
            self.log.write({"step": self.step, **self.objective.measure(self.averaged)})

    def _evaluate(self, evaluation: TrainingEvaluation) -> None:
        from gen.io.contact_sheet import write_png

        evaluation.draw(self.averaged)
        if self.accelerator.is_main_process:
            self.log.write_evaluation(self.step, evaluation.scores())
            folder = self.run / "evaluations"
            folder.mkdir(exist_ok=True)
            write_png(evaluation.sheet(), folder / f"{self.step:08d}.png")

    def _export(self, target: Path) -> None:
        """Write the averaged networks where they can be used."""
        with self.roles.evaluating():
            models = self.roles.exported()
            if self.accelerator.is_main_process:
                with written_folder(target) as folder:
                    self.objective.export(models, folder)

    def save(self) -> None:
        """Save the step: all processes collect, the main one writes."""
        tensors = self.state.gather(self.step)
        if self.accelerator.is_main_process:
            state = {"config": self.config.model_dump(mode="json"), "world_size": self.world, "inputs": self.inputs()}
            if files := imported():
                state["imported"] = files
            saved = checkpoints.Checkpoint(self.step, tensors, state)
            checkpoints.save(self.run, saved, self.config.keep, self.config.keep_every)
        self.accelerator.wait_for_everyone()


def check_machine(config: TrainConfig, device: torch.device, world: int) -> None:
    """TrainingError where the config asks for what this device or this number of processes cannot do."""
    if config.device == "cuda" and device.type != "cuda":
        raise TrainingError("device: cuda was asked for, but no CUDA device is available; use device=cpu or auto.")
    if config.precision == "fp16" and device.type != "cuda":
        raise TrainingError(f"precision: fp16 is for CUDA, and this run is on {device.type}; use precision=bf16 or fp32.")
    shares = world * config.accumulate
    if config.batch_size % shares:
        raise TrainingError(
            f"batch_size {config.batch_size} does not split into {world} processes x {config.accumulate} "
            f"micro-batches; use a multiple of {shares}."
        )
