"""Which settings of DeepSpeed a run takes from the file that accelerate was launched with, and which it refuses."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from distill.run_folder import TrainingError

NOWHERE = (None, "none")


def zero_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an engine, from the DeepSpeed configuration that accelerate was launched with.

    TrainingError for what would be asked for in vain: other stages, weights or a disk to offload, and sections about what the
    training config decides.
    """

    def refuse(found: str, instead: str) -> None:
        raise TrainingError(f"The DeepSpeed configuration has {found}; {instead}.")

    settings = _without_auto(given)
    zero = settings.setdefault("zero_optimization", {})
    stage = zero.get("stage", 0)
    weights = zero.pop("offload_param", None) or {}
    if stage == 3 or weights.get("device") not in NOWHERE:
        refuse("ZeRO-3" if stage == 3 else "offload_param", "launch with configs/accelerate/fsdp2.yaml to cut weights as well")
    if stage not in (1, 2):
        refuse(f"ZeRO stage {stage}", "use stage 1 or 2, or launch with configs/accelerate/ddp.yaml")
    target = (zero.get("offload_optimizer") or {}).get("device")
    if target not in (*NOWHERE, "cpu"):
        refuse(f"offload_optimizer to {target}", "stages 1 and 2 can offload to cpu")
    for name, ours in {"optimizer": "optimizer", "scheduler": "schedule"}.items():
        if name in settings:
            refuse(f"a section {name}", f"leave it out, as the training config's section {ours} decides")
    for name in ("fp16", "bf16", "amp", "torch_autocast"):
        if settings.pop(name, {}).get("enabled"):
            refuse(
                f"{name} enabled", "leave it out: weights are float32, and the training config's `precision` decides the rest"
            )
    decided = {"gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1, "steps_per_print": None}  # in our loop
    settings.pop("train_batch_size", None)
    # torch's optimisers, on the CPU as well
    return {**settings, **decided, "zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}


def _without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what is left to be filled in, which is DeepSpeed's default then."""
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else copy.deepcopy(value)
        for key, value in settings.items()
        if value != "auto"
    }
