"""The attention backend of an opened model, as a user asks for it and as recipes hold it, and the other switches of opening."""

from __future__ import annotations

from typing import Any

import torch

from gen.nn.attention import BACKENDS
from samplers.lookup import nearest

OWN = "diffusers"  # of networks of diffusers: their own attention


def set_attention(network: Any, backend: str, device: torch.device, dtype: torch.dtype) -> None:
    """Let a network compute attention by a backend: a name of `gen.nn.attention.BACKENDS`, "auto", or "diffusers" for a network
    of theirs. ValueError for an unknown one, and for one that cannot run here, with the reason."""
    if getattr(network, "whole", False):
        raise ValueError(
            "A pipeline that runs as a whole computes its attention itself; choose it with the set_attention_backend of its "
            "network, and leave attention_backend out."
        )
    if not hasattr(network, "attention_backend"):
        raise ValueError(f"A {type(network).__name__} has no attention of fewstep's; leave attention_backend out.")
    names = ("auto", *BACKENDS, *((OWN,) if getattr(network, "bridged", False) else ()))
    if backend not in names:
        near = nearest(str(backend), names)
        hint = f" Did you mean {near}?" if near else ""
        raise ValueError(f"Unknown attention backend {backend!r}: choose {', '.join(names)}.{hint}")
    if backend in BACKENDS and (
        reason := BACKENDS[backend][1](torch.empty(1, 8, 1, 64, device=device, dtype=dtype), None, None)
    ):
        raise ValueError(f"The attention backend {backend!r} cannot run here: {reason}. Choose auto, or leave it out.")
    network.attention_backend = backend


def recorded(network: Any) -> str:
    """The backend as recipes hold it: "diffusers (math)" for a network of theirs whose attention is ours."""
    backend = getattr(network, "attention_backend", "auto")
    return f"{OWN} ({backend})" if getattr(network, "bridged", False) and backend != OWN else backend


def from_record(text: str) -> str:
    """The backend that a recipe asks for: of "auto (sdpa)", what the choice came to here, it is "auto"."""
    first, _, second = text.partition(" ")
    return second.strip("()") if first == OWN and second else first or "auto"


def switch(
    model: Any,
    preview_decoder: Any = None,
    decoder: str | None = None,
    attention_backend: str | None = None,
    compile: str | bool | None = None,
    cuda_graphs: bool = False,
) -> None:
    """How an opened model decodes and computes: the arguments of `Model.from_pretrained` by these names."""
    if preview_decoder is not None or decoder is not None:
        from gen.models.decoding import set_tiny_decoder

        set_tiny_decoder(model, preview_decoder, decoder)
    if attention_backend is not None:
        set_attention(model.network, attention_backend, model.device, model.dtype)
    if compile or cuda_graphs:
        from gen.models.compilation import compile_network

        if model.offload is not None:
            raise ValueError(
                "A model that is offloaded moves its layers about, which compiled ones must not; leave compile out."
            )
        model.compiled = compile_network(model.network, compile, cuda_graphs, model.device)
