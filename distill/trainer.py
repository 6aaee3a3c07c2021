"""The training loop: one for every objective.

Step k of a run uses the samples with counters k B ... (k + 1) B - 1, B the global batch. Every random number is a function
of the seed and a counter, and the learning rate a function of the step, so the step number and the saved tensors are the
whole state: 2N steps equal N, a resume, and N more, bit for bit, and ranks share the stream without talking.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from distill import checkpoint as checkpoints
from distill.config import TrainConfig
from distill.data import Source
from distill.ema import Ema
from distill.objective import Batch, Draws, Objective, Phase
from distill.optim import Optimizer, lr_factor


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says what happened, where, and what to do."""


class Trainer:
    """Runs an objective on a data source as a config says."""

    def __init__(self, config: TrainConfig, objective: Objective, source: Source):
        self.config, self.objective, self.source = config, objective, source
        self.run = Path(config.output)
        if config.threads:
            torch.set_num_threads(config.threads)
        # launch, devices and DDP are accelerate's; precision is ours, as its global state takes one for all runs of a process
        self.accelerator = Accelerator(cpu=config.device == "cpu", mixed_precision="no")
        if config.device == "cuda" and self.accelerator.device.type != "cuda":
            raise TrainingError("device: cuda was asked for, but no CUDA device is available; use device=cpu or auto.")
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        shares = self.world * config.accumulate
        if config.batch_size % shares:
            raise TrainingError(
                f"batch_size {config.batch_size} does not split into {self.world} processes x {config.accumulate} "
                f"micro-batches; use a multiple of {shares}."
            )
        self.micro = config.batch_size // shares
        device = self.accelerator.device
        self.networks = {name: role.network.to(device) for name, role in objective.roles.items()}
        trained = [name for name, role in objective.roles.items() if role.trains]
        self.emas = {n: Ema(self.networks[n], config.ema.decay) for n in trained if objective.roles[n].ema}
        self.optimizers = {name: Optimizer(self.networks[name], config.optimizer) for name in trained}
        if config.compile:  # in place and after the copy for the average, so that names and checkpoints stay as they are
            for name in trained:
                self.networks[name].compile()
        # accelerate wraps for DDP; optimisers and data stay ours, so nothing scales the learning rate or reorders samples.
        self.models = {n: self.accelerator.prepare_model(m) if n in trained else m for n, m in self.networks.items()}
        self.step = 0

    @property
    def averaged(self) -> dict[str, torch.nn.Module]:
        """Every role's network, the averaged copy where there is one."""
        return {name: self.emas[name].network if name in self.emas else net for name, net in self.networks.items()}

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
        optimizer, model = self.optimizers[phase.role], self.models[phase.role]
        optimizer.zero_grad()
        logged: dict[str, Tensor] = {}
        for micro, batch in enumerate(batches):
            draws = Draws(self.config.seed, batch.index, phase.name)
            last = micro == len(batches) - 1
            with nullcontext() if last else self.accelerator.no_sync(model):
                with self._autocast():
                    loss, scalars = self.objective.loss(phase, self.models, batch.to(self.accelerator.device), draws, step)
                self._require_finite(loss, f"the loss of phase {phase.name!r}", batch, step)
                self.accelerator.backward(loss / len(batches))
            for name, value in {"loss": loss.detach(), **scalars}.items():
                logged[name] = logged.get(name, 0) + value.float() / len(batches)
        factor = lr_factor(step, self.config.max_steps, self.config.schedule)
        norm = optimizer.step(factor)
        self._require_finite(norm, f"the gradient of role {phase.role!r}", batches[-1], step)
        return {**logged, "grad_norm": norm, "lr_factor": torch.tensor(factor)}

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=enabled)

    def _require_finite(self, value: Tensor, what: str, batch: Batch, step: int) -> None:
        if not torch.isfinite(value):
            first, last = int(batch.index[0]), int(batch.index[-1])
            raise TrainingError(
                f"At step {step}, {what} is {value.item()} on samples {first} to {last}. Lower the learning rate, or resume "
                "from the last checkpoint with precision=fp32 to see whether the number format is the cause."
            )

    # ---- the run ----

    def train(self) -> None:
        """Train to max_steps, resuming from the run's newest good checkpoint if it has one."""
        config, main = self.config, self.accelerator.is_main_process
        with _run_lock(self.run) if main else nullcontext(), _finish_on_signal() as stopped:
            checkpoints.clean(self.run) if main else None
            self.accelerator.wait_for_everyone()
            self._resume()
            bar = tqdm(total=config.max_steps, initial=self.step, disable=not main, unit="step", smoothing=0.05)
            since, window, last_saved = time.perf_counter(), [], self.step
            for batches in self._batches(self.step):
                scalars: dict[str, Tensor] = {}
                for phase in self.objective.phases(self.step):
                    values = self._update(phase, batches, self.step)
                    prefix = "" if len(self.objective.roles) == 1 else f"{phase.name}/"
                    scalars |= {prefix + name: value for name, value in values.items()}
                for name, ema in self.emas.items():
                    ema.update(self.networks[name], self.step)
                self.objective.after_step(self.step)
                self.step += 1
                window.append(scalars)
                bar.update()
                done = self.step == config.max_steps
                if main and (self.step % config.log_every == 0 or done):
                    elapsed, since = time.perf_counter() - since, time.perf_counter()
                    self._log(bar, window, elapsed)
                    window.clear()
                if main and config.preview_every and (self.step % config.preview_every == 0 or done):
                    self._preview(batches[0])
                if main and config.measure_every and (self.step % config.measure_every == 0 or done):
                    self._write_log({"step": self.step, **self.objective.measure(self.averaged)})
                if self.step % config.checkpoint_every == 0 or done or stopped():
                    self.save()
                    last_saved = self.step
                if stopped():
                    break
            bar.close()
            if stopped():
                tqdm.write(f"Stopped by a signal at step {last_saved}; run the same command again to continue.")
                raise SystemExit(128 + stopped())
            if main:
                self.objective.export(self.averaged, self.run / "export")

    def _log(self, bar: tqdm, window: list[dict[str, Tensor]], elapsed: float) -> None:
        means = {name: float(sum(float(row[name]) for row in window) / len(window)) for name in window[-1]}
        speed = len(window) * self.config.batch_size / elapsed
        bar.set_postfix(loss=f"{next(iter(means.values())):.4f}", samples=f"{speed:.0f}/s")
        self._write_log({"step": self.step, "samples_per_second": round(speed, 2), **means})

    def _write_log(self, row: dict[str, float]) -> None:
        with open(self.run / "log.jsonl", "a") as file:
            file.write(json.dumps({"time": round(time.time(), 1), **row}) + "\n")

    def _preview(self, batch: Batch) -> None:
        from gen.grid import contact_sheet, to_pictures, write_png

        with torch.no_grad():
            shown = self.objective.preview(self.averaged, batch.to(self.accelerator.device), self.config.seed)
        if shown is not None:
            folder = self.run / "previews"
            folder.mkdir(exist_ok=True)
            images, captions = shown
            write_png(contact_sheet(to_pictures(images), captions), folder / f"{self.step:08d}.png")

    # ---- checkpoints ----

    def save(self) -> None:
        """Save the step; the main process writes, the others wait."""
        if self.accelerator.is_main_process:
            tensors = {name: self.networks[name].state_dict() for name in self.optimizers}
            tensors |= {f"ema-{name}": ema.network.state_dict() for name, ema in self.emas.items()}
            tensors |= {f"optim-{name}": optimizer.state_dict() for name, optimizer in self.optimizers.items()}
            if own := self.objective.state_dict():
                tensors["objective"] = own
            state = {"config": self.config.model_dump(mode="json"), "world_size": self.world}
            checkpoints.save(self.run, checkpoints.Checkpoint(self.step, tensors, state), self.config.keep)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        saved = checkpoints.load_latest(self.run)
        if saved is None:
            return
        if saved.state["config"]["network"] != self.config.model_dump(mode="json")["network"]:
            raise TrainingError(
                f"{self.run} holds a run of another network. Give another output, or the network section it was begun with."
            )
        try:
            for name in self.optimizers:
                self.networks[name].load_state_dict(dict(saved.tensors[name]))
                self.optimizers[name].load_state_dict(saved.tensors[f"optim-{name}"])
            for name, ema in self.emas.items():
                ema.network.load_state_dict(dict(saved.tensors[f"ema-{name}"]))
            self.objective.load_state_dict(saved.tensors.get("objective", {}))
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(f"{checkpoints.folder_of(self.run, saved.step)} does not fit this config: {error}") from None
        self.step = saved.step
        if self.accelerator.is_main_process:
            tqdm.write(f"Resuming {self.run} at step {self.step}.")


@contextmanager
def _run_lock(run: Path) -> Iterator[None]:
    """One process tree per run folder. A lock whose owner is gone is taken over."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        lock = run / "lock"
        if lock.exists():
            owner = lock.read_text().strip()
            if owner.isdigit() and Path(f"/proc/{owner}").exists() and int(owner) != os.getpid():
                raise TrainingError(f"{run} is in use by process {owner}; stop it, or give another output.")
        lock.write_text(f"{os.getpid()}\n")
    except OSError as error:
        raise TrainingError(f"{run} cannot be written ({error.strerror}); give another output.") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


@contextmanager
def _finish_on_signal() -> Iterator[Callable[[], int]]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the step; a second one acts at once."""
    received = 0

    def request(number, frame):
        nonlocal received
        received = number
        signal.signal(number, previous[number])

    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request)
    except ValueError:  # not in the main thread: signals stay with whoever owns it
        previous = {}
    try:
        yield lambda: received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
