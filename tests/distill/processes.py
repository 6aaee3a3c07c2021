"""Several processes on this machine for a test, by fork: nothing is imported again, so that they start at once."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState


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


def on_processes(world: int, function: Callable, *arguments) -> None:
    """Run function(*arguments) in `world` processes of one gloo group; raises where one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
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
