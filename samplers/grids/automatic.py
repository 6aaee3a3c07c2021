"""AUTOMATIC1111's "Automatic": the schedule that a sampler has by itself."""

from __future__ import annotations

from samplers.grids.clock import ddim_uniform, normal
from samplers.grids.common import Grid, check_steps, finish
from samplers.grids.ratio import exponential, karras
from samplers.path import Path

KARRAS = ("dpmpp_2m", "dpmpp_sde", "dpmpp_2s_a", "dpm_2", "dpm_2_a", "restart")
EXPONENTIAL = ("dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
TIMESTEPS = ("ddim", "pndm", "unipc", "euler_cfg_pp")
ONE_LESS = ("dpm_2", "dpm_2_a", "dpmpp_3m_sde")  # of a grid with one step more, the last noisy level is left out


def automatic(path: Path, steps: int, sampler: str = "euler", discard: bool | None = None) -> Grid:
    """karras, exponential, ddim_uniform or normal, as AUTOMATIC1111 chooses for a sampler (our name of it).

    discard: leave out the last noisy level of a grid one step longer; None: as it does for that sampler.
    """
    check_steps(steps)
    discard = sampler in ONE_LESS if discard is None else discard
    grid = karras if sampler in KARRAS else exponential if sampler in EXPONENTIAL else normal
    grid = ddim_uniform if sampler in TIMESTEPS else grid
    levels = grid(path, steps + 1 if discard else steps)
    return finish(path, levels[:-2]) if discard else levels
