"""Philox 4x32-10: random numbers that are a function of (key, counter), the same to the bit on every device.

Everything is whole numbers of at most 49 bits in int64, up to one sum of two exact float32: no kernel of any device can round
otherwise. Nothing is copied from the host but numbers that travel with a kernel's launch, so drawing waits for nothing.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

Word = Tensor | int  # 32 bits, in int64
Words = tuple[Word, Word, Word, Word]

MASK = (1 << 32) - 1
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

OCTAVES = 31  # of the tail's probability: 2^-1 to 2^-32
PIECES = 7  # bits: an octave is cut into 2^7 pieces, a parabola on each
PLACE = 23  # bits of a place within a piece; octave, piece and place are 31 bits in all for the first octave
POINT = 28  # bits behind the point of a result; 3 before it


def philox(counter: Words, key: tuple[Word, Word]) -> Words:
    """Four random words of 32 bits for a counter of four words and a key of two, elementwise with broadcasting.

    counter, key: tensors of int64 with values below 2^32, or numbers; at least one of the counter is a tensor.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for number in range(ROUNDS):
        if number:
            k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
        high0, low0 = _product(c0, MULTIPLIERS[0])
        high1, low1 = _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


def _product(a: Word, b: int) -> tuple[Word, Word]:
    """The high and the low word of a times b, without a number of more than 49 bits."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    low = low + ((high & 0xFFFF) << 16)
    return (high >> 16) + (low >> 32), low & MASK


def normals(words: Tensor) -> Tensor:
    """Unit normals, float32, of words of 32 random bits (...), by a table of the normal distribution's quantiles.

    A bit is the sign. Of the others, the zeros before the first one count the octave of the tail's probability, and the rest
    are the place within it. The quantile is a parabola of that place, in whole numbers: within 2^-26 of the true one before
    it is rounded, and at most 6.3.
    """
    sign, rest = 1 - 2 * (words & 1), (words >> 1) | (1 << OCTAVES - 1)  # a last one, so that there is one
    lowest = rest & -rest
    octave = ((lowest.to(torch.float32).view(torch.int32) >> 23) - 127).to(torch.int64)  # an exact power of two: its exponent
    place = (words >> 1 >> octave >> 1) << octave  # 30 bits from the left; see PIECES and PLACE
    table = _table(words.device)
    piece, u = (octave << PIECES) + (place >> PLACE), place & ((1 << PLACE) - 1)
    bent = table[2][piece] * u >> PLACE
    fixed = table[0][piece] + ((table[1][piece] + bent) * u >> PLACE)
    fixed = fixed * sign
    # both parts have at most 24 bits, so that each is exact, and their sum is rounded once, alike everywhere
    return (fixed >> 14).to(torch.float32) * 2.0 ** (14 - POINT) + (fixed & 0x3FFF).to(torch.float32) * 2.0**-POINT


@lru_cache(maxsize=8)
def _table(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Of every piece the parabola's start, slope and bend, int64, on a device."""
    start, slope, bend = (torch.tensor(column, dtype=torch.int64, device=device) for column in zip(*parabolas(), strict=True))
    return start, slope, bend


@lru_cache(maxsize=1)
def parabolas() -> tuple[tuple[int, int, int], ...]:
    """(start, slope, bend) of every piece in units of 2^-POINT: start + (slope + bend u) u for u in [0, 1), which is the
    quantile at the piece's ends and its middle."""
    quantile, pieces = NormalDist().inv_cdf, 1 << PIECES
    rows = []
    for octave in range(OCTAVES):
        at = [-quantile((1 + i / (2 * pieces)) / 2.0 ** (octave + 2)) for i in range(2 * pieces + 1)]
        for i in range(0, 2 * pieces, 2):
            left, middle, right = at[i : i + 3]
            bend = 2 * (left + right - 2 * middle)
            rows.append(tuple(round(v * 2.0**POINT) for v in (left, right - left - bend, bend)))
    return tuple(rows)  # type: ignore[arg-type]


def keys_of(seeds: Sequence[int], device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
    """The keys (B, 1) of seeds below 2^64: their low and high words, made on the device by filling, not by copying."""
    low, high = (
        torch.stack([torch.full((1,), word, dtype=torch.int64, device=device) for word in words])
        for words in ([seed & MASK for seed in seeds], [seed >> 32 & MASK for seed in seeds])
    )
    return low, high


def philox_normal(keys: tuple[Tensor, Tensor], shape: Sequence[int], purpose: int | Tensor, which: Word = 0) -> Tensor:
    """Unit normals (B, *shape), float32, on the device of the keys (B, 1) (`keys_of`).

    purpose: a number below 2^64.
    which: one below 2^32, or a tensor (K, 1), for K draws in a row: (B, K, *shape).
    """
    count = 1
    for side in shape:
        count *= side
    blocks = torch.arange((count + 3) // 4, device=keys[0].device)
    several = isinstance(which, Tensor)
    key = (keys[0][:, None], keys[1][:, None]) if several else keys
    words = torch.stack(torch.broadcast_tensors(*philox((blocks, which, purpose & MASK, purpose >> 32), key)), dim=-1)  # type: ignore[arg-type]
    z = normals(words.flatten(-2)[..., :count])
    return z.reshape(*z.shape[:-1], *shape)
