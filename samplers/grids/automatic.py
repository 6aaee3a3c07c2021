"""AUTOMATIC1111's "Automatic": the schedule that a sampler has by itself."""

from __future__ import annotations

import math
from collections.abc import Callable

from samplers.grids.clock import ddim_uniform, normal
from samplers.grids.common import Grid, at_ratio, check_steps, finish, ramp
from samplers.grids.ratio import exponential, karras
from samplers.path import Path, VariancePreserving

KARRAS = ("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_a", "dpm_2", "dpm_2_a", "restart")
EXPONENTIAL = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
TIMESTEPS = ("ddim", "pndm", "unipc", "euler_cfg_pp")
ONE_LESS = ("dpm_2", "dpm_2_a", "dpmpp_3m_sde")  # of a grid with one step more, the last noisy level is left out
ORIGINAL = 50  # timesteps that latent consistency models were trained at


def automatic(path: Path, steps: int, sampler: str = "euler", discard: bool | None = None) -> Grid:
    """karras, exponential, ddim_uniform, normal or LCM's own, as AUTOMATIC1111 chooses for a sampler (our name of it).

    discard: leave out the last noisy level of a grid one step longer; None: as it does for that sampler.
    """
    check_steps(steps)
    discard = sampler in ONE_LESS if discard is None else discard
    grid: Callable[..., Grid] = karras if sampler in KARRAS else exponential if sampler in EXPONENTIAL else normal
    grid = ddim_uniform if sampler in TIMESTEPS else grid
    count = steps + 1 if discard else steps
    lcm = sampler == "lcm" and isinstance(path, VariancePreserving)
    levels = _of_original_steps(path, count) if lcm else grid(path, count)  # type: ignore[arg-type]
    return finish(path, levels[:-2]) if discard else levels


def _of_original_steps(path: VariancePreserving, steps: int) -> Grid:
    """Evenly through every (N / 50)-th timestep of a table, N - 1 and N / 50 - 1 included, log sigma linear between them."""
    stride = max(len(path.table) // ORIGINAL, 1)
    kept = path.table[::-1][::stride]
    ratios = []
    for u in ramp(steps):
        place = u * (len(kept) - 1)
        low = math.floor(place)
        part = place - low
        logsnr = kept[low] if not part else (1 - part) * kept[low] + part * kept[low + 1]
        ratios.append(math.exp(-logsnr))
    return finish(path, [at_ratio(path, ratio) for ratio in ratios])
