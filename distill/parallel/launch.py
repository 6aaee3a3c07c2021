"""How a run's processes were started: devices and launch are accelerate's (`accelerate launch`, or torchrun)."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, is_deepspeed_available

from distill.config import TrainConfig
from distill.run_folder import TrainingError
from gen.io.extras import install


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Launch and devices are accelerate's; precision is ours, as its global state takes one for all runs of a process."""
    zero = os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"
    handlers = []
    if zero:
        if not is_deepspeed_available():
            raise TrainingError(f"DeepSpeed is not installed; install it: {install('deepspeed')}.")
        if "LOCAL_RANK" not in os.environ:
            raise TrainingError(
                "DeepSpeed wants launched processes, one or more: `accelerate launch` or torch.distributed.run."
            )
        if not torch.cuda.is_available():  # accelerate starts DeepSpeed on CPUs only where it is told how they talk
            handlers = [InitProcessGroupKwargs(backend="gloo")]
        elif config.device == "cpu":
            raise TrainingError("DeepSpeed takes the GPUs that it sees; for device=cpu set CUDA_VISIBLE_DEVICES to nothing.")
    accelerator = Accelerator(
        cpu=config.device == "cpu" and not zero,
        mixed_precision="no",
        log_with=list(config.trackers) or None,
        project_dir=config.output,
        kwargs_handlers=handlers,
    )
    if zero and accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise TrainingError(
            "accelerate leaves DeepSpeed out with use_cpu: true; set it to false, and CUDA_VISIBLE_DEVICES to nothing."
        )
    return accelerator


RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")


def asked_for_more(environment: Mapping[str, str], parent: Mapping[str, str] | None) -> str:
    """ " (to meet at ADDRESS)" where `accelerate launch` on CPUs was asked for several processes and started this one alone.

    Its simple launcher sets the address at which processes meet only where there are to be several, and gives none a rank; ""
    where that is not so. parent: the environment of the process that launched; an address from there is not accelerate's
    word. None: not known.
    """
    address = environment.get("MASTER_ADDR")
    if address is None or "ACCELERATE_USE_CPU" not in environment or any(name in environment for name in RANKS):
        return ""
    return "" if parent is not None and "MASTER_ADDR" in parent else f" (to meet at {address})"


def parent_environment() -> dict[str, str] | None:
    """The environment of the process that started this one, where the system tells."""
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            rows = file.read(1 << 20).decode("utf-8", "replace").split("\0")
    except OSError:
        return None
    return dict(row.split("=", 1) for row in rows if "=" in row)
