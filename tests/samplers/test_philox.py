"""Philox against its published vectors and whole numbers of Python's; normals against the quantiles that they are."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from samplers.noise import fold, normal, seeded_noise
from samplers.path import RectifiedFlow
from samplers.philox import MASK, MULTIPLIERS, WEYL, keys_of, normals, parabolas, philox, philox_normal

# Random123 1.14, tests/kat_vectors: philox4x32 10
VECTORS = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((MASK,) * 4, (MASK,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def in_python(counter, key):
    """The ten rounds with whole numbers of any size."""
    a, b, c, d = counter
    for number in range(10):
        k, l = ((word + number * weyl) & MASK for word, weyl in zip(key, WEYL, strict=True))
        left, right = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b, c, d = (right >> 32) ^ b ^ k, right & MASK, (left >> 32) ^ d ^ l, left & MASK
    return a, b, c, d


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS)
def test_published_vectors(counter, key, expected):
    drawn = philox(tuple(torch.tensor([word]) for word in counter), key)
    assert " ".join(f"{int(word):08x}" for word in drawn) == expected
    assert in_python(counter, key) == tuple(map(int, drawn))


def test_any_counter_and_key_is_that_of_whole_numbers():
    g = torch.Generator().manual_seed(0)
    counter = torch.randint(0, 1 << 32, (4, 50), generator=g)
    keys = torch.randint(0, 1 << 32, (2, 50), generator=g)
    drawn = torch.stack(philox(tuple(counter), tuple(keys)))
    for i in range(50):
        assert in_python(counter[:, i].tolist(), keys[:, i].tolist()) == tuple(drawn[:, i].tolist())


def test_normals_are_the_quantiles_of_their_words():
    """Every octave, both ends of it, both signs: the quantile in float64 to 2^-26 and a rounding to float32."""
    g = torch.Generator().manual_seed(1)
    ends = [0, 1, 2, 3, MASK, MASK - 1, *(1 << i for i in range(1, 32)), *((1 << i) - 2 for i in range(2, 33))]
    words = torch.cat([torch.tensor(ends), torch.randint(0, 1 << 32, (200_000,), generator=g)])
    rest, exact = words >> 1, []
    lowest = torch.where(rest == 0, 1 << 30, rest & -rest).double()
    place = torch.floor(rest / (2 * lowest)) * lowest / 2**30
    tail = (1 + place) / (4 * lowest)
    exact = -torch.special.ndtri(tail) * (1 - 2 * (words & 1))
    drawn = normals(words)
    assert drawn.dtype == torch.float32 and lowest.unique().numel() == 31
    error = (drawn.double() - exact).abs()
    assert (error <= 2.0**-26 + 2.0**-24 * exact.abs()).all()
    assert drawn.abs().max() < 6.3


def test_a_word_and_its_first_bit_are_opposite():
    words = torch.randint(0, 1 << 32, (1000,), generator=torch.Generator().manual_seed(2))
    assert torch.equal(normals(words ^ 1), -normals(words))


def test_the_table_is_the_same_everywhere():
    """It is made in float64, by the machine's own logarithm, and rounded: a machine with another table draws other noise."""
    text = json.dumps(parabolas())
    assert hashlib.sha256(text.encode()).hexdigest() == "12221fe0d406ae824c7abea68bc0cc250017433cd1b1857da3e54fb3dc2fc830"


def test_these_numbers_stay():
    """What recipes of this kind of noise were made with."""
    drawn = normal([7, 2**62 + 5], (3,), "latents", kind="philox")
    assert drawn.flatten().tolist() == [
        -0.3797034025192261,
        -0.2239263504743576,
        -1.6392518281936646,
        1.2031493186950684,
        0.6970354318618774,
        1.1039674282073975,
    ]


def test_it_is_unit_normal_and_rows_are_independent():
    z = philox_normal(keys_of(range(200)), (2500,), 9).double()
    n = z.numel()
    assert abs(z.mean()) < 4 / n**0.5 and abs(z.var() - 1) < 4 * (2 / n) ** 0.5
    assert abs((z**3).mean()) < 4 * (15 / n) ** 0.5 and abs((z**4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert abs((z[:, 1:] * z[:, :-1]).mean()) < 4 / n**0.5 and abs((z[1:] * z[:-1]).mean()) < 4 / n**0.5
    for point in (0.5, 1.0, 2.0, 3.0):
        share = torch.special.ndtr(torch.tensor(-point, dtype=torch.float64))
        assert abs((z < -point).double().mean() - share) < 4 * (share / n) ** 0.5


def test_a_row_is_a_function_of_its_seed_and_the_purpose():
    together = normal([5, 6, 7], (3, 5), "start", kind="philox")
    assert torch.equal(together[1], normal([6], (3, 5), "start", kind="philox")[0])
    assert torch.equal(together[:, 0], normal([5, 6, 7], (5,), "start", kind="philox"))  # a counter of blocks
    others = [normal([6], (64,), *p, kind="philox") for p in (("start",), ("end",), ("start", 1), ("start", 1.0))]
    for i, one in enumerate(others):
        assert all(abs((one * other).mean()) < 0.5 for other in others[:i])


def test_several_draws_in_a_row_are_each_their_own():
    keys, which = keys_of([3, 4]), torch.tensor([[0], [9], [2**20]])
    together = philox_normal(keys, (2, 3), fold(0, "x"), which)
    assert together.shape == (2, 3, 2, 3)
    for i, one in enumerate((0, 9, 2**20)):
        assert torch.equal(together[:, i], philox_normal(keys, (2, 3), fold(0, "x"), one))


def test_the_noise_of_a_step():
    path, like = RectifiedFlow(), torch.zeros(2, 3, 4, dtype=torch.float64)
    noise = seeded_noise([1, 2], like, "philox")
    a, b, c = path(0.9), path(0.5), path(0.2)
    assert torch.equal(noise(a, b), noise(a, b)) and noise(a, b).dtype == like.dtype and noise.independent
    assert torch.equal(noise(a, b)[1:], seeded_noise([2], like[1:], "philox")(a, b))
    assert not torch.equal(noise(a, b), noise(b, c)) and not torch.equal(noise(a, b), noise(a, c))
    assert not torch.equal(noise(a, b), seeded_noise([1, 2], like)(a, b))


def test_an_unknown_kind_is_refused():
    for draw in (lambda: normal([1], (2,), kind="philx"), lambda: seeded_noise([1], torch.zeros(1, 2), "philx")):
        with pytest.raises(ValueError, match=r"Unknown kind of noise 'philx': choose torch or philox\. Did you mean philox"):
            draw()
