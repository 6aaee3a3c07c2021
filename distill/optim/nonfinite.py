"""Losses and gradients that are not finite: noticed on every update, by all processes at once, before a weight changes."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from distill.config import TrainConfig
from distill.optim.precision import LossScaler
from distill.parallel.data_parallel import Parallel
from distill.run_folder import TrainingError
from distill.types import Batch, Phase

ADVICE = (
    "Lower the learning rate, or resume from the last checkpoint with precision=fp32 to see whether the number format is the "
    "cause; on_nonfinite=skip leaves such updates out."
)


class NonFiniteGuard:
    """Decides whether an update may happen. What it finds is a line of run/nonfinite.jsonl, sample numbers included."""

    def __init__(self, config: TrainConfig, parallel: Parallel):
        self.config, self.parallel = config, parallel
        self.skipped = 0  # in a row
        self.made = 0  # updates that happened

    def allows(
        self, phase: Phase, step: int, losses: list[Tensor], norm: Tensor, batches: list[Batch], scaler: LossScaler
    ) -> bool:
        """True where all losses and the gradient norm are finite. False where the update is to be left out: because the loss
        scale was too large, or because the config says `skip`. TrainingError where the run must stop."""
        bad = ~torch.isfinite(torch.stack([value.float() for value in (*losses, norm)]))
        # one transfer, as every one makes a GPU wait
        found = self.parallel.mean(torch.stack([bad[:-1].any(), bad[-1]]).float()).tolist()
        loss_is_bad, norm_is_bad = found[0] > 0, found[1] > 0
        if not loss_is_bad:
            scaler.update(norm_is_bad)
        if not loss_is_bad and not norm_is_bad:
            self.skipped = 0
            self.made += 1
            return True
        if not loss_is_bad and scaler.enabled and not scaler.exhausted:
            return False
        problem = self._describe(phase, step, losses, norm if not loss_is_bad else None, batches)
        self.skipped += 1
        if self.config.on_nonfinite == "stop":
            raise TrainingError(f"{problem} {ADVICE}")
        if self.skipped > self.config.max_skips:
            raise TrainingError(f"{problem} {self.config.max_skips} updates in a row were skipped before it. {ADVICE}")
        if self.parallel.rank == 0:
            tqdm.write(f"{problem} The update is skipped.")
        return False

    def check_made(self) -> None:
        """TrainingError where every update was skipped: what would be exported is the network as it began."""
        if self.skipped and not self.made:
            raise TrainingError(
                f"All {self.skipped} updates were skipped, as none had a finite loss and gradient, so nothing was trained or "
                f"exported. {ADVICE}"
            )

    def _describe(self, phase: Phase, step: int, losses: list[Tensor], norm: Tensor | None, batches: list[Batch]) -> str:
        """norm: None where some process's loss is the cause."""
        wrong = [(loss, batch) for loss, batch in zip(losses, batches, strict=True) if not torch.isfinite(loss)]
        if wrong:
            value, index = float(wrong[0][0]), wrong[0][1].index
            what = f"the loss of phase {phase.name!r}"
        elif norm is not None:
            value, index = float(norm), torch.cat([batch.index for batch in batches])
            what = f"the gradient norm of phase {phase.name!r}"
        else:
            return f"At step {step}, a loss of phase {phase.name!r} (role {phase.role!r}) in another process is not finite."
        row = {"step": step, "phase": phase.name, "role": phase.role, "what": what, "value": str(value)}
        with open(Path(self.config.output) / "nonfinite.jsonl", "a") as file:
            file.write(json.dumps({**row, "samples": index.tolist()}) + "\n")
        return f"At step {step}, {what} (role {phase.role!r}) is {value} on samples {int(index[0])} to {int(index[-1])}."
