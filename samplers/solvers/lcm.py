"""The sampler of latent consistency models: x_t = alpha_t x0 + sigma_t z, with x0 the consistency function.

Source: arXiv 2310.04378, Algorithm 3.
"""

from __future__ import annotations

from samplers.solvers.consistency import Consistency


def lcm(s_noise: float = 1.0) -> Consistency:
    """Multistep consistency sampling for models whose own images are clean (sigma_min = 0). s_noise: factor on z."""
    return Consistency(0.0, s_noise)
