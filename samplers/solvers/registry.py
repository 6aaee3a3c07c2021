"""Solvers by name: the closed table that command lines, recipes and documentation read."""

from __future__ import annotations

from functools import partial

from samplers.solvers.comfy.rows import ROWS as COMFY
from samplers.solvers.consistency import TCD, Consistency
from samplers.solvers.ddpm import DDPM
from samplers.solvers.deis import deis, ipndm, lms
from samplers.solvers.dpm_solver import dpm_solver_2m, dpm_solver_3m
from samplers.solvers.dpm_solver_pp import dpmpp_2m, dpmpp_2m_sde, dpmpp_2m_sde_heun, dpmpp_3m, dpmpp_3m_sde
from samplers.solvers.edict import EDICT
from samplers.solvers.er_sde import ERSDE
from samplers.solvers.flow_map import FlowMap
from samplers.solvers.info import SolverInfo
from samplers.solvers.lcm import lcm
from samplers.solvers.lower_order import LowerOrderFinal
from samplers.solvers.one_step_rows import ONE_STEP
from samplers.solvers.pndm import PNDM
from samplers.solvers.policy import FollowPolicy
from samplers.solvers.res import res_multistep
from samplers.solvers.restart import Restart
from samplers.solvers.sa_solver import sa_solver
from samplers.solvers.unipc import unipc

BOUNDED = "bounded"  # the ending that the solvers with memory have here: docs/samplers.md has the table that chose it
_SDE = ("eta", "s_noise")
_CHURN = ("s_churn", "s_tmin", "s_tmax", "s_noise")

SOLVERS: dict[str, SolverInfo] = {
    info.name: info
    for info in (
        *ONE_STEP,
        SolverInfo(
            "dpmpp_2m",
            dpmpp_2m,
            "DPM-Solver++(2M): the usual choice for 10 to 30 steps",
            2,
            aliases=("DPM++ 2M",),
            options=("ending", "rule"),
        ),
        SolverInfo(
            "dpmpp_2m_sde",
            dpmpp_2m_sde,
            "DPM-Solver++(2M) with noise",
            2,
            stochastic=True,
            brownian=True,
            aliases=("DPM++ 2M SDE", "dpmpp_2m_sde_gpu"),
            options=("ending", "rule", *_SDE),
        ),
        SolverInfo(
            "dpmpp_2m_sde_heun",
            dpmpp_2m_sde_heun,
            "DPM-Solver++(2M) with noise, exact coefficients",
            2,
            stochastic=True,
            brownian=True,
            aliases=("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun_gpu"),
            options=("ending", *_SDE),
        ),
        SolverInfo(
            "dpmpp_3m",
            dpmpp_3m,
            "DPM-Solver++(3M), coefficients as published",
            2,
            aliases=("DPM++ 3M",),
            options=("ending", "rule"),
        ),
        SolverInfo(
            "dpmpp_3m_sde",
            dpmpp_3m_sde,
            "DPM-Solver++(3M) with noise; for 30 steps and more",
            2,
            stochastic=True,
            brownian=True,
            grid="exponential",
            aliases=("DPM++ 3M SDE", "dpmpp_3m_sde_gpu"),
            options=("ending", "rule", *_SDE),
        ),
        SolverInfo(
            "unipc",
            unipc,
            "UniPC-3: third-order predictor and free corrector",
            3,
            grid="uniform_logsnr",
            aliases=("UniPC", "uni_pc", "uni_pc_bh2"),
            options=("ending", "rule", "order", "corrector_order"),
        ),
        SolverInfo(
            "res_multistep",
            res_multistep,
            "RES: second-order multistep, exact coefficients",
            2,
            aliases=("res_2m",),
            options=("ending",),
        ),
        SolverInfo(
            "sa_solver",
            sa_solver,
            "SA-Solver: stochastic Adams predictor and corrector, tau^2 = eta throughout",
            3,
            stochastic=True,
            brownian=True,
            grid="uniform_logsnr",
            aliases=("SA-Solver",),
            options=("ending", "order", "corrector_order", *_SDE),
        ),
        SolverInfo(
            "dpm_solver_2m",
            dpm_solver_2m,
            "DPM-Solver(2M): second-order multistep on the noise prediction",
            2,
            options=("ending", "rule", "eta", "s_noise"),
        ),
        SolverInfo(
            "dpm_solver_3m",
            dpm_solver_3m,
            "DPM-Solver(3M) on the noise prediction, coefficients as published; rule='exact' is DEIS",
            2,
            options=("ending", "rule", "eta", "s_noise"),
        ),
        SolverInfo("deis", deis, "DEIS in log-rho: exact integrals of the noise prediction", 2, options=("ending", "order")),
        SolverInfo(
            "multistep",
            partial(LowerOrderFinal, ending=BOUNDED),
            "the multistep core with every setting free; its order may fall with the steps that are left",
            2,
            options=(
                "order",
                "rule",
                "predict",
                "coordinate",
                "noise",
                "corrector_order",
                "lower_below",
                "euler_at_final",
                "second_order_rule",
                "ending",
                *_SDE,
            ),
        ),
        SolverInfo(
            "lms",
            lms,
            "Linear multistep: Adams-Bashforth in sigma",
            2,
            aliases=("LMS", "rho_deis"),
            options=("ending", "order"),
        ),
        SolverInfo(
            "ipndm",
            ipndm,
            "iPNDM: Adams-Bashforth as if all steps were equally long; second order where they change smoothly",
            1,
            options=("ending", "order"),
        ),
        SolverInfo("ipndm_v", lms, "iPNDM with variable steps, the same as LMS", 2, options=("ending", "order")),
        SolverInfo(
            "pndm",
            partial(PNDM, ending=BOUNDED),
            "PLMS: iPNDM after one Heun step, or after three Runge-Kutta steps; second order where steps change smoothly",
            1,
            extra=1,
            grid="trailing",
            aliases=("PLMS",),
            options=("ending", "warmup", "predict"),
        ),
        SolverInfo(
            "ddpm",
            DDPM,
            "DDPM ancestral sampling; variance may be fixed_small (Euler ancestral), fixed_large or learned_range",
            1,
            stochastic=True,
            grid="trailing",
            options=("variance", "s_noise", "latent"),
        ),
        SolverInfo(
            "er_sde",
            ERSDE,
            "ER-SDE-Solver-3: little noise at low noise levels",
            2,
            stochastic=True,
            aliases=("ER SDE",),
            options=("ending", "order", "scale", "rule", "s_noise"),
        ),
        SolverInfo(
            "edict",
            EDICT,
            "EDICT: DDIM on two coupled sequences, whose steps `invert_edict` undoes exactly",
            1,
            evaluations=2,
            extra=1,
            grid="trailing",
            aliases=("EDICT",),
            options=("mix", "alternate", "mix_length"),
        ),
        SolverInfo(
            "consistency",
            Consistency,
            "Consistency models: to the data and back to the next level's noise",
            1,
            stochastic=True,
            options=("sigma_min", "s_noise"),
        ),
        SolverInfo(
            "lcm",
            lcm,
            "Latent consistency models: 2 to 8 steps",
            1,
            stochastic=True,
            grid="trained",
            aliases=("LCM", "comfy:lcm"),
            options=("s_noise",),
        ),
        SolverInfo(
            "tcd",
            TCD,
            "Trajectory consistency: eta = 0 is deterministic, 1 all new noise",
            1,
            stochastic=True,
            grid="trained",
            aliases=("TCD",),
            options=("eta", "end"),
        ),
        SolverInfo(
            "flow_map",
            FlowMap,
            "Flow maps (MeanFlow, IMM, CTM): steps of a network that receives the end of each one; gamma = 1 is all new noise",
            1,
            stochastic=True,
            grid="uniform",
            options=("gamma",),
        ),
        SolverInfo(
            "policy",
            FollowPolicy,
            "pi-Flow: many small steps along the policy that a network predicts; DDIM with other networks",
            1,
            grid="uniform",
            options=("substeps",),
        ),
        SolverInfo(
            "restart",
            Restart,
            "Heun that goes back from sigma_min to sigma_max with new noise",
            2,
            evaluations=2,
            extra=18,
            stochastic=True,
            aliases=("Restart",),
            options=("sigma_min", "sigma_max", "steps", "times"),
        ),
        *COMFY,
    )
}
