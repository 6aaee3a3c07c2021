"""Small random pipelines of diffusers that have, or had, no native family here: name -> (pipeline, what its call is given).

Text features stand in for text encoders where a pipeline takes them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.gen.pipelines import SIZE, seeded, stable_diffusion, t5, t5_tokenizer, unet, vae


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def picture(seed: int = 0, side: int = SIZE) -> Image.Image:
    return Image.fromarray((np.random.RandomState(seed).rand(side, side, 3) * 255).astype("uint8"))


def mask() -> Image.Image:
    pixels = np.zeros((SIZE, SIZE), "uint8")
    pixels[:, SIZE // 2 :] = 255
    return Image.fromarray(pixels)


def shifted_vae(channels: int = 16) -> Any:
    return vae(channels, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)


def deep_vae() -> Any:
    """Eight pixels per latent pixel, which some pipelines take for granted."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return seeded(AutoencoderKL, block_out_channels=(8,) * 4, latent_channels=4, norm_num_groups=4, sample_size=64, **blocks)


def qwen_vae(channels: int = 16) -> Any:
    from diffusers import AutoencoderKLQwenImage

    sizes = {"base_dim": 8, "z_dim": channels, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    if channels != 16:
        sizes |= {"latents_mean": [0.0] * channels, "latents_std": [1.0] * channels}
    return seeded(AutoencoderKLQwenImage, **sizes)


def flux2_vae() -> Any:
    from diffusers import AutoencoderKLFlux2

    blocks = {"block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2}
    return seeded(
        AutoencoderKLFlux2, **blocks, up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=16, norm_num_groups=4,
        layers_per_block=1, sample_size=SIZE,
    )  # fmt: skip


def flow(**options: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(**options)


def embeds(mask: bool = False, dim: int = 24, prefix: str = "prompt_attention_mask", length: int = 7) -> dict[str, Any]:
    """Text features, positive and negative, with their masks."""
    given = {"prompt_embeds": numbers(1, length, dim), "negative_prompt_embeds": -numbers(1, length, dim).flip(1)}
    if mask:
        given |= {prefix: torch.ones(1, length).long(), f"negative_{prefix}": torch.ones(1, length).long()}
    return given


SIDES = {"height": SIZE, "width": SIZE}


def parts_of(pipe: Any, *left_out: str) -> dict[str, Any]:
    return {name: part for name, part in pipe.components.items() if name not in left_out}


def z_image() -> Any:
    from diffusers import ZImagePipeline, ZImageTransformer2DModel

    network = seeded(
        ZImageTransformer2DModel, in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2,
        cap_feat_dim=24, axes_dims=[4, 6, 6], axes_lens=[128, 64, 64],
    )  # fmt: skip
    text = {"prompt_embeds": [numbers(7, 24)], "negative_prompt_embeds": [-numbers(7, 24)]}
    return ZImagePipeline(flow(shift=3.0), shifted_vae(), None, None, network), {**text, **SIDES}


def qwen_image() -> Any:
    from diffusers import QwenImagePipeline, QwenImageTransformer2DModel

    network = seeded(
        QwenImageTransformer2DModel, in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = flow(use_dynamic_shifting=True, shift_terminal=0.02, max_shift=0.9, max_image_seq_len=8192)
    text = embeds(True, prefix="prompt_embeds_mask")
    return QwenImagePipeline(scheduler, qwen_vae(), None, None, network), {**text, "height": 64, "width": 64}


def krea2() -> Any:
    from diffusers import Krea2Pipeline, Krea2Transformer2DModel

    network = seeded(
        Krea2Transformer2DModel, in_channels=64, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, timestep_embed_dim=16, text_hidden_dim=24, num_text_layers=3,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=24, num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    pipe = Krea2Pipeline(
        flow(use_dynamic_shifting=True, max_image_seq_len=6400), qwen_vae(), None, None, network,
        text_encoder_select_layers=(0, 1, 2),
    )  # fmt: skip
    text = {"prompt_embeds": numbers(1, 7, 3, 24), "prompt_embeds_mask": torch.ones(1, 7).bool()}
    negative = {"negative_prompt_embeds": -numbers(1, 7, 3, 24), "negative_prompt_embeds_mask": torch.ones(1, 7).bool()}
    return pipe, {**text, **negative, "height": 64, "width": 64}


def chroma() -> Any:
    from diffusers import ChromaPipeline, ChromaTransformer2DModel

    network = seeded(
        ChromaTransformer2DModel, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 4, 8), approximator_num_channels=8,
        approximator_hidden_dim=16, approximator_layers=1,
    )  # fmt: skip
    pipe = ChromaPipeline(flow(use_beta_sigmas=False), shifted_vae(), None, None, network)
    text = {name: value.bool() if "mask" in name else value for name, value in embeds(True).items()}
    return pipe, {**text, **SIDES}


def lumina2() -> Any:
    from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel

    network = seeded(
        Lumina2Transformer2DModel, sample_size=16, in_channels=16, hidden_size=24, num_layers=1, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=8, axes_dim_rope=(4, 2, 2), axes_lens=(64, 64, 64), cap_feat_dim=24,
    )  # fmt: skip
    return Lumina2Pipeline(network, flow(shift=6.0), shifted_vae(), None, None), {**embeds(True), "height": 64, "width": 64}


def flux2_klein() -> Any:
    from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel

    network = seeded(
        Flux2Transformer2DModel, in_channels=64, num_layers=1, num_single_layers=1, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, timestep_guidance_channels=16, axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=False,
    )  # fmt: skip
    pipe = Flux2KleinPipeline(flow(use_dynamic_shifting=True), flux2_vae(), None, None, network, is_distilled=True)
    return pipe, {"prompt_embeds": numbers(1, 7, 24), **SIDES}


def bria() -> Any:
    from diffusers import BriaPipeline, BriaTransformer2DModel

    network = seeded(
        BriaTransformer2DModel, patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=None, axes_dims_rope=[0, 4, 4],
    )  # fmt: skip
    pipe = BriaPipeline(network, flow(), vae(scaling_factor=0.13025, shift_factor=0.0), t5(3), t5_tokenizer())
    return pipe, {"prompt": "a red heart", "negative_prompt": "blurry", "max_sequence_length": 16, **SIDES}


def prx() -> Any:
    from diffusers import PRXPipeline, PRXTransformer2DModel

    network = seeded(
        PRXTransformer2DModel, patch_size=1, in_channels=4, context_in_dim=24, hidden_size=8, mlp_ratio=2.0, num_heads=2,
        depth=1, axes_dim=[2, 2],
    )  # fmt: skip
    text = embeds(True)
    text |= {name: value.bool() for name, value in text.items() if "mask" in name}
    pipe = PRXPipeline(network, flow(shift=3.0), None, None, vae(scaling_factor=1.0, shift_factor=0.0))
    return pipe, {**text, **SIDES, "use_resolution_binning": False}


def ovis() -> Any:
    from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

    network = seeded(
        OvisImageTransformer2DModel, patch_size=1, in_channels=64, out_channels=64, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=24, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    pipe = OvisImagePipeline(flow(use_dynamic_shifting=True), shifted_vae(), None, None, network)
    return pipe, {"prompt_embeds": numbers(1, 7, 24), "guidance_scale": 1.0, **SIDES}


def ernie() -> Any:
    from diffusers import ErnieImagePipeline, ErnieImageTransformer2DModel

    network = seeded(
        ErnieImageTransformer2DModel, hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=48, in_channels=64,
        out_channels=64, text_in_dim=24, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    pipe = ErnieImagePipeline(network, flux2_vae(), None, None, flow(shift=3.0))
    text = {"prompt_embeds": [numbers(7, 24)], "negative_prompt_embeds": [-numbers(5, 24)]}
    return pipe, {**text, "height": 64, "width": 64}


def hunyuan_dit() -> Any:
    from diffusers import DDIMScheduler, HunyuanDiT2DModel, HunyuanDiTPipeline

    network = seeded(
        HunyuanDiT2DModel, sample_size=16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3,
        in_channels=4, cross_attention_dim=24, cross_attention_dim_t5=24, pooled_projection_dim=16, hidden_size=24,
        activation_fn="gelu-approximate", text_len=7, text_len_t5=7,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.03, beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False,
        steps_offset=1,
    )  # fmt: skip
    pipe = HunyuanDiTPipeline(deep_vae(), None, None, network, scheduler, None, None, requires_safety_checker=False)
    second = {f"{name}_2": value for name, value in embeds(True).items()}
    return pipe, {**embeds(True), **second, "height": 64, "width": 64, "use_resolution_binning": False}


def lumina_next() -> Any:
    from diffusers import LuminaNextDiT2DModel, LuminaPipeline

    network = seeded(
        LuminaNextDiT2DModel, sample_size=16, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_attention_heads=3,
        num_kv_heads=1, multiple_of=8, cross_attention_dim=24, scaling_factor=1.0,
    )  # fmt: skip
    pipe = LuminaPipeline(network, flow(), vae(scaling_factor=0.13025), None, None)
    return pipe, {**embeds(True), **SIDES}


def little_noise() -> Any:
    """A schedule so short of noise that latents of a random network do not grow, and rounding with them."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(beta_start=0.0001, beta_end=0.002, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def movq() -> Any:
    from diffusers import VQModel

    return seeded(
        VQModel, block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, in_channels=3, latent_channels=4,
        layers_per_block=1, norm_num_groups=4, norm_type="spatial", num_vq_embeddings=12, out_channels=3, vq_embed_dim=4,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    )  # fmt: skip


def kandinsky22() -> Any:
    from diffusers import KandinskyV22Pipeline

    network = unet(
        out_channels=8, block_out_channels=(16, 32), addition_embed_type="image", encoder_hid_dim=24, cross_attention_dim=16,
        encoder_hid_dim_type="image_proj", down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=4, resnet_time_scale_shift="scale_shift", norm_num_groups=8,
    )  # fmt: skip
    scheduler = little_noise()
    pipe = KandinskyV22Pipeline(network, scheduler, movq())
    return pipe, {"image_embeds": numbers(1, 24), "negative_image_embeds": -numbers(1, 24), "height": 64, "width": 64}


def kandinsky3() -> Any:
    from diffusers import Kandinsky3Pipeline, Kandinsky3UNet

    network = seeded(
        Kandinsky3UNet, in_channels=4, time_embedding_dim=4, groups=2, attention_head_dim=4, layers_per_block=3,
        block_out_channels=(32, 64), cross_attention_dim=4, encoder_hid_dim=24,
    )  # fmt: skip
    scheduler = little_noise()
    text = embeds()
    text |= {"attention_mask": torch.ones(1, 7).long(), "negative_attention_mask": torch.ones(1, 7).long()}
    return Kandinsky3Pipeline(None, None, network, scheduler, movq()), {**text, "height": 64, "width": 64}


def kandinsky3_texts() -> Any:
    """With its text encoder."""
    from diffusers import Kandinsky3Pipeline

    pipe, _ = kandinsky3()
    parts = {**parts_of(pipe), "text_encoder": t5(3, 24), "tokenizer": t5_tokenizer()}
    return Kandinsky3Pipeline(**parts), {"prompt": "a red heart", "negative_prompt": "blurry", "height": 64, "width": 64}


def pag() -> Any:
    from diffusers import StableDiffusionPAGPipeline

    parts = parts_of(stable_diffusion())
    pipe = StableDiffusionPAGPipeline(**parts, requires_safety_checker=False, pag_applied_layers=["mid"])
    return pipe, {"prompt": "a red heart", "negative_prompt": "blurry", "pag_scale": 2.0, **SIDES}


def auraflow() -> Any:
    from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

    network = seeded(
        AuraFlowTransformer2DModel, sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1,
        attention_head_dim=8, num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=24, out_channels=4,
        pos_embed_max_size=256,
    )  # fmt: skip
    pipe = AuraFlowPipeline(None, None, vae(scaling_factor=0.13025), network, flow(shift=1.73))
    return pipe, {**embeds(True), **SIDES}


def nucleus() -> Any:
    from diffusers import NucleusMoEImagePipeline, NucleusMoEImageTransformer2DModel

    network = seeded(
        NucleusMoEImageTransformer2DModel, patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=4, joint_attention_dim=24, axes_dims_rope=(8, 4, 4), moe_enabled=False, capacity_factors=[8.0, 8.0],
    )  # fmt: skip
    pipe = NucleusMoEImagePipeline(network, flow(), qwen_vae(4), None, None)
    return pipe, {**embeds(True, prefix="prompt_embeds_mask"), "height": 64, "width": 64}


TEXT_TO_IMAGE = (
    auraflow, bria, chroma, ernie, flux2_klein, hunyuan_dit, kandinsky22, kandinsky3, krea2, lumina2, lumina_next,
    nucleus, ovis, pag, prx, qwen_image, z_image,
)  # fmt: skip


def builders() -> dict[str, Any]:
    from tests.gen.whole_editing import EDITING

    return {build.__name__: build for build in (*TEXT_TO_IMAGE, *EDITING)}


@cache
def opened(name: str) -> tuple[Any, dict[str, Any]]:
    """(pipeline, call), made once."""
    pipe, call = builders()[name]()
    pipe.set_progress_bar_config(disable=True)
    return pipe, call
