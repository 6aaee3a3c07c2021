"""Tiny diffusers pipelines of the newer families, as `tests.gen.pipelines` has them of the older ones."""

from __future__ import annotations

from typing import Any

import torch

from tests.gen.pipelines import flux, seeded, t5, t5_tokenizer, vae


def flux_vae(channels: int = 4):
    return vae(channels, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def chroma(**scheduler: Any):
    from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

    network = seeded(
        ChromaTransformer2DModel,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=2,
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, "use_beta_sigmas": True} | scheduler),
        vae=flux_vae(),
        text_encoder=t5(3),
        tokenizer=t5_tokenizer(),
        transformer=network,
    )


def flux_kontext():
    from diffusers import FluxKontextPipeline

    return FluxKontextPipeline(**_parts(flux()))


def flux_fill():
    """Its autoencoder says what it means: the pipeline draws from its distribution, whose deviation is e^-15 here."""
    from diffusers import FluxFillPipeline, FluxTransformer2DModel

    parts = _parts(flux())
    config = {name: value for name, value in parts["transformer"].config.items() if not name.startswith("_")}
    parts["transformer"] = seeded(FluxTransformer2DModel, **config | {"in_channels": 48, "out_channels": 16})
    last = parts["vae"].encoder.conv_out
    with torch.no_grad():
        last.weight[4:] = 0
        last.bias[4:] = -30
    return FluxFillPipeline(**parts)


def _parts(pipeline: Any) -> dict[str, Any]:
    return {name: part for name, part in pipeline.components.items() if part is not None}
