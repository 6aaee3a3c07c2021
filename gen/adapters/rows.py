"""Which adapters act on which rows of a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from gen.adapters.delta import AdapterError
from samplers.denoiser import AdapterWeights, adapters_key

Rows = dict[str, tuple[list[int], list[float]]]
Blocks = tuple[tuple[str, ...], tuple[float, ...], slice]


class Segments(tuple[tuple[int, AdapterWeights], ...]):
    """(rows, adapters) of runs that share a call of a network, one after another.

    The layers compute what adapters add run by run, as they would for each run alone: to the last bit.
    """

    def parts(self, batch: int) -> Iterator[tuple[int, int, AdapterWeights]]:
        """(first row, end, adapters) of each run. AdapterError where they do not come to the batch."""
        if sum(rows for rows, _ in self) != batch:
            raise AdapterError(f"The adapters are given for {sum(rows for rows, _ in self)} rows of a batch of {batch}.")
        first = 0
        for rows, weights in self:
            yield first, first + rows, weights
            first += rows

    @property
    def key(self) -> tuple:
        """What tells it from others, as `samplers.denoiser.adapters_key` of each."""
        return tuple((rows, adapters_key(weights)) for rows, weights in self)


def per_sample(weights: AdapterWeights, batch: int) -> Rows:
    """adapter -> (samples that have it, their weights), zeros left out. A batch of several times as many samples, as guidance
    makes, has them over and over. AdapterError where the numbers do not agree."""
    if isinstance(weights, Mapping):
        numbers = {name: adapters_key({name: w})[0][1] for name, w in weights.items()}
        lengths = {len(w) for w in numbers.values() if isinstance(w, tuple)}
        count = next(iter(lengths), 1)
        table = {name: list(w) if isinstance(w, tuple) else [w] * count for name, w in numbers.items()}
        if len(lengths) > 1:
            raise AdapterError(
                f"The adapters have {' and '.join(map(str, sorted(lengths)))} weights; give one per sample to each."
            )
    else:
        count = len(weights)
        names = dict.fromkeys(name for sample in weights for name in sample)
        table = {name: [float(sample.get(name, 0.0)) for sample in weights] for name in names}
    if not count or batch % count:
        raise AdapterError(f"The adapters are given for {count} samples, and the network was given {batch}; give one for each.")
    rows: Rows = {}
    for name, sample_weights in table.items():
        nonzero = [(i, sample_weights[i % count]) for i in range(batch) if sample_weights[i % count] != 0]
        if nonzero:
            rows[name] = [i for i, _ in nonzero], [w for _, w in nonzero]
    return rows


def blocks_of(rows: Rows, batch: int) -> Blocks | None:
    """(adapters, weights, samples) where neighbouring samples, as many for each, have one adapter each, as in a composite;
    else None. Samples before the first and after the last may have none."""
    owner: list[tuple[str, float] | None] = [None] * batch
    for name, (samples, weights) in rows.items():
        for row, weight in zip(samples, weights, strict=True):
            if owner[row] is not None:
                return None
            owner[row] = name, weight
    owned_rows = [row for row, name_of_row in enumerate(owner) if name_of_row is not None]
    if not owned_rows or owned_rows[-1] - owned_rows[0] + 1 != len(owned_rows):
        return None
    inside = [name_of_row for name_of_row in owner if name_of_row is not None]
    length = math.gcd(*(len(list(run)) for _, run in itertools.groupby(inside)))
    names, each = zip(*inside[::length], strict=True)
    return names, each, slice(owned_rows[0], owned_rows[-1] + 1)
