"""Names of samplers, schedules, guidance rules and caches for completion, which cannot wait for torch to be imported.

`tests/gen/test_completion.py` compares them with the tables that they are of.
"""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SAMPLERS = _words("""
euler euler_a ddim heun dpm_2 dpm_2_a dpm_solver_2 dpm_solver_3 dpm_fast dpm_adaptive dpmpp_2s dpmpp_3s dpmpp_2s_a
dpmpp_sde seeds_2 seeds_3 flow_midpoint flow_heun flow_ralston flow_rk4 dpmpp_2m dpmpp_2m_sde dpmpp_2m_sde_heun dpmpp_3m
dpmpp_3m_sde unipc res_multistep sa_solver dpm_solver_2m dpm_solver_3m deis multistep lms ipndm ipndm_v pndm ddpm er_sde
edict consistency lcm tcd flow_map policy restart heunpp2 exp_heun_2_x0 exp_heun_2_x0_sde gradient_estimation
res_multistep_ancestral sa_solver_pece euler_cfg_pp euler_ancestral_cfg_pp dpmpp_2s_ancestral_cfg_pp dpmpp_2m_cfg_pp
res_multistep_cfg_pp res_multistep_ancestral_cfg_pp gradient_estimation_cfg_pp comfy:euler comfy:euler_ancestral
comfy:heun comfy:dpm_2 comfy:dpm_2_ancestral comfy:lms comfy:dpmpp_2s_ancestral comfy:dpmpp_sde comfy:dpmpp_2m
comfy:dpmpp_2m_sde comfy:dpmpp_2m_sde_heun comfy:dpmpp_3m_sde comfy:dpm_fast comfy:dpm_adaptive comfy:ddpm comfy:ipndm
comfy:ipndm_v comfy:deis comfy:res_multistep comfy:er_sde comfy:seeds_2 comfy:seeds_3 comfy:sa_solver comfy:uni_pc
comfy:uni_pc_bh2
""")
SCHEDULES = _words("""
karras exponential polyexponential uniform_logsnr uniform trailing leading linspace normal simple ddim_uniform
sgm_uniform quadratic beta kl_optimal laplace vp iddpm linear_quadratic dynamic_shift align_your_steps turbo trigflow
automatic align_your_steps_11 align_your_steps_32 align_your_steps_gits optimal_steps bong_tangent beta57 comfy:karras
comfy:exponential comfy:kl_optimal comfy:normal comfy:simple comfy:sgm_uniform comfy:beta comfy:gits
comfy:align_your_steps trained scheduler scheduler_flow table
""")
GUIDANCE = _words("""
cfg cfg++ cfg_zero apg embedded autoguidance pag slg seg nag rescale norm_rescale dynamic_threshold clip
""")
CACHES = _words("""
reuse easy first_block taylor pyramid
""")
