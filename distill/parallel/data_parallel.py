"""Several processes: replicas (DDP) or shards (FSDP2) of the trained networks, or replicas whose optimisers are in shards
(DeepSpeed's ZeRO, distill/optim/zero.py), and what the processes exchange.

A single process needs none of this, and every method below then does nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from distill.config import TrainConfig
from distill.parallel.deepspeed_settings import zero_settings
from distill.parallel.launch import asked_for_more, parent_environment
from distill.parallel.shards import in_shards
from distill.run_folder import TrainingError
from gen.nn.backbones.blocks import MLP, SelfAttention


class Parallel:
    """How one run's trained networks are spread. `kind`: none, ddp, fsdp2 or zero, then with DeepSpeed's settings in `zero`."""

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
        if self.world == 1 and (asked := asked_for_more(os.environ, parent_environment())):
            raise TrainingError(
                f"accelerate was told to start several processes{asked}, and on CPUs it starts one, which would train "
                "alone: launch with `python -m torch.distributed.run --standalone --nproc_per_node N -m distill.train`, or "
                "give --num_processes 1."
            )
        if launched == DistributedType.MEGATRON_LM:
            raise TrainingError("fewstep does not train with Megatron-LM; launch with a file of configs/accelerate.")
        self.zero: dict[str, Any] = {}
        if launched == DistributedType.DEEPSPEED:
            self.kind, self.zero = "zero", self._zero(config)
            return
        sharded = launched == DistributedType.FSDP if config.parallel == "auto" else config.parallel == "fsdp2"
        self.kind = "none" if self.world == 1 else "fsdp2" if sharded else "ddp"

    def _zero(self, config: TrainConfig) -> dict[str, Any]:

        if config.parallel != "auto":
            raise TrainingError(
                f"parallel is {config.parallel}, but accelerate was launched with DeepSpeed; leave one of them out."
            )
        if config.precision == "fp16":
            raise TrainingError(
                "precision: fp16 scales the loss, which is not written for DeepSpeed; use precision=bf16 or fp32."
            )
        return zero_settings(self.accelerator.state.deepspeed_plugin.deepspeed_config)

    def shard(self, network: nn.Module, whole: bool = False) -> None:
        """Cut a network's parameters over the processes, in place; nothing to do unless kind is fsdp2.

        Attention and MLPs are gathered one at a time. Not whole blocks: networks read some of a block's weights (the keys of
        text) outside of its forward pass. Single numbers cannot be cut; `whole` leaves all as they are. Of what is not cut the
        gradients are averaged.
        """
        if self.kind != "fsdp2":
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        kept = {parameter for parameter in network.parameters() if whole or parameter.ndim == 0}
        for parameter in kept:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._average_gradient)
        if whole:
            return
        for parameter in network.parameters():
            parameter.data = parameter.data.contiguous()
        mesh = init_device_mesh(self.accelerator.device.type, (self.world,))
        for module in network.modules():
            if isinstance(module, SelfAttention | MLP) and any(p.requires_grad for p in module.parameters()):
                fully_shard(module, mesh=mesh)
        fully_shard(network, mesh=mesh, ignored_params=kept)

    def _average_gradient(self, parameter: Tensor) -> None:
        """Over processes, with what earlier micro-batches left there, which is the same on all of them."""
        dist.all_reduce(parameter.grad)
        parameter.grad /= self.world

    def replicate(self, network: nn.Module) -> nn.Module:
        """The module to call in training: wrapped, where gradients are averaged by DDP."""
        return self.accelerator.prepare_model(network) if self.kind == "ddp" else network

    @contextmanager
    def no_sync(self, model: Any, skip: bool) -> Iterator[None]:
        """Inside, gradients stay on their process if `skip`: micro-batches before the last."""
        if skip and self.kind == "ddp":
            with model.no_sync():
                yield
        elif skip and in_shards(model):
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

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, which may be of any kind and size, in the order of their ranks."""
        if self.world == 1:
            return [value]
        everyone = [None] * self.world
        dist.all_gather_object(everyone, value)
        return everyone
