"""Several processes: replicas (DDP) or shards (FSDP2) of the trained networks, and what the processes tell one another.

Launching is accelerate's (`accelerate launch`, or torchrun); a single process needs none of this, and every function below
then does nothing. Sharded tensors are DTensors: `full` collects one, `laid_out` cuts one, `local` is this process's part.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from distill.config import TrainConfig
from distill.run_folder import TrainingError
from gen.backbones.blocks import MLP, SelfAttention


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This process's part, which shares memory with the whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """The whole tensor. Every process must call this alike."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def laid_out(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, which every process has, on the device and with the layout of another of its shape."""
    value = value.to(like.device)
    if not is_sharded(like):  # in the same order in memory: fused kernels take that for granted
        return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


class Parallel:
    """How one run's trained networks are spread. `kind`: none, ddp or fsdp2."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator):
        self.accelerator = accelerator
        self.world, self.rank = accelerator.num_processes, accelerator.process_index
        launched = accelerator.distributed_type
        if config.world_size not in (None, self.world):
            raise TrainingError(
                f"The config asks for world_size {config.world_size}, but {self.world} process{'es' * (self.world > 1)} "
                "started; launch with `accelerate launch --num_processes N -m distill.train`, or on CPUs with "
                "`python -m torch.distributed.run --nproc_per_node N -m distill.train`."
            )
        if launched in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
            raise TrainingError(
                f"accelerate was launched with {launched.value}, which takes over optimiser and checkpoints; launch with "
                "configs/accelerate/fsdp2.yaml, which shards weights, gradients and optimiser state alike."
            )
        sharded = launched == DistributedType.FSDP if config.parallel == "auto" else config.parallel == "fsdp2"
        self.kind = "none" if self.world == 1 else "fsdp2" if sharded else "ddp"

    def shard(self, network: nn.Module) -> None:
        """Cut a network's parameters over the processes, in place; nothing to do unless kind is fsdp2.

        Attention and MLPs are gathered one at a time. Not whole blocks: networks read some of a block's weights (the keys of
        text) outside of its forward pass.
        """
        if self.kind != "fsdp2":
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.accelerator.device.type, (self.world,))
        for module in network.modules():
            if isinstance(module, SelfAttention | MLP) and any(p.requires_grad for p in module.parameters()):
                fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh)

    def replicate(self, network: nn.Module) -> nn.Module:
        """The module to call in training: wrapped, where gradients are averaged by DDP."""
        return self.accelerator.prepare_model(network) if self.kind == "ddp" else network

    @contextmanager
    def no_sync(self, model: Any, skip: bool) -> Iterator[None]:
        """Inside, gradients stay on their process if `skip`: micro-batches before the last."""
        if skip and self.kind == "ddp":
            with model.no_sync():
                yield
        elif skip and self.kind == "fsdp2":
            model.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                model.set_requires_gradient_sync(True)
        else:
            yield

    def any(self, flag: bool | Tensor) -> bool:
        """Is it true of any process?"""
        if self.world == 1:
            return bool(flag)
        value = torch.as_tensor(flag, device=self.accelerator.device).int()
        dist.all_reduce(value, dist.ReduceOp.MAX)
        return bool(value)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        if self.world == 1:
            return values
        values = values.to(self.accelerator.device, copy=True)
        dist.all_reduce(values)
        return values / self.world
