"""Grids: which noise levels a run visits.

Every grid is a function (path, steps, ...) -> `steps` + 1 levels, falling in noise and ending in clean data (sigma = 0), so
that steps = 1 is one evaluation. The grids of `ratio` place sigma / alpha, which every path has, so one of them means the
same on all paths; those of `clock` place the path's own clock, or the timesteps of its table; `tables` holds fixed lists;
`scheduler` does what diffusers' schedulers do, to rounding, and may end before clean data where those do;
`shift` moves a grid towards high noise for high resolutions.

Default bounds, where a grid takes them: sigma_min and sigma_max on a variance-exploding path, the first and last finite
entry of a table, and t = 0.001 to 0.999 of any other path whose ends are infinite in sigma / alpha (rectified flow). The
clock grids need no bounds and start at the noisiest level there is: exact pure noise on a flow or a zero-terminal-SNR table.
"""

from samplers.grids.clock import beta, ddim_uniform, normal, quadratic, sgm_uniform, simple, trigflow, turbo, uniform_time
from samplers.grids.common import Grid
from samplers.grids.ratio import (
    exponential,
    iddpm,
    karras,
    kl_optimal,
    laplace,
    linear_quadratic,
    polyexponential,
    uniform_logsnr,
    vp,
)
from samplers.grids.scheduler import flow as scheduler_flow
from samplers.grids.scheduler import timesteps as scheduler_timesteps
from samplers.grids.scheduler import trained
from samplers.grids.shift import dynamic_mu, dynamic_shift, empirical_mu, resolution_shift, shifted
from samplers.grids.tables import align_your_steps, from_table, table

__all__ = [
    "Grid",
    "align_your_steps",
    "beta",
    "ddim_uniform",
    "dynamic_mu",
    "dynamic_shift",
    "empirical_mu",
    "exponential",
    "from_table",
    "iddpm",
    "karras",
    "kl_optimal",
    "laplace",
    "linear_quadratic",
    "normal",
    "polyexponential",
    "quadratic",
    "resolution_shift",
    "scheduler_flow",
    "scheduler_timesteps",
    "sgm_uniform",
    "shifted",
    "simple",
    "table",
    "trained",
    "trigflow",
    "turbo",
    "uniform_logsnr",
    "uniform_time",
    "vp",
]
