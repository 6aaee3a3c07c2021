"""How a budget of computing is best split between the size of a network and the samples that it sees."""

from __future__ import annotations

from dataclasses import dataclass

from distill.scaling.laws import PowerLaw, SaturatingLaw

TRAINING = 3  # evaluations that a step costs per sample: one forward, and a backward pass of two


@dataclass(frozen=True)
class Split:
    """size: parameters. samples: that it sees. value: what the law says of both."""

    size: float
    samples: float
    value: float


def best_split(law: SaturatingLaw, operations: PowerLaw, budget: float) -> Split:
    """The size and samples of least loss among those that cost the budget, in closed form.

    operations: of one sample in training as a function of the size, k N^gamma. With D = C / (k N^gamma) the loss is
    E + A N^-alpha + B (k / C)^beta N^(gamma beta), whose derivative by N vanishes at

        N^(alpha + gamma beta) = alpha A / (gamma beta B) (C / k)^beta

    which for gamma = 1 and k = 6 is equation 4 of "Training Compute-Optimal Large Language Models" (arXiv 2203.15556).
    ValueError where operations do not grow with the size: the best is without end.
    """
    if operations.b <= 0:
        raise ValueError("Larger networks among these runs cost no more per sample, so no size is the best for a budget.")
    power = operations.b * law.beta
    right = law.alpha * law.of_size / (power * law.of_data) * (budget / operations.a) ** law.beta
    size = right ** (1 / (law.alpha + power))
    samples = budget / operations(size)
    return Split(size, samples, law(size, samples))
