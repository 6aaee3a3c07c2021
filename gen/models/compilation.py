"""torch.compile for a model's denoiser: its repeated blocks, or the whole of it.

    regional    each repeated block; blocks of one class share what is compiled, so it takes as long as one of them
    full        the network in one piece: a little faster, minutes to compile; with CUDA graphs, fewer launches

What reaches into a network cannot be compiled into it: hooks of guidance and caches inside of attention, adapters beside their
layers, gradients. Such calls run as ever, the others compiled, and which is decided at every call. Shapes that change are
compiled once more, with sides that may be anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from gen.nn.backbones.blocks import Hooked
from gen.nn.batch_invariance import is_invariant
from samplers.denoiser import Context
from samplers.lookup import nearest

KINDS = ("regional", "full")
BACKEND = "inductor"  # of torch.compile


@dataclass
class Compiled:
    """A module's call in the place of its own.

    module: whose call it is.
    forward: of its class, compiled: modules of one class share it.
    graphs: CUDA graphs reuse the memory of what they return, so that it is copied.
    compiled, plain: how many calls were which.
    kind: of KINDS, what of the network was compiled.
    """

    module: nn.Module
    forward: Callable[..., Any]
    graphs: bool = False
    compiled: int = 0
    plain: int = 0
    kind: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if reached_into(self.module, args, kwargs):
            self.plain += 1
            return self.module._call_impl(*args, **kwargs)
        self.compiled += 1
        if not self.graphs:
            return self.forward(self.module, *args, **kwargs)
        torch.compiler.cudagraph_mark_step_begin()
        out = self.forward(self.module, *args, **kwargs)
        return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, out)


def reached_into(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Does something look into a module's call, so that it must run as written? Hooks of the run or of layers (as adapters
    have), a forward in the place of a module's own, gradients, or rows that are to round each as alone."""
    given = (*args, *kwargs.values())
    if any(isinstance(value, Hooked) or (isinstance(value, Context) and value.hooks) for value in given):
        return True
    if is_invariant() or (
        torch.is_grad_enabled() and any(getattr(leaf, "requires_grad", False) for leaf in tree_leaves(given))
    ):
        return True
    return any(one._forward_hooks or one._forward_pre_hooks or "forward" in vars(one) for one in module.modules())


def repeated_blocks(network: nn.Module) -> list[nn.Module]:
    """The blocks of which a network has several: members of its lists of modules that are made of modules themselves, the
    outermost."""
    found: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, nn.ModuleList) and module not in inside:
            blocks = [one for one in module if len(list(one.modules())) > 2 and not isinstance(one, nn.ModuleList)]
            found += blocks
            inside |= {part for one in blocks for part in one.modules()}
    return found


def compile_network(
    network: Any, kind: str | bool | None, cuda_graphs: bool = False, device: torch.device | str = "cpu"
) -> tuple[Compiled, ...]:
    """Have a denoiser's network compiled, each part when it is first called; what takes the calls from now on.

    kind: of KINDS; False or None for none.
    cuda_graphs: record the network's kernels, and launch them as one.
    ValueError for an unknown kind, a network that is compiled already or has no blocks, and for CUDA graphs elsewhere than on
    CUDA or of less than the full network.
    """
    if kind is None or kind is False:
        if cuda_graphs:
            raise ValueError("cuda_graphs go with compile='full' (--compile full); give it too.")
        return ()
    if kind not in KINDS:
        near = nearest(str(kind), KINDS)
        hint = f" Did you mean {near!r}?" if near else ""
        raise ValueError(f"compile is {kind!r:.80}; choose {' or '.join(KINDS)}, or False.{hint}")
    where = torch.device(device).type
    if cuda_graphs and (kind != "full" or where != "cuda"):
        raise ValueError(
            f"CUDA graphs are for compile='full' on a CUDA device, and this is {kind!r} on {where}; leave them out."
        )
    if getattr(network, "whole", False):
        raise ValueError("A pipeline that runs as a whole is compiled before it is given, by its owner; leave compile out.")
    inner = network.network if getattr(network, "bridged", False) else network
    name = type(inner).__name__
    if kind == "full" and getattr(network, "remembers", None):
        raise ValueError(
            f"A {name} keeps results of its parts between steps, which one graph cannot; choose compile='regional'."
        )
    modules = [inner] if kind == "full" else repeated_blocks(inner)
    if not modules:
        raise ValueError(f"A {name} has no repeated blocks; choose compile='full', or leave it out.")
    if any(module._compiled_call_impl is not None for module in inner.modules()):
        raise ValueError(f"This {name} is compiled already; leave compile out.")
    options: dict[str, Any] = {"backend": BACKEND, **({"mode": "reduce-overhead"} if cuda_graphs else {})}
    forwards = {kind: torch.compile(kind.forward, **options) for kind in {type(module) for module in modules}}
    made = tuple(Compiled(module, forwards[type(module)], cuda_graphs, kind=kind) for module in modules)
    for one in made:
        one.module._compiled_call_impl = one
    return made
