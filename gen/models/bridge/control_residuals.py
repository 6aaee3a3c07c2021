"""How diffusers' ControlNets of networks of text and patches are called: what each adds behind the denoiser's blocks.

x: noisy latents (B, C, h, w); time (B,), on the denoiser's clock; picture: what `Control.picture` gives, a row for each of x;
mode (B, 1) of a union. The condition's tokens and pooled vector are those that the denoiser reads. Groups of tensors (B, P, D)
come back, a group for each kind of block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gen.models.bridge.families.flux import USUAL_GUIDANCE, packed, positions
from gen.nn.control import PROMPT, PROMPT_MASK
from samplers.denoiser import Condition

Groups = Sequence[Sequence[Tensor] | None]


def of_flux(network: Any, x: Tensor, time: Tensor, condition: Condition, picture: Tensor, mode: Tensor | None) -> Groups:
    assert condition.tokens is not None
    guidance = None
    if network.config.guidance_embeds:
        guidance = condition.extra.get("guidance")
        guidance = torch.full((len(x),), USUAL_GUIDANCE, device=x.device) if guidance is None else guidance
    return network(
        hidden_states=packed(x),
        timestep=time.to(x.dtype),
        guidance=guidance,
        pooled_projections=condition.pooled,
        encoder_hidden_states=condition.tokens,
        txt_ids=x.new_zeros(condition.tokens.shape[1], 3),
        img_ids=positions(x),
        controlnet_cond=picture * 2 - 1 if repeats(network) else packed(picture),
        controlnet_mode=mode,
        return_dict=False,
    )


def of_sd3(network: Any, x: Tensor, time: Tensor, condition: Condition, picture: Tensor, mode: Tensor | None) -> Groups:
    config, pooled = network.config, condition.pooled
    zeros = pooled is not None and config.force_zeros_for_pooled_projection
    return network(
        hidden_states=x,
        controlnet_cond=picture,
        encoder_hidden_states=None if config.joint_attention_dim is None else condition.tokens,
        pooled_projections=torch.zeros_like(pooled) if zeros and pooled is not None else pooled,
        timestep=time,
        return_dict=False,
    )


def of_qwen_image(network: Any, x: Tensor, time: Tensor, condition: Condition, picture: Tensor, mode: Tensor | None) -> Groups:
    extra, mask = condition.extra, condition.mask
    if mask is not None and bool(mask.all()):
        mask = None  # attention is faster so
    added = network(
        hidden_states=packed(x),
        timestep=time.to(x.dtype),
        encoder_hidden_states=extra.get(PROMPT, condition.tokens),
        encoder_hidden_states_mask=extra.get(PROMPT_MASK, None if PROMPT in extra else mask),
        img_shapes=[[(1, x.shape[2] // 2, x.shape[3] // 2)]] * len(x),
        controlnet_cond=packed(picture),
        return_dict=False,
    )
    return (added,)


RESIDUALS: dict[str, Callable[..., Groups]] = {
    "FluxControlNetModel": of_flux,
    "SD3ControlNetModel": of_sd3,
    "QwenImageControlNetModel": of_qwen_image,
}


def repeats(network: Any) -> bool:
    """What it adds goes round over the denoiser's blocks: it reads pixels by layers of its own, as XLabs' ControlNets."""
    return getattr(network, "input_hint_block", None) is not None
