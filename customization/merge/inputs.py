"""What the layers of a network see, gathered while it runs: their inputs, or the second moments of these, G = sum x x^T."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn

from gen.adapters import AdapterError
from gen.adapters.apply import inner
from gen.adapters.report import nearest

Moments = dict[str, Tensor]


def columns(module: nn.Module, x: Tensor) -> Tensor:
    """A layer's input as what its weight (out, in * k ...) is multiplied with: (n, in * k ...) in float64.

    Linear layers, and Conv2d of one group, whose windows are the rows.
    """
    if isinstance(module, nn.Linear):
        return x.detach().reshape(-1, x.shape[-1]).double()
    if isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
        mode = {"zeros": "constant"}.get(module.padding_mode, module.padding_mode)
        (height, width), options = module.padding, {"dilation": module.dilation, "stride": module.stride}
        x = F.pad(x.detach().double(), (width, width, height, height), mode=mode)
        return F.unfold(x, module.kernel_size, **options).transpose(1, 2).flatten(0, 1)  # type: ignore[arg-type]
    raise AdapterError(f"Inputs of a {type(module).__name__} are not gathered; give linear layers and plain convolutions.")


@contextmanager
def watch_inputs(network: nn.Module, modules: Sequence[str], see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Inside, every call of the network shows `see` the name and the inputs (n, in * k) of these modules, in float64.

    modules: names of linear layers or convolutions. AdapterError for one that the network does not have.
    """
    named_modules = dict(inner(network).named_modules())
    handles = []
    try:
        for name in modules:
            if name not in named_modules:
                raise AdapterError(
                    f"The network has no module {name!r}; {nearest(name, list(named_modules)) or 'see its named_modules()'}."
                )

            def hook(module: nn.Module, args: tuple, name: str = name) -> None:
                see(name, columns(module, args[0]))

            handles.append(named_modules[name].register_forward_pre_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def record_inputs(network: nn.Module, modules: Sequence[str], part: str = "denoiser") -> Iterator[Moments]:
    """Inside, every call of the network adds to the moments of these modules; "denoiser.<module>" -> G (in * k, in * k).

    modules: as of `watch_inputs`.
    """
    moments: Moments = {}

    def see(name: str, rows: Tensor) -> None:
        moment, key = rows.T @ rows, f"{part}.{name}"
        moments[key] = moments[key] + moment if key in moments else moment

    with watch_inputs(network, modules, see):
        yield moments
