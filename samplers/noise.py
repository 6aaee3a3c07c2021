"""Counter-based noise: every number is a function of (seed, purpose), never of what was drawn before.

Image i then depends on its own seed alone, not on the batch it shares; a repeated step draws the same noise; and a run
resumes from nothing but its step number. Numbers are the same on every device: either torch's generator of the CPU makes them
(kind "torch"), or Philox in whole numbers where they are needed ("philox", `samplers.philox`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from samplers.lookup import nearest
from samplers.path import NoiseLevel
from samplers.philox import keys_of, philox_normal

# (s, t) -> unit normal noise (B, C, H, W) for the step from level s to level t
NoiseSource = Callable[[NoiseLevel, NoiseLevel], Tensor]

KINDS = ("torch", "philox")
PINNED = {"cuda"}  # devices that copy from pinned memory while the host goes on

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


def check_kind(kind: object) -> str:
    """The name of a kind of noise; ValueError if there is none such."""
    if kind not in KINDS:
        near = nearest(str(kind), KINDS)
        hint = f" Did you mean {near}?" if near else ""
        raise ValueError(f"Unknown kind of noise {kind!r}: choose {' or '.join(KINDS)}.{hint}")
    return str(kind)


def normal(
    seeds: Sequence[int], shape: Sequence[int], *purpose: int | float | str, device=None, dtype=None, kind: str = "torch"
) -> Tensor:
    """Unit normal noise (len(seeds), *shape); row i depends on seeds[i] and the purpose only.

    kind: "torch", drawn on the CPU, or "philox", drawn on the device.
    """
    if check_kind(kind) == "philox":
        return philox_normal(keys_of([fold(seed) for seed in seeds], device), shape, fold(0, *purpose)).to(dtype=dtype)
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(fold(seed, *purpose))
        rows.append(torch.randn(tuple(shape), generator=generator))
    return on_device(torch.stack(rows), device, dtype)


def on_device(value: Tensor, device: torch.device | str | None, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor of the CPU on a device, in a dtype: where the device allows it, the host does not wait for the copy."""
    value = value.to(dtype=dtype)
    if device is None or torch.device(device).type not in PINNED:
        return value.to(device=device)
    return value.pin_memory().to(device=device, non_blocking=True)


def seeded_noise(seeds: Sequence[int], like: Tensor, kind: str = "torch") -> NoiseSource:
    """The noise source of a run: one seed per row of `like` (B, C, H, W). kind: how it is drawn (`normal`)."""
    if check_kind(kind) == "philox":
        keys, shape = keys_of([fold(seed) for seed in seeds], like.device), like.shape[1:]

        def draw(s: NoiseLevel, t: NoiseLevel) -> Tensor:
            return philox_normal(keys, shape, fold(0, "step", float(s.t), float(t.t))).to(like.dtype)
    else:

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


def noise_numbers(noise: NoiseSource, count: int, s: NoiseLevel, t: NoiseLevel, key: str) -> Tensor:
    """`count` unit normal numbers per image (B, count) for the step from s to t, independent of its noise for x."""
    parts: list[Tensor] = []
    while sum(part.shape[1] for part in parts) < count:
        parts.append(fork_noise(noise, key, len(parts))(s, t).flatten(1))
    return torch.cat(parts, 1)[:, :count]
