"""Teaching that goes on from a finished LoRA: its factors are those that training begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.networks.lora.peft_injection import NAME
from gen.adapters import Adapter
from gen.adapters.delta import Delta
from gen.adapters.resolve import Index, resolve

STARTED = {"lora", "rslora"}  # adapters that can begin as a LoRA


@torch.no_grad()
def start_from(
    adapter: Adapter, indices: Mapping[str, Index], parts: Mapping[str, nn.Module], trained: Mapping[str, nn.Parameter]
) -> None:
    """Write a LoRA's factors into those that train, so that the network computes what it does with that LoRA on.

    indices: of the parts' layers as they were before the factors were put in. parts: as they are now.
    trained: "<part>.<name>" -> parameter. A layer of a lower rank than trains is filled up: its A stays as it was drawn there,
    and its B zero. Layers that train and that the LoRA does not change begin as without it.
    ValueError where it changes what does not train, is no product of two factors, or has a higher rank.
    """
    placed, _ = resolve(adapter, indices)
    for part, targets in placed.items():
        for target, delta in targets:
            name = f"{part}.{target.module}"
            down, up = (trained.get(f"{name}.lora_{side}.{NAME}.weight") for side in "AB")
            if down is None or up is None:
                raise ValueError(
                    f"start is {adapter.name!r}, which changes {name}, but that layer does not train; give the adapter the "
                    "targets that it was trained with."
                )
            if target.rows or target.cut or set(delta.factors) - {"up", "down", "alpha"}:
                raise ValueError(
                    f"start is {adapter.name!r}, whose change of {name} is not B A of that one layer, so that no LoRA can "
                    "begin as it; `fewstep lora resize` makes LoRAs of other kinds."
                )
            _fill(down, up, delta, parts[part].get_submodule(target.module), name, adapter.name)


def _fill(down: nn.Parameter, up: nn.Parameter, delta: Delta, layer: Any, name: str, start: str) -> None:
    factors: Mapping[str, Tensor] = delta.factors
    rank = factors["down"].shape[0]
    if rank > down.shape[0]:
        raise ValueError(
            f"start is {start!r}, whose rank at {name} is {rank}, but {down.shape[0]} is to be trained; raise rank to {rank}, "
            "or lower the file's by `fewstep lora resize`."
        )
    scale = delta.scale / layer.scaling[NAME]  # peft multiplies B A by its own
    down[:rank].copy_(factors["down"].reshape(rank, *down.shape[1:]))
    up.zero_()
    up[:, :rank].copy_((factors["up"].float() * scale).reshape(up.shape[0], rank, *up.shape[2:]))
