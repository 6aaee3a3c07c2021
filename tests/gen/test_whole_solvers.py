"""Every registered sampler over a pipeline as a whole: the latents that its network alone gives in our own loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gen.models.bridge.generic.run import PipelineRun, is_adaptive
from samplers.brownian import brownian_noise
from samplers.denoiser import Condition, Context, NetworkDenoiser
from samplers.noise import seeded_noise
from samplers.path import RectifiedFlow, VariancePreserving
from samplers.registry import get_solver, solver_info, solver_names
from samplers.sample import sample
from tests.gen.pipelines import stable_diffusion
from tests.gen.whole_pipelines import numbers, opened

NAMES = [name for name in solver_names() if name != "flow_map"]  # which tells the network where a step ends


def flow_case() -> tuple[Any, dict[str, Any], NetworkDenoiser]:
    """PRX: rectified flow, latents (B, C, h, w)."""
    pipe, call = opened("prx")
    text = {"encoder_hidden_states": call["prompt_embeds"], "attention_mask": call["prompt_attention_mask"]}

    def network(x, time, condition, context):
        return pipe.transformer(hidden_states=x, timestep=time, **text, return_dict=False)[0]

    return pipe, {**call, "guidance_scale": 1.0}, NetworkDenoiser(network, RectifiedFlow(), "flow", "t")


def eps_case() -> tuple[Any, dict[str, Any], NetworkDenoiser]:
    """Stable Diffusion: a table of noise levels, eps."""
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    text = numbers(1, 7, 16)

    def network(x, time, condition, context):
        return pipe.unet(x, time, encoder_hidden_states=text.expand(len(x), -1, -1), return_dict=False)[0]

    call = {"prompt_embeds": text, "guidance_scale": 1.0, "height": 32, "width": 32}
    return pipe, call, NetworkDenoiser(network, VariancePreserving.scaled_linear(), "eps", "index")


CASES: dict[str, Callable[[], tuple[Any, dict[str, Any], NetworkDenoiser]]] = {"flow": flow_case, "eps": eps_case}


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", list(CASES))
def test_every_sampler_takes_the_schedulers_place(kind, part):
    """Multistep, singlestep, stochastic, adaptive and the rest: the same evaluations, at the same levels, in the same order."""
    pipe, call, direct = CASES[kind]()
    call = {**call, "num_inference_steps": 3, "output_type": "latent"}
    for name in NAMES[part::4]:
        solver, sources = get_solver(name), (brownian_noise if solver_info(name).brownian else seeded_noise)
        given = {**call, "generator": torch.Generator().manual_seed(3)}
        with PipelineRun(pipe, given, solver) as run:
            context = Context()
            x, levels = run.x, run.levels
            found = sample(run.denoiser, run.solver, x, levels, noise=sources([7], x), context=context)
            returned = run.finish(found).images
        plain = Context()
        expected = sample(direct, solver, x, levels, Condition(), noise=sources([7], x), context=plain)
        # adaptive ones amplify rounding where they decide
        tolerance = {"atol": 0.05, "rtol": 0.05} if is_adaptive(solver) else {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(found, expected, **tolerance, msg=lambda text, name=name: f"{name}: {text}")
        assert abs(context.evaluations - plain.evaluations) <= (6 if is_adaptive(solver) else 0), name
        assert torch.equal(returned, found), f"{name}: the pipeline decodes other latents than those at the end"


def test_a_loop_of_steps_ends_where_the_solver_does():
    """An adaptive sampler asks for more steps, or fewer, than the pipeline was told; it goes on until the end."""
    pipe, call, _ = flow_case()
    given = {**call, "num_inference_steps": 3, "output_type": "latent", "generator": torch.Generator().manual_seed(3)}
    counts = []
    for tolerance in (0.5, 0.001):
        with PipelineRun(pipe, given, get_solver("dpm_adaptive", rtol=tolerance, atol=tolerance)) as run:
            context = Context()
            run.finish(sample(run.denoiser, run.solver, run.x, run.levels, context=context))
            counts.append(context.evaluations)
    assert counts[0] < counts[1] and counts[1] > 3
