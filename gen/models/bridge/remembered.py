"""What diffusers' networks compute anew in every call, though it is the same for a whole run, remembered for that run.

Some compute positions on the host and copy them, or read back how long prompts are: the device waits at every step. For the
length of one call the forward of such a module leads here; afterwards it is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Keep = Callable[[str, Callable[[], Any]], Any]  # (name, compute) -> what was computed, once for a run
# (module, keep, device) -> the forward in the place of its own
Remembering = Callable[[Any, Keep, torch.device], Callable[..., Any]]


@contextmanager
def remembered(network: nn.Module, modules: Mapping[str, Remembering], keep: Keep, device: torch.device) -> Iterator[None]:
    """modules: by their names in the network, what takes the place of their forwards."""
    changed: list[tuple[Any, Any]] = []
    try:
        for name, remembering in modules.items():
            module: Any = network.get_submodule(name)
            changed.append((module, vars(module).get("forward")))  # offloading sets one too

            def named(key: str, compute: Callable[[], Any], name: str = name) -> Any:
                return keep(f"{name} {key}", compute)

            module.forward = remembering(module, named, device)
        yield
    finally:
        for module, before in changed:
            if before is None:
                del module.forward
            else:
                module.forward = before


def by_shape(module: Any, keep: Keep, device: torch.device) -> Callable[..., Any]:
    """Of a module whose result depends on nothing but the shapes of what it is given: on the device."""
    forward = module.forward

    def remember(*args: Any, **named: Any) -> Any:
        shapes = [tuple(one.shape) if isinstance(one, Tensor) else one for one in (*args, *named.values())]
        return keep(str(shapes), lambda: _on(forward(*args, **named), device))

    return remember


def _on(value: Any, device: torch.device) -> Any:
    """Tensors, or tuples of them, on a device."""
    return tuple(_on(one, device) for one in value) if isinstance(value, tuple) else value.to(device)
