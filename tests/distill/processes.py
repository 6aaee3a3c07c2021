"""Several processes on this machine for a test, by fork: nothing is imported again, so that they start at once.

What training imports only when it begins is imported here, once, and not again by every process (two seconds in each)."""

from __future__ import annotations

import importlib
import itertools
import os
import socket
from collections.abc import Callable

import torch
import torch._dynamo  # by torch's optimisers
import torch.distributed as dist
import torch.distributed.fsdp
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState

# below those that the system gives to connections, one of which could be taken before it is listened on
PORTS = itertools.cycle(range(20000 + os.getpid() % 100 * 100, 20100 + os.getpid() % 100 * 100))


def _run(rank: int, world: int, port: int, function: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)  # the threads of a pool do not survive a fork, and whoever waits for them waits for ever
    AcceleratorState._reset_state(True)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )
    function(*arguments)
    if dist.is_initialized():
        dist.destroy_process_group()


def _free_port() -> int:
    for port in itertools.islice(PORTS, 1000):
        with socket.socket() as free:
            try:
                free.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise OSError("no port is free for a group of processes")


def on_processes(world: int, function: Callable, *arguments) -> None:
    """Run function(*arguments) in `world` processes of one gloo group; raises where one fails."""
    port = _free_port()
    mp.start_processes(_run, args=(world, port, function, arguments), nprocs=world, start_method="fork")


def forked(function: Callable[[], None]) -> int:
    """The id of a new process that runs the function and ends."""
    process = os.fork()
    if process == 0:
        try:
            torch.set_num_threads(1)
            function()
        finally:
            os._exit(0)
    return process


def launched(stage: int = 2, offload: str = "none") -> None:
    """What `accelerate launch` tells the processes of configs/accelerate/deepspeed.yaml."""
    # an operation for inference on CPUs, compiled at its first use; `deepspeed.comm.torch` as an attribute is torch itself
    importlib.import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    os.environ.pop("ACCELERATE_USE_CPU")
    os.environ.update(
        ACCELERATE_USE_DEEPSPEED="true",
        ACCELERATE_DEEPSPEED_ZERO_STAGE=str(stage),
        ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE=offload,
        CUDA_VISIBLE_DEVICES="",
    )
