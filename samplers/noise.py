"""Counter-based noise: every number is a function of (seed, purpose), never of what was drawn before.

Image i then depends on its own seed alone, not on the batch it shares; a repeated step draws the same noise; and a run
resumes from nothing but its step number. Numbers are drawn on the CPU, so that they are the same on every device.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from samplers.path import NoiseLevel

# (s, t) -> unit normal noise (B, C, H, W) for the step from level s to level t
NoiseSource = Callable[[NoiseLevel, NoiseLevel], Tensor]

_MASK = (1 << 64) - 1


def fold(seed: int, *words: int | float | str) -> int:
    """Mix a seed and integers, floats and strings into one 63-bit seed (the splitmix64 finaliser over each in turn)."""
    state = 0
    for word in (seed, *words):
        if isinstance(word, float):
            word = int.from_bytes(struct.pack("<d", word), "little")
        elif isinstance(word, str):
            word = fold(len(word), *word.encode())
        state = (state + 0x9E3779B97F4A7C15) & _MASK ^ (word & _MASK)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def normal(seeds: Sequence[int], shape: Sequence[int], *purpose: int | float | str, device=None, dtype=None) -> Tensor:
    """Unit normal noise (len(seeds), *shape); row i depends on seeds[i] and the purpose only."""
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(fold(seed, *purpose))
        rows.append(torch.randn(tuple(shape), generator=generator))
    return torch.stack(rows).to(device=device, dtype=dtype)


def seeded_noise(seeds: Sequence[int], like: Tensor) -> NoiseSource:
    """The noise source of a run: one seed per row of `like` (B, C, H, W)."""

    def draw(s: NoiseLevel, t: NoiseLevel) -> Tensor:
        return normal(seeds, like.shape[1:], "step", float(s.t), float(t.t), device=like.device, dtype=like.dtype)

    draw.independent = True  # type: ignore[attr-defined]  # of one another, also where steps overlap
    return draw


def need_noise(noise: NoiseSource | None, setting: str) -> NoiseSource:
    """The noise source. ValueError where a solver that adds noise got none; setting: what makes it add noise, "eta=1.0"."""
    if noise is None:
        raise ValueError(f"This solver adds noise ({setting}): pass noise=, for instance seeded_noise(seeds, x).")
    return noise


def fork_noise(noise: NoiseSource, *key: int | float | str) -> NoiseSource:
    """A noise source independent of `noise` and of every other key: for going through the same levels again.

    A source that has a method `fork(*key)` is asked for it (`brownian_noise`, which looks at log-SNR alone); any other is
    called for a step from a level whose clock is a hash of the true one and the key.
    """
    if (own_fork := getattr(noise, "fork", None)) is not None:
        return own_fork(*key)

    def draw(s: NoiseLevel, t: NoiseLevel) -> Tensor:
        return noise(replace(s, t=float(fold(0, *key, float(s.t)))), t)

    return draw
