"""Hashes by which a run knows whether what it reads is what it was."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn


def digest(*parts: object) -> str:
    """A hash of values that print as what they are."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def weights_digest(networks: Mapping[str, nn.Module | None]) -> str:
    """A hash of the names, types and bytes of all weights."""
    key = hashlib.sha256()
    for part, network in networks.items():
        for name, tensor in network.state_dict().items() if network is not None else ():
            key.update(f"{part} {name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            key.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return key.hexdigest()
