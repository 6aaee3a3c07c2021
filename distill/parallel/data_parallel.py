"""Several processes: replicas (DDP) or shards (FSDP2) of the trained networks, or replicas whose optimisers are in shards
(DeepSpeed's ZeRO, in zero.py), and what the processes tell one another.

Launching is accelerate's (`accelerate launch`, or torchrun); a single process needs none of this, and every function below
then does nothing. Sharded tensors are DTensors: `full` collects one, `laid_out` cuts one, `local` is this process's part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import DistributedType, is_deepspeed_available
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel

from distill.config import TrainConfig
from distill.run_folder import TrainingError
from gen.io.extras import install
from gen.nn.backbones.blocks import MLP, SelfAttention


def is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def in_shards(network: nn.Module) -> bool:
    """Its parameters are at times whole, in the middle of things."""
    return hasattr(network, "set_requires_gradient_sync")  # FSDP2's


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


def bare(network: nn.Module) -> nn.Module:
    """The network inside a wrapper for data-parallel training, for calls that need no gradients."""
    return network.module if isinstance(network, DistributedDataParallel) else network


def fixed(network: nn.Module) -> Callable[..., Any]:
    """The bare network's function, differentiable in its arguments alone.

    Of a sharded network in its weights as well, as its own hooks must gather them: whoever trains must clear those gradients.
    """
    network = bare(network)
    if in_shards(network):
        return network
    weights = {name: value.detach() for name, value in network.named_parameters()}
    return lambda *args: functional_call(network, weights, args)


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


def _parent_environment() -> dict[str, str] | None:
    """The environment of the process that started this one, where the system tells."""
    try:
        with open(f"/proc/{os.getppid()}/environ", "rb") as file:
            rows = file.read(1 << 20).decode("utf-8", "replace").split("\0")
    except OSError:
        return None
    return dict(row.split("=", 1) for row in rows if "=" in row)


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
        if self.world == 1 and (asked := asked_for_more(os.environ, _parent_environment())):
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
        from distill.optim.zero import zero_settings

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
